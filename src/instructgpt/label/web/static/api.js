// Calls to the labelers' API. Errors of the server and an unreachable server are both an ApiError.

/** The path of the site's root without its trailing slash: not empty below a sub path of a proxy. */
export const SITE_PATH = new URL("..", import.meta.url).pathname.replace(/\/$/, "");

export class ApiError extends Error {
  /** `status` 0: the server could not be reached. */
  constructor(status, code, message, detail = {}) {
    super(message);
    Object.assign(this, { status, code, detail });
  }
}

// Browsers refuse keepalive bodies above 64 KiB in total; the copy in localStorage covers longer drafts.
const MAX_KEEPALIVE_LENGTH = 20000;

/** Call the API and return its JSON. `keepalive`: the request outlives the page. Raises ApiError. */
export async function callApi(method, path, body = null, { headers = {}, keepalive = false, timeoutMs = 15000 } = {}) {
  const requestBody = body === null ? null : JSON.stringify(body);
  let response;
  try {
    response = await fetch(`${SITE_PATH}/api/v1/${path}`, {
      method,
      body: requestBody,
      keepalive: keepalive && (requestBody === null || requestBody.length < MAX_KEEPALIVE_LENGTH),
      credentials: "same-origin",
      signal: AbortSignal.timeout(timeoutMs),
      headers: { "Content-Type": "application/json", ...headers },
    });
  } catch (error) {
    throw new ApiError(0, "unreachable", String(error));
  }
  const data = response.status === 204 ? null : await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, data?.error ?? "failed", data?.message ?? `${response.status}`, data?.detail ?? {});
  return data;
}
