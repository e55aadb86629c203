// The service's HTTP API, as far as this page speaks it. Addresses are relative: the service may stand below a prefix.

const KEY_NAME = "caption_ray.api-key";
// An error in the middle of a stream comes without a status: those that pass, by their code.
const STATUS_OF_CODE = { overloaded: 503, unavailable: 503, deadline_exceeded: 504 };

/**
 * A request that did not succeed: `status` is 0 where no answer came, `code` and `limit` are the service's own, and
 * `hadKey` says whether it was sent with an API key.
 */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", limit = null, retryAfter = null, hadKey = false } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, limit, retryAfter, hadKey });
  }

  /** Whether the same request may well succeed in a moment. */
  get isPassing() {
    return [429, 503].includes(this.status);
  }
}

/** Keeps the API key for this tab alone; where storage is forbidden, for this page view. */
export const apiKey = {
  current: null,
  get() {
    try {
      return this.current ?? sessionStorage.getItem(KEY_NAME);
    } catch {
      return this.current;
    }
  },
  set(value) {
    this.current = value;
    try {
      sessionStorage.setItem(KEY_NAME, value);
    } catch {
      // Kept in `current`.
    }
  },
};

/** Return what the service says of its model. */
export async function fetchModel() {
  const response = await send("v1/model", {});
  return response.json();
}

/** Return the file of one of the page's examples. */
export async function fetchExample(name, signal) {
  const response = await send(`static/examples/${name}`, { signal });
  try {
    return new File([await response.blob()], name, { type: "image/jpeg" });
  } catch (error) {
    throw asBrokenOff(error);
  }
}

/** Return up to `count` captions of the picture, best first, with attention. */
export async function fetchCaptions(picture, count, signal) {
  const response = await send(`v1/captions?num_captions=${count}&attention=true`, upload(picture, signal));
  return response.json();
}

/** Yield `{event, data}` for each word as it is found, and at last for the whole caption. */
export async function* streamCaption(picture, signal) {
  const response = await send("v1/captions/stream?attention=true", upload(picture, signal));
  for await (const { event, data } of readEvents(response.body)) {
    if (event === "error") throw errorFrom(data, STATUS_OF_CODE[data.error.code] ?? 500);
    yield { event, data };
    if (event === "caption") return;
  }
  throw new ApiError("The answer broke off.");
}

/** Yield the server-sent events of a body; a comment, or an event without data, is none. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (pending + value).split(/\r?\n\r?\n/);
      pending = blocks.pop();
      yield* blocks.map(parseEvent).filter(Boolean);
    }
  } catch (error) {
    throw asBrokenOff(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** What is thrown where a body could not be read to its end: a TypeError is what browsers say of the connection. */
function asBrokenOff(error) {
  return error.name === "TypeError" ? new ApiError("The answer broke off.") : error;
}

function parseEvent(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^(\w*): ?(.*)$/.exec(line) ?? [];
    if (field === "event") event = value;
    if (field === "data") data.push(value);
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}

function upload(picture, signal) {
  return { method: "POST", body: picture, signal, headers: { "Content-Type": picture.type || "image/*" } };
}

async function send(address, options) {
  const key = apiKey.get();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("No answer came.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  throw errorFrom(body, response.status, { retryAfter, hadKey: Boolean(key) });
}

function errorFrom(body, status, besides = {}) {
  const { message = "", code, limit } = body?.error ?? {}; // a proxy's own answers have other bodies
  return new ApiError(message, { status, code, limit, ...besides });
}
