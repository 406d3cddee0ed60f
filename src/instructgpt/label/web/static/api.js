// Calls to the labelers' API. A refusal, and a server that cannot be reached, are both an ApiError.

export class ApiError extends Error {
  /** `status` 0: the server could not be reached. */
  constructor(status, code, message, detail = {}) {
    super(message);
    Object.assign(this, { status, code, detail });
  }
}

const meta = document.querySelector("meta[name=csrf]");

/** The token that protects forms; after a new sign-in every form on the page carries the new one. */
export function renewToken(token) {
  meta.content = token;
  for (const field of document.querySelectorAll("input[name=csrf]")) field.value = token;
}

/** Call the API. `keepalive` lets a call outlive the page. Raises ApiError. */
export async function call(method, path, body = null, { headers = {}, keepalive = false, patience = 15000 } = {}) {
  const text = body === null ? null : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}`, {
      method,
      body: text,
      // Browsers refuse a keepalive body beyond 64 KiB; the copy in the browser is there for those.
      keepalive: keepalive && (text === null || text.length < 20000),
      credentials: "same-origin",
      signal: AbortSignal.timeout(patience),
      headers: { "Content-Type": "application/json", "X-CSRF-Token": meta.content, ...headers },
    });
  } catch (cause) {
    throw new ApiError(0, "unreachable", String(cause));
  }
  const said = answer.status === 204 ? null : await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, said?.error ?? "failed", said?.message ?? `${answer.status}`, said?.detail ?? {});
  return said;
}
