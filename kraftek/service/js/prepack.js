/** Run by `npm pack` and `npm publish`: copies the Redis scripts, which stand beside this directory, to `lua/`. */

import { copyFileSync, mkdirSync, rmSync } from "node:fs";

import { FILES, placeOf } from "./scripts.js";

const copies = new URL("lua/", import.meta.url);
rmSync(copies, { recursive: true, force: true });
const originals = [...new Set(Object.values(FILES).flat())].map((name) => /** @type {const} */ ([name, placeOf(name)]));
mkdirSync(copies);
for (const [name, original] of originals) copyFileSync(original, new URL(`${name}.lua`, copies));
