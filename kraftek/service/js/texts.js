/** Texts that are told to a room piece by piece, such as an AI's answer. Used by context.js. */

import { json, whole } from "./envelopes.js";
import { TooLarge } from "./errors.js";
import { GATEWAY_OWN } from "./names.js";
import { script } from "./scripts.js";

const KEY_BYTES = 256;

export const APPEND = `${script("append")}\nlocal told, expected = append_text(unpack(ARGV))\nreturn told or expected`;

/**
 * The arguments of `APPEND` for one piece. Throws a `TypeError` for what is no name, and what is no text.
 *
 * @param {import("./service.js").Service} service
 * @param {string} type
 * @param {string} key
 * @param {string} text
 * @param {string} roomId
 * @param {{first?: boolean | undefined, last?: boolean | undefined, id?: string | undefined}} options
 * @returns {import("./connection.js").Word[]}
 */
export function piece({ prefix, broadcast }, type, key, text, roomId, { first = false, last = false, id = "" }) {
  if (typeof text !== "string") throw new TypeError(`${type}: expected a text, as pieces are joined; found ${typeof text}`);
  for (const name of [type, key, roomId, id]) whole(name);
  if (!type || !key || !roomId || Buffer.byteLength(key) > KEY_BYTES) {
    throw new TypeError(`${type}: expected a type, a room, and a key of 1 to ${KEY_BYTES} bytes`);
  }
  if (type === "disconnect" || type.startsWith(GATEWAY_OWN)) {
    throw new TypeError(`${type}: expected a type that is no command to gateways`);
  }
  const flags = [first && "first", last && "last"].filter(Boolean).join(" ");
  const said = /** @type {string} */ (JSON.parse(json(text))); // with no half of a surrogate pair
  return [roomId, type, key, said, flags, id, prefix, broadcast];
}

/**
 * What `APPEND` returns. Throws `TooLarge`.
 *
 * @param {unknown} answer
 */
export function told(answer) {
  if (!Array.isArray(answer)) throw new TooLarge(`expected ${String(answer)}`);
  const [taken, offset, epoch] = answer;
  return { taken: Number(taken), offset: Number(offset), epoch: String(epoch) };
}
