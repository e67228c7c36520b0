/**
 * A thread beside the loop of a service. It keeps what the instance has in Redis, also while a handler blocks the loop, and
 * says where that happens. Made by instance.js; the thread itself is pulse_thread.js.
 *
 * Without it an instance that is busy would look dead: others would take its leases and entries over, begin the same event,
 * and be blocked by it in turn. One that is stopped as a whole (SIGSTOP, a frozen virtual machine) does look dead.
 */

import { Worker } from "node:worker_threads";

/**
 * @typedef {import("./connection.js").Word[]} Words
 *
 * @typedef {object} Given What the thread is given.
 * @property {string} url
 * @property {number} interval milliseconds between two commands
 * @property {number} limit milliseconds after which a loop that is blocked is warned of
 */

export class Pulse {
  /** Settles when the thread runs. @type {Promise<void>} */
  begun;
  #thread;

  /**
   * @param {Given} given
   * @param {(text: string) => void} warn
   */
  constructor(given, warn) {
    // Options of the program's node, such as --input-type, are not for the thread.
    this.#thread = new Worker(new URL("pulse_thread.js", import.meta.url), { workerData: given, execArgv: [] });
    this.begun = new Promise((begun) => {
      this.#thread.on("message", () => {
        begun();
        this.#thread.postMessage("here");
      });
      this.#thread.on("error", (error) => {
        begun();
        warn(`Handlers that block make this instance look dead: ${error.message}`);
      });
    });
    this.#thread.unref();
  }

  /**
   * From now on this is the command that keeps what the instance has; nothing when it has nothing.
   *
   * @param {Words} [command]
   */
  beat(command) {
    this.#thread.postMessage(command ?? []);
  }

  /** @param {number} limit milliseconds after which a loop that is blocked is warned of */
  warnAfter(limit) {
    this.#thread.postMessage(limit);
  }

  async stop() {
    await this.#thread.terminate();
  }
}
