/**
 * What checks payloads: a schema of any library that has the interface Standard Schema (Zod, Valibot, ArkType …), or a
 * function that returns the payload, converted if it likes, and throws for a wrong one. Used by service.js and handling.js.
 */

/** @typedef {(payload: unknown) => unknown} Check returns a promise or the payload, and throws or rejects */

/** The payload is not what the handler takes. The message is for the sender. */
export class InvalidPayload extends Error {
  name = "InvalidPayload";
}

/**
 * @param {any} schema
 * @param {string} name of the event
 * @returns {Check}
 */
export function checkerOf(schema, name) {
  const standard = schema?.["~standard"];
  if (typeof standard?.validate === "function") return async (payload) => valueOf(await standard.validate(payload));
  if (typeof schema !== "function") throw new TypeError(`${name}: expected a Standard Schema, or a function that checks`);
  return async (payload) => {
    try {
      return await schema(payload);
    } catch (error) {
      throw new InvalidPayload(error instanceof Error ? error.message : String(error));
    }
  };
}

/** @param {{value: unknown, issues?: undefined} | {issues: readonly {message: string, path?: readonly any[]}[]}} result */
function valueOf(result) {
  if (result.issues === undefined) return result.value;
  const [issue] = result.issues;
  const path = issue?.path?.map((part) => step(typeof part === "object" ? part.key : part)).join("");
  throw new InvalidPayload(`${issue?.message ?? "invalid"}${path ? ` - at \`$${path}\`` : ""}`);
}

/** @param {PropertyKey} key */
function step(key) {
  return typeof key === "number" ? `[${key}]` : `.${String(key)}`;
}
