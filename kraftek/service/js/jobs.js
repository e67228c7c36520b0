/** What a running service has in hand. Made by instance.js; the sources of events put their work into it. */

import { Away, Rejected } from "./errors.js";

/** Milliseconds between attempts to reach Redis. */
export const PAUSE = 1_000;
/** Milliseconds that a timer may be late. One that is later was kept waiting by a call that has blocked the loop. */
const LATE = 250;
/** The longest time that timers can count, 24 days. */
export const LONGEST = 2 ** 31 - 1;

export class Jobs {
  /** No new events are accepted. */
  stopping = false;
  /** The rest was given up, and what comes of it is ignored. */
  cutOff = false;
  /** @type {Set<Promise<void>>} */
  #running = new Set();
  /** @type {Set<() => void>} */
  #waiting = new Set();
  /** @type {Set<() => void>} */
  #pausing = new Set();
  #connection;
  #log;

  /**
   * @param {import("./connection.js").Connection} connection
   * @param {import("./index.js").Log} log
   * @param {(text: string) => void} warn logs a line, once a minute
   */
  constructor(connection, log, warn) {
    this.#connection = connection;
    this.#log = log;
    this.warn = warn;
  }

  /**
   * Run this beside everything else. The one guard: an internal error ends one job, and is logged.
   *
   * @param {() => Promise<void>} work
   */
  spawn(work) {
    const job = work()
      .catch((error) => {
        if (!this.cutOff) this.#log.error("An event was lost", error);
      })
      .finally(() => {
        this.#running.delete(job);
        this.change();
      });
    this.#running.add(job);
  }

  /**
   * Do this until it ends; again when Redis was unavailable or has lost the group.
   *
   * @param {(reader: ReturnType<import("./connection.js").Connection["reader"]>) => Promise<void>} work
   */
  async persistently(work) {
    const reader = this.#connection.reader();
    try {
      for (;;) {
        try {
          return await work(reader);
        } catch (error) {
          if (!(error instanceof Away || error instanceof Rejected)) throw error;
          this.warn(`Redis is unavailable, retrying every ${PAUSE / 1000} s: ${error.message}`);
          if (this.stopping) return;
          await this.changeWithin(PAUSE);
        }
      }
    } finally {
      reader.close();
    }
  }

  /**
   * Settles when all have ended, with true, or after so many milliseconds: then the rest is given up.
   *
   * @param {number} grace
   */
  async end(grace) {
    const deadline = performance.now() + grace;
    this.change();
    for (let left = grace; this.#running.size && left > 0; left = deadline - performance.now()) {
      await this.changeWithin(left);
    }
    this.cutOff = true;
    this.change();
    for (const wake of [...this.#pausing]) wake();
    return this.#running.size === 0;
  }

  /**
   * A time that is `over` after so many milliseconds, or when everything is given up, or when its `end` is called.
   *
   * @param {number} milliseconds
   */
  time(milliseconds) {
    return wait(this.#pausing, milliseconds);
  }

  /** Wake all that wait for a change. */
  change() {
    for (const wake of [...this.#waiting]) wake();
  }

  /**
   * Settles when a job has ended or something else has changed, or after so many milliseconds.
   *
   * @param {number} milliseconds
   */
  changeWithin(milliseconds) {
    return wait(this.#waiting, milliseconds).over;
  }
}

/**
 * A promise that settles after so many milliseconds, and what settles it sooner, or later. When the loop was blocked until then, what
 * else is to happen has a little more time for it: others than who did that are not to blame.
 *
 * @param {Set<() => void>} waiting where others find that
 * @param {number} milliseconds
 * @returns {{over: Promise<void>, end: () => void, renew: (milliseconds: number) => void}}
 */
function wait(waiting, milliseconds) {
  let end = () => {};
  /** @type {(milliseconds: number) => void} */
  let renew = () => {};
  const over = new Promise((/** @type {(value: void) => void} */ resolve) => {
    end = () => {
      waiting.delete(end);
      clearTimeout(timer);
      resolve();
    };
    const start = (/** @type {number} */ given) => {
      const time = Math.min(Math.max(0, given), LONGEST);
      const due = performance.now() + time;
      return setTimeout(() => {
        if (performance.now() - due < LATE) end();
        else timer = setTimeout(() => end(), LATE);
      }, time);
    };
    /** @type {NodeJS.Timeout} */
    let timer = start(milliseconds);
    renew = (given) => {
      if (!waiting.has(end)) return;
      clearTimeout(timer);
      timer = start(given);
    };
    waiting.add(end);
  });
  return { over, end, renew };
}
