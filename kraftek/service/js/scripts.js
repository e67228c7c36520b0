/**
 * The Redis scripts of the kit. They are the Python kit's own files: in a checkout they stand beside this directory, and
 * `npm pack` copies them into `lua/` (prepack.js).
 */

import { existsSync, readFileSync } from "node:fs";

/** What each script is joined of, in this order. */
export const FILES = {
  commit: ["pending", "commit"],
  commitUnkept: ["unkept", "pending", "commit"],
  commitKept: ["pending", "history", "kept", "texts", "tell", "tell_users", "commit"],
  commitAndEmit: ["pending", "fields", "streams", "emit", "commit"],
  commitUnkeptAndEmit: ["unkept", "pending", "fields", "streams", "emit", "commit"],
  commitKeptAndEmit: ["pending", "fields", "streams", "emit", "history", "kept", "texts", "tell", "tell_users", "commit"],
  unkept: ["unkept"],
  tell: ["history", "kept", "texts", "tell", "tell_users"],
  append: ["history", "kept", "texts", "tell", "append"],
  unaware: ["time", "unaware"],
  join: ["fields", "join_group", "forget_consumers"],
  claim: ["claimed", "claim_pending"],
  share: ["time", "share"],
  take: ["fields", "take"],
  begin: ["begin"],
  keep: ["time", "keep"],
  register: ["time", "register"],
  progress: ["progress"],
  addressed: ["addressed"],
};

/** Where a file is: in the package, or in the checkout, the kit's own before those that the gateways have as well. */
const PLACES = ["./lua/", "../", "../../contract/"].map((place) => new URL(place, import.meta.url));

/**
 * The text of a script. `numbers` come before it as local variables.
 *
 * @param {keyof typeof FILES} name
 * @param {Record<string, number>} [numbers]
 */
export function script(name, numbers = {}) {
  const given = Object.entries(numbers).map(([variable, number]) => `local ${variable} = ${number}`);
  return [...given, ...FILES[name].map((file) => readFileSync(placeOf(file), "utf8"))].join("\n");
}

/** @param {string} name */
export function placeOf(name) {
  const place = PLACES.map((folder) => new URL(`${name}.lua`, folder)).find((file) => existsSync(file));
  if (!place) throw new Error(`${name}.lua is missing: it is copied by npm pack, from a checkout of the gateway`);
  return place;
}
