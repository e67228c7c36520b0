/**
 * Services of the Kraftek Socket Gateway: a function per event, and the rest is done. README.md shows a whole one.
 *
 *     event -> pubsub.js or streams.js -> handling.js -> the handler, with context.js -> commits.js -> Redis
 *
 * `service.js` is what an author makes, `instance.js` a running one; `connection.js` is Redis; `envelopes.js` what is
 * sent, `names.js` where. The Redis scripts are those of the kit for Python. Types are in index.d.ts. Times are in
 * milliseconds, except for `retryAfter`, which is in seconds as on the wire.
 */

export { Refused, TooLarge } from "./errors.js";
export { Service } from "./service.js";
