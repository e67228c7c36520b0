/** Something that is done again and again beside a service: the base of Comparison and of SelfRegistration. */

export class Watch {
  stopped = false;
  /** @type {NodeJS.Timeout | undefined} */
  #timer;
  #log;
  #lastWords;
  #first;

  /**
   * @param {import("./index.js").Log} log
   * @param {string} lastWords are logged with an error of `turn`, which ends the watch alone
   * @param {number} first milliseconds from the start to the first turn
   */
  constructor(log, lastWords, first = 0) {
    this.#log = log;
    this.#lastWords = lastWords;
    this.#first = first;
  }

  /**
   * Does it once; called from `start` to `stop`.
   *
   * @returns {Promise<number>} milliseconds until the next time
   */
  async turn() {
    throw new Error("not implemented");
  }

  /** Begin. */
  start() {
    if (this.#first) this.#after(this.#first);
    else void this.#run();
  }

  /** Take no further turn. */
  stop() {
    this.stopped = true;
    clearTimeout(this.#timer);
  }

  /** @param {number} milliseconds */
  #after(milliseconds) {
    if (!this.stopped) this.#timer = setTimeout(() => void this.#run(), milliseconds);
  }

  async #run() {
    try {
      this.#after(await this.turn());
    } catch (error) {
      if (!this.stopped) this.#log.error(this.#lastWords, error);
    }
  }
}
