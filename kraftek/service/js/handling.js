/**
 * Handles one event: calls its handler within the time limit, tries again over streams, and commits what came of it.
 * Called by pubsub.js and streams.js. The commands of a handler and the acknowledgement of its entry are one transaction,
 * which does nothing if another instance has acknowledged the entry: an event may be handled twice, but is answered once.
 */

import { Cancels } from "./cancels.js";
import { Commits } from "./commits.js";
import { Context, refusal } from "./context.js";
import { open } from "./envelopes.js";
import { Away, NoEvent, NotNow, Refused, Refusing, Rejected, TimeoutError } from "./errors.js";
import { PAUSE } from "./jobs.js";
import { deadLetters } from "./names.js";
import { InvalidPayload } from "./schema.js";

/**
 * @typedef {import("./envelopes.js").Incoming} Incoming
 * @typedef {import("./context.js").Command} Command
 *
 * @typedef {object} Entry An event in a stream.
 * @property {string} stream
 * @property {string} id
 * @property {Buffer} body
 * @property {number} delivered how often it was given to a handler, this time included
 *
 * @typedef {Entry & {consumer: string, lost: () => void}} Owned An entry in hand; `lost` is called when another instance
 *   turns out to have it.
 */

/** Milliseconds until a handler that failed is called again; each time four times as many. */
const RETRY = 100;
/** Entries that a dead-letter stream may hold, and bytes of entries as large as the newest. */
const DEAD_LETTERS = 10_000;
const DEAD_LETTER_BYTES = 67_108_864;
/** Characters of a reason that are kept. */
const REASON = 1_000;

/** Milliseconds that a handler may take in all, however often it sends a part of its answer. */
const LONGEST = 3_600_000;

/** Seconds after which those that are refused because too much waits should try again. */
export const RETRY_AFTER = 1;

export class Handling {
  #service;
  #commits;
  #jobs;
  #link;
  #warn;

  /**
   * @param {import("./service.js").Service} service
   * @param {import("./connection.js").Connection} connection
   * @param {import("./jobs.js").Jobs} jobs
   * @param {import("./context.js").Link} link
   * @param {(text: string) => void} warn logs a line, once a minute
   */
  constructor(service, connection, jobs, link, warn) {
    this.#service = service;
    this.#commits = new Commits(connection);
    this.#jobs = jobs;
    this.#link = link;
    this.#warn = warn;
    /** To begin before events come. */
    this.cancels = new Cancels(service, connection, warn);
  }

  /**
   * What came over Pub/Sub, if it is an event.
   *
   * @param {Buffer} body
   */
  opened(body) {
    try {
      return open(body);
    } catch (error) {
      if (!(error instanceof NoEvent)) throw error;
      this.#warn(`Ignored a message that is not an event: ${error.message}`);
      return undefined;
    }
  }

  /**
   * An event that came over Pub/Sub: one attempt; the sender gets an error if it fails.
   *
   * @param {Incoming} event
   */
  async published(event) {
    try {
      await this.#commitOnce(event, await this.#handle(event));
    } catch (error) {
      if (error instanceof Away) this.#lost(error);
      else if (!this.#jobs.cutOff) {
        this.#service.log.error(`${event.eventType} failed`, error);
        await this.#told(this.#failure(event));
      }
    }
  }

  /**
   * Refuse an event that came over Pub/Sub while too many wait.
   *
   * @param {Incoming} event
   */
  refuse(event) {
    const message = `service ${this.#service.name} is overloaded`;
    return this.#told(refusal(this.#service, event, "SERVICE_UNAVAILABLE", message, RETRY_AFTER));
  }

  /**
   * An entry of a stream: tried until it succeeds, or dead-lettered with the reason.
   *
   * @param {Owned} entry
   */
  async delivered(entry) {
    const { attempts } = this.#service;
    try {
      const event = open(entry.body);
      if (entry.delivered <= attempts) await this.#attempt(entry, event);
      else {
        const before = entry.delivered - 1;
        await this.#deadLetter(entry, event, `delivered ${before} times and never finished`, before);
      }
    } catch (error) {
      if (!(error instanceof NoEvent)) throw error;
      await this.#deadLetter(entry, undefined, `not an event: ${error.message}`, 1);
    }
  }

  /**
   * @param {Owned} entry
   * @param {Incoming} event
   */
  async #attempt(entry, event) {
    let attempt = 1;
    while (!this.#jobs.cutOff) {
      let delay = RETRY * 4 ** (attempt - 1);
      try {
        return await this.#settle(entry, await this.#handle(event));
      } catch (error) {
        if (this.#jobs.cutOff) return undefined;
        // While Redis is unavailable no other instance gets the entry: that is no attempt.
        if (error instanceof Away) delay = PAUSE;
        else {
          this.#service.log.error(`${event.eventType} failed, attempt ${attempt}`, error);
          if (attempt === this.#service.attempts) return await this.#deadLetter(entry, event, String(error), attempt);
          attempt += 1;
        }
      }
      await this.#jobs.time(delay).over;
    }
    return undefined;
  }

  /**
   * @param {Owned} entry
   * @param {Incoming | undefined} event
   * @param {string} reason
   * @param {number} attempts
   */
  async #deadLetter(entry, event, reason, attempts) {
    this.#service.log.warn(`Dead-lettered entry ${entry.id} of ${entry.stream}: ${reason}`);
    const most = Math.min(DEAD_LETTERS, Math.max(1, Math.floor(DEAD_LETTER_BYTES / (entry.body.length + 1))));
    const fields = ["event", entry.body, "reason", reason.slice(0, REASON), "id", entry.id, "attempts", attempts];
    /** @type {Command} */
    const keep = { when: "always", words: ["XADD", deadLetters(entry.stream), "MAXLEN", "~", most, "*", ...fields] };
    while (!this.#jobs.cutOff) {
      try {
        return await this.#settle(entry, [keep, ...(event ? this.#failure(event) : [])]);
      } catch (error) {
        if (!(error instanceof Rejected)) throw error;
        // Its room waits: what comes after it would be out of order.
        this.#service.log.error(`Redis refuses to commit entry ${entry.id} of ${entry.stream}`, error);
        await this.#jobs.time(PAUSE).over;
      }
    }
    return undefined;
  }

  /**
   * Commit, as often as it takes: the entry is pending until then. What was committed before is not again.
   *
   * @param {Owned} entry
   * @param {Command[]} commands
   */
  async #settle(entry, commands) {
    while (!this.#jobs.cutOff) {
      try {
        const { stream, id, consumer } = entry;
        const owned = { group: this.#service.name, stream, id, consumer };
        if (!(await this.#commits.commit(commands, owned))) entry.lost();
        return undefined;
      } catch (error) {
        if (!(error instanceof Away || error instanceof NotNow)) throw error;
        this.#warn(`What handlers have done waits, and is committed as soon as possible: ${error.message}`);
        await this.#jobs.time(PAUSE).over;
      }
    }
    return undefined;
  }

  /**
   * Call the event's handler. Settles with the commands to run then, all or none; rejects as the handler does, or when
   * it takes longer than the time limit.
   *
   * @param {Incoming} event
   * @returns {Promise<Command[]>}
   */
  async #handle(event) {
    const service = this.#service;
    const route = service.routeOf(event.eventType);
    if (!route) {
      return refusal(service, event, "NO_HANDLER", `service ${service.name} has no handler for ${event.eventType}`);
    }
    const cancelled = () => refusal(service, event, "CANCELLED", "cancelled by the client");
    if (this.cancels.has(event)) return cancelled();
    const { timeout = service.timeout } = route;
    const limit = this.#jobs.time(timeout);
    const last = performance.now() + Math.max(timeout, LONGEST);
    const context = new Context(service, event, this.#link, () => limit.renew(Math.min(timeout, last - performance.now())));
    const late = limit.over.then(() => {
      throw new TimeoutError(`the handler of ${event.eventType} has not ended within ${timeout / 1000} s`);
    });
    this.cancels.running.add(context);
    try {
      return await Promise.race([this.#called(route, context, event.payload), late]);
    } catch (error) {
      if (context.cancelled && !this.#jobs.cutOff && !(error instanceof TimeoutError)) return cancelled();
      if (error instanceof InvalidPayload) return refusal(service, event, "INVALID_PAYLOAD", error.message);
      if (error instanceof Refused) return refusal(service, event, error.code, error.message, error.retryAfter);
      throw error;
    } finally {
      limit.end();
      this.cancels.running.delete(context);
      context.end();
    }
  }

  /**
   * @param {import("./service.js").Route} route
   * @param {Context} context
   * @param {unknown} payload
   */
  async #called(route, context, payload) {
    const result = await route.handler(context, route.check ? await route.check(payload) : payload);
    if (result !== undefined || (route.answers && context.owesAnswer)) context.reply(result);
    return context.commands;
  }

  /**
   * @param {Incoming} event
   * @param {Command[]} commands
   */
  async #commitOnce(event, commands) {
    if (this.#jobs.cutOff) return;
    try {
      await this.#commits.commit(commands);
    } catch (error) {
      if (!(error instanceof NotNow || error instanceof Refusing)) throw error;
      this.#warn(`What handlers have done cannot be committed, and their events are refused: ${error.message}`);
      const message = `service ${this.#service.name} cannot do it at present`;
      await this.#told(refusal(this.#service, event, "SERVICE_UNAVAILABLE", message, RETRY_AFTER));
    }
  }

  /**
   * Send the sender an error, if Redis is there.
   *
   * @param {Command[]} commands
   */
  async #told(commands) {
    try {
      await this.#commits.commit(commands);
    } catch (error) {
      if (!(error instanceof Away)) throw error;
      this.#lost(error);
    }
  }

  /** @param {Away} error */
  #lost(error) {
    this.#warn(`Events were lost, and their senders got no error, because Redis is unavailable: ${error.message}`);
  }

  /**
   * The error for the sender when the handler failed, without the cause, which is only logged.
   *
   * @param {Incoming} event
   */
  #failure(event) {
    const message = `service ${this.#service.name} failed to process the event`;
    return refusal(this.#service, event, "EVENT_PROCESSING_ERROR", message);
  }
}
