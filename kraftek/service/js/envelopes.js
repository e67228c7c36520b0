/**
 * Events as they arrive, and messages as they leave: JSON in UTF-8, as docs/services.rst has it. Called by handling.js,
 * context.js and instance.js. Nothing here does I/O.
 */

import { NoEvent, TooLarge } from "./errors.js";

/**
 * @typedef {import("./index.js").RequestId} RequestId
 *
 * @typedef {object} Incoming An event. Fields that the original gateway does not send have defaults.
 * @property {string} eventType
 * @property {string} userId
 * @property {string} socketId
 * @property {string | undefined} roomId
 * @property {RequestId | undefined} id
 * @property {string} replyTo
 * @property {number} timestamp
 * @property {string | undefined} source
 * @property {string | undefined} traceparent
 * @property {unknown} payload
 * @property {boolean} progress whether whoever sent it takes the answer in parts
 *
 * @typedef {object} Message What clients get. Fields without a value are left out.
 * @property {string} type
 * @property {unknown} payload
 * @property {string[] | undefined} [recipients]
 * @property {string[] | undefined} [excludeSocketIds]
 * @property {string[] | undefined} [userIds]
 * @property {string | undefined} [roomId]
 * @property {boolean} [everybody]
 * @property {RequestId | undefined} [inReplyTo]
 * @property {{replyTo: string, id: number}} [receipt]
 */

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * Decode an event. Throws `NoEvent`.
 *
 * @param {Buffer} body
 * @returns {Incoming}
 */
export function open(body) {
  const { text, fields } = read(body);
  const optional = (/** @type {string} */ name) => (fields[name] === null ? undefined : word(fields, name));
  const timestamp = fields.timestamp ?? 0;
  if (!Number.isInteger(timestamp)) throw new NoEvent("expected an integer in timestamp");
  const eventType = word(fields, "eventType");
  if (eventType === undefined) throw new NoEvent("expected a string in eventType");
  return {
    eventType,
    userId: word(fields, "userId") ?? "",
    socketId: word(fields, "socketId") ?? "",
    roomId: optional("roomId"),
    id: requestId(text, fields, "id"),
    replyTo: word(fields, "replyTo") ?? "",
    timestamp: /** @type {number} */ (timestamp),
    source: optional("source"),
    traceparent: optional("traceparent"),
    payload: fields.payload ?? null,
    progress: fields.progress === true,
  };
}

/**
 * Decode the answer of another service. Throws `NoEvent`.
 *
 * @param {Buffer} body
 */
export function openAnswer(body) {
  const { text, fields } = read(body);
  return {
    type: word(fields, "type") ?? "",
    inReplyTo: requestId(text, fields, "inReplyTo"),
    payload: fields.payload ?? null,
  };
}

/**
 * Decode what is said of a request that its client has cancelled. Throws `NoEvent`.
 *
 * @param {Buffer} body
 */
export function openCancelled(body) {
  const { text, fields } = read(body);
  const timestamp = Number.isInteger(fields.timestamp) ? Number(fields.timestamp) : Infinity;
  return {
    eventType: word(fields, "eventType") ?? "",
    userId: word(fields, "userId") ?? "",
    socketId: word(fields, "socketId") ?? "",
    id: requestId(text, fields, "id"),
    timestamp,
  };
}

/**
 * A message or an event of our own as JSON. An integer that is larger than a number of JavaScript can hold goes back as it
 * came: as a bigint. Throws a `TypeError` for what is no JSON and for half of a surrogate pair in a name, and `TooLarge`.
 *
 * @param {string} name of the message, for the error
 * @param {Record<string, unknown>} fields
 * @param {number} most bytes
 */
export function encode(name, fields, most) {
  const parts = [];
  for (const [key, value] of Object.entries(fields)) {
    if (key === "payload") parts.push(`"payload":${json(value)}`);
    else if (value !== undefined) parts.push(`${JSON.stringify(key)}:${whole(value)}`);
  }
  const text = `{${parts.join(",")}}`;
  const size = Buffer.byteLength(text);
  if (size > most) throw new TooLarge(`${name}: a message of ${size} bytes; at most ${most} may be sent`);
  return text;
}

/**
 * @param {string} text
 * @returns {unknown}
 */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new NoEvent(/** @type {Error} */ (error).message);
  }
}

/** @param {Buffer} body */
function read(body) {
  let text;
  try {
    text = utf8.decode(body);
  } catch {
    throw new NoEvent("expected UTF-8");
  }
  const fields = parsed(text);
  if (typeof fields !== "object" || fields === null || Array.isArray(fields)) throw new NoEvent("expected an object");
  return { text, fields: /** @type {Record<string, unknown>} */ (fields) };
}

/**
 * @param {Record<string, unknown>} fields
 * @param {string} name
 */
function word(fields, name) {
  const value = fields[name];
  if (value === undefined) return undefined;
  if (typeof value !== "string") throw new NoEvent(`expected a string in ${name}`);
  if (!value.isWellFormed()) throw new NoEvent("half of a surrogate pair outside of the payload");
  return value;
}

/**
 * @param {string} text
 * @param {Record<string, unknown>} fields
 * @param {string} name
 * @returns {RequestId | undefined}
 */
function requestId(text, fields, name) {
  const value = fields[name];
  if (value === null) return undefined;
  if (typeof value !== "number") return word(fields, name);
  if (Number.isSafeInteger(value)) return value;
  const digits = member(text, name);
  if (!/^-?\d+$/.test(digits)) throw new NoEvent(`expected an integer or a string in ${name}`);
  return BigInt(digits);
}

const COLON = /\s*:/y;
const NUMBER = /-?\d[\d.eE+-]*/y;

/**
 * The text of a number in an object: the last one under this name, as JSON.parse has it. `text` is JSON.
 *
 * @param {string} text
 * @param {string} name
 */
function member(text, name) {
  let [depth, key, found, at] = [0, "", "", 0];
  while (at < text.length) {
    const character = text.charAt(at);
    let end = at + 1;
    if (character === '"') {
      end = endOfString(text, at);
      COLON.lastIndex = end;
      if (depth === 1 && COLON.test(text)) key = JSON.parse(text.slice(at, end));
    } else if (character === "{" || character === "[") depth += 1;
    else if (character === "}" || character === "]") depth -= 1;
    else if (depth === 1 && key === name) {
      NUMBER.lastIndex = at;
      found = NUMBER.exec(text)?.[0] ?? found;
      end = Math.max(end, NUMBER.lastIndex);
    }
    at = end;
  }
  return found;
}

/**
 * @param {string} text
 * @param {number} start where its first quotation mark is
 */
function endOfString(text, start) {
  for (let end = text.indexOf('"', start + 1); ; end = text.indexOf('"', end + 1)) {
    let backslashes = 0;
    while (text.charAt(end - 1 - backslashes) === "\\") backslashes += 1;
    if (backslashes % 2 === 0) return end + 1;
  }
}

/** JSON.stringify escapes halves of surrogate pairs alone: an escape is one where an odd number of backslashes stands. */
const HALF = /(?<!\\)((?:\\\\)*)\\ud[89a-f][\da-f]{2}/g;

/** @param {unknown} payload */
export function json(payload) {
  const text = JSON.stringify(payload) ?? "null";
  return text.includes("\\ud") ? text.replace(HALF, "$1\\ufffd") : text;
}

/** The JSON of a name. @param {unknown} value */
export function whole(value) {
  const text = typeof value === "bigint" ? String(value) : JSON.stringify(value);
  if (text.includes("\\ud") && text.search(HALF) >= 0) throw new TypeError("half of a surrogate pair in a name");
  return text;
}
