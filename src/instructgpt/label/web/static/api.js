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

const MAX_REPEATS = 5;

/** Fetch, again after the time that a busy server asks for (503): drafts, claims and submissions may be repeated. */
export async function fetchAgainWhileBusy(url, options, timeoutMs = 30000) {
  for (let repeats = 0; ; repeats += 1) {
    const response = await fetch(url, { ...options, signal: AbortSignal.timeout(timeoutMs) });
    if (response.status !== 503 || repeats === MAX_REPEATS || options.keepalive) return response;
    const seconds = Number(response.headers.get("Retry-After")) || 2;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds * (0.5 + Math.random())));
  }
}

/** Call the API and return its JSON. `keepalive`: the request outlives the page. Raises ApiError. */
export async function callApi(method, path, body = null, { headers = {}, keepalive = false, timeoutMs = 15000 } = {}) {
  const requestBody = body === null ? null : JSON.stringify(body);
  let response;
  try {
    response = await fetchAgainWhileBusy(`${SITE_PATH}/api/v1/${path}`, {
      method,
      body: requestBody,
      keepalive: keepalive && (requestBody === null || requestBody.length < MAX_KEEPALIVE_LENGTH),
      credentials: "same-origin",
      headers: { "Content-Type": "application/json", ...headers },
    }, timeoutMs);
  } catch (error) {
    throw new ApiError(0, "unreachable", String(error));
  }
  const data = response.status === 204 ? null : await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, data?.error ?? "failed", data?.message ?? `${response.status}`, data?.detail ?? {});
  return data;
}
