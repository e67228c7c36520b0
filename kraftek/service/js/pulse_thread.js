/** The thread of pulse.js. */

import { writeSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";

import { Connection } from "./connection.js";

/** Milliseconds between two looks at the loop, at most. */
const LOOK = 1_000;

const { url, interval, ...given } = /** @type {import("./pulse.js").Given} */ (workerData);
let { limit } = given;
const loop = /** @type {import("node:worker_threads").MessagePort} */ (parentPort);

/** @type {Connection | undefined} */
let connection;
/** @type {import("./pulse.js").Words} */
let command = [];
let due = 0;
let sending = false;
/** When the loop was asked to answer, if it has not. @type {number | undefined} */
let asked;
let warned = false;
let looked = performance.now();
look(looked);

loop.on("message", (/** @type {import("./pulse.js").Words | "here" | number} */ said) => {
  if (said === "here") asked = undefined;
  else if (typeof said === "number") limit = said;
  else command = said;
});

setInterval(() => {
  const now = performance.now();
  if (now >= due && !sending) {
    due = now + interval;
    beat();
  }
  look(now);
  looked = now;
}, Math.min(interval, LOOK));

async function beat() {
  if (!command.length) return;
  // The loop has the same Redis, and says what is wrong with it.
  connection ??= new Connection(url, { info() {}, warn() {}, error() {} });
  sending = true;
  await connection.call(...command).catch(() => {});
  sending = false;
}

/**
 * Ask the loop to answer, and see for how long it has not.
 *
 * @param {number} now
 */
function look(now) {
  if (asked === undefined || now - looked > 2 * LOOK) {
    // Or the whole process has stood still.
    asked = now;
    warned = false;
    loop.postMessage("there?");
  } else if (now - asked > limit && !warned) {
    warned = true;
    place().then(
      (where) => warn(`The loop is blocked for more than ${limit / 1000} s, ${where}`),
      () => warn(`The loop is blocked for more than ${limit / 1000} s`),
    );
  }
}

/** What the loop runs just now. It is stopped there for a moment. */
async function place() {
  const { Session } = await import("node:inspector");
  const session = new Session();
  session.connectToMainThread();
  try {
    return await new Promise((resolve) => {
      /** @type {Map<string, string>} */
      const files = new Map();
      session.on("Debugger.scriptParsed", ({ params }) => files.set(params.scriptId, params.url));
      session.on("Debugger.paused", ({ params }) => {
        // Where the program is: it may be in a function of Node's just now.
        const own = params.callFrames.find(({ location }) => !files.get(location.scriptId)?.startsWith("node:"));
        const frame = own ?? params.callFrames[0];
        session.post("Debugger.resume");
        if (!frame) return resolve("by native code");
        const { scriptId, lineNumber } = frame.location;
        return resolve(`by ${frame.functionName || "a function"} at ${files.get(scriptId)}:${lineNumber + 1}`);
      });
      session.post("Debugger.enable");
      session.post("Debugger.pause");
    });
  } finally {
    session.disconnect();
  }
}

/**
 * Write as log.js does, whose lines the loop would write.
 *
 * @param {string} text
 */
function warn(text) {
  writeSync(2, `${new Date().toISOString()} [kraftek-service#warn] ${text}\n`);
}
