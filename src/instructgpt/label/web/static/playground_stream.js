// Server-sent events of one message, read from the answer to a POST.

import { ApiError, SITE_PATH } from "./api.js";

/** Split text into the data of whole events and the rest, which is the beginning of the next one. */
export function splitEvents(text) {
  const parts = text.split("\n\n");
  const rest = parts.pop();
  const events = parts.filter((part) => part.startsWith("data:")).map((part) => JSON.parse(part.slice(5)));
  return { events, rest };
}

/** Send a message and call onEvent for each event. Raises ApiError; status 0: the connection broke before the end. */
export async function streamAnswers(body, onEvent) {
  let response;
  try {
    response = await fetch(`${SITE_PATH}/api/v1/playground/turns`, {
      method: "POST",
      body: JSON.stringify(body),
      credentials: "same-origin",
      headers: { "Content-Type": "application/json" },
    });
  } catch (error) {
    throw new ApiError(0, "unreachable", String(error));
  }
  if (!response.ok) {
    const data = await response.json().catch(() => ({}));
    throw new ApiError(response.status, data.error ?? "failed", data.message ?? `${response.status}`, data.detail ?? {});
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isDone = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parsed = splitEvents(rest + value);
      rest = parsed.rest;
      for (const event of parsed.events) {
        isDone ||= event.done === true;
        onEvent(event);
      }
    }
  } catch (error) {
    throw new ApiError(0, "unreachable", String(error));
  }
  if (!isDone) throw new ApiError(0, "unreachable", "the stream ended early");
}
