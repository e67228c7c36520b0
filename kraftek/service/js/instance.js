/** One running instance of a service: starts, sends requests to other services for its handlers, and stops. */

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";

import { Commits } from "./commits.js";
import { Comparison } from "./comparison.js";
import { Connection } from "./connection.js";
import { publish, toGateway } from "./context.js";
import { openAnswer } from "./envelopes.js";
import { Full, NoEvent, Refused, TooLarge } from "./errors.js";
import { Handling, RETRY_AFTER } from "./handling.js";
import { Jobs, LONGEST } from "./jobs.js";
import { onceAMinute } from "./log.js";
import { GATEWAY_LEASES, RECEIPT, replyChannel, roomKey } from "./names.js";
import { Pulse } from "./pulse.js";
import { Subscription } from "./pubsub.js";
import { Collector, GRACE, USERS } from "./receipts.js";
import { script } from "./scripts.js";
import { SelfRegistration } from "./self_registration.js";
import { Leased, ORDERED, Shared } from "./streams.js";

/** @typedef {ReturnType<typeof openAnswer>} Answer */

const ADDRESSED = script("addressed");

export class Instance {
  /** Its name among the consumers of the group. */
  name = `${hostname()}.${process.pid}.${randomBytes(4).toString("hex")}`;
  /** Settles when it receives events. @type {Promise<void>} */
  begun;
  #hasBegun = () => {};
  #begins = false;
  #service;
  #connection;
  #commits;
  #warn;
  #jobs;
  #source;
  #cancels;
  #comparison;
  #registration;
  #pulse;
  #count = 0;
  /** @type {Map<number, (answer: Answer) => void>} */
  #answers = new Map();
  #replyTo;

  /**
   * @param {import("./service.js").Service} service
   * @param {string} url
   */
  constructor(service, url) {
    this.#service = service;
    const leased = service.transport === "stream" && (service.partitions > 0 || !service.unordered);
    if (leased) this.name += ORDERED;
    this.#warn = onceAMinute((text) => service.log.warn(text));
    this.#connection = new Connection(url, service.log);
    this.#commits = new Commits(this.#connection);
    this.#jobs = new Jobs(this.#connection, service.log, this.#warn);
    this.#replyTo = service.prefix + replyChannel(this.name);
    const link = {
      call: this.#connection.call.bind(this.#connection),
      run: this.#connection.run.bind(this.#connection),
      request: this.#request.bind(this),
      receipt: this.#receipt.bind(this),
    };
    const handling = new Handling(service, this.#connection, this.#jobs, link, this.#warn);
    this.#cancels = handling.cancels;
    const parts = /** @type {const} */ ([service, this.#connection, this.#jobs, handling]);
    this.#pulse = new Pulse({ url, interval: service.claimAfter / 3, limit: service.timeout }, this.#warn);
    if (service.transport === "pubsub") this.#source = new Subscription(...parts);
    else this.#source = new (leased ? Leased : Shared)(this.name, ...parts, this.#pulse);
    this.#comparison = new Comparison(service, link.call, (timeout) => {
      service.registered(timeout);
      this.#pulse.warnAfter(service.timeout);
    });
    this.#registration = service.register ? new SelfRegistration(service, link.call) : undefined;
    this.begun = new Promise((resolve) => (this.#hasBegun = resolve));
  }

  /** Start, also while Redis is unavailable. */
  start() {
    this.#begin().catch((error) => this.#service.log.error(`Service ${this.#service.name} does not start`, error));
  }

  /** Accept no more events, finish those in hand within `grace`, and disconnect. Whether all were finished. */
  async stop() {
    this.#jobs.stopping = true;
    this.#comparison.stop();
    this.#registration?.stop();
    this.#source.stop();
    // Until it has begun it has received no events.
    const finished = await this.#jobs.end(this.#begins ? this.#service.grace : 0);
    this.#connection.close();
    await this.#pulse.stop();
    return finished || !this.#begins;
  }

  async #begin() {
    await this.#pulse.begun;
    await this.#connection.subscribe(this.#replyTo, (body) => this.#answered(body));
    await this.#cancels.begin();
    if (!this.#jobs.stopping) this.#comparison.start();
    await this.#source.begin();
    if (!this.#jobs.stopping) this.#registration?.start();
    this.#begins = true;
    this.#service.log.info(`Service ${this.#service.name} receives events from ${this.#service.channel}`);
    this.#hasBegun();
  }

  /**
   * @param {Record<string, unknown>} event
   * @param {number} timeout
   */
  async #request(event, timeout) {
    const number = (this.#count += 1);
    const [answer, stop] = this.#answerTo(number, timeout);
    try {
      await this.#commits.commit([toGateway(this.#service, { ...event, id: number, replyTo: this.#replyTo })]);
      return payloadOf(await answer, `${event.eventType}: no answer within ${timeout / 1000} s`);
    } catch (error) {
      if (!(error instanceof Full)) throw error;
      throw new Refused("SERVICE_UNAVAILABLE", `${event.eventType}: ${error.message}`, { retryAfter: RETRY_AFTER });
    } finally {
      stop();
    }
  }

  /**
   * Send a message to clients, and wait for what gateways say of it.
   *
   * @param {import("./envelopes.js").Message} message
   * @param {number} timeout
   */
  async #receipt(message, timeout) {
    const { broadcast, prefix } = this.#service;
    const number = (this.#count += 1);
    // Where users are named, the message ends in them: tell_users.lua.
    const { type, payload, ...whom } = message;
    const rest = { receipt: { replyTo: this.#replyTo, id: number }, ...whom };
    const asked = { type, payload, ...rest };
    const opening = { type: RECEIPT, payload: { seconds: timeout / 1000 }, ...rest };
    const said = [opening, asked].map((each) => publish(this.#service, broadcast, each));
    const keys = [prefix + GATEWAY_LEASES, ...(message.roomId ? [prefix + roomKey(message.roomId)] : [])];
    const found = /** @type {Buffer[][]} */ (await this.#connection.run(ADDRESSED, keys, [USERS]));
    const [gateways = [], here] = found.map((part) => part.map(String));
    if (!here) throw new TooLarge(`${type}: more than ${USERS} users are in the room, too many for a receipt`);
    const sockets = here.flatMap((user, at) => (at % 2 ? [] : [/** @type {[string, string]} */ ([user, here[at + 1] ?? ""])]));
    const collector = new Collector(gateways, message.userIds, sockets, message.excludeSocketIds);
    const [ended, stop, end] = this.#ending(timeout + GRACE);
    this.#answers.set(number, (answer) => {
      if (answer.type === RECEIPT) collector.heard(answer.payload);
      if (collector.done) end();
    });
    try {
      await this.#commits.commit(said);
      await ended;
    } finally {
      stop();
      this.#answers.delete(number);
    }
    return collector.receipt();
  }

  /**
   * @param {number} timeout
   * @returns {[Promise<void>, () => void, () => void]}
   */
  #ending(timeout) {
    let end = () => {};
    /** @type {Promise<void>} */
    const ended = new Promise((resolve) => (end = resolve));
    const timer = setTimeout(end, timeout);
    return [ended, () => clearTimeout(timer), end];
  }

  /**
   * @param {number} number
   * @param {number} timeout
   * @returns {[Promise<Answer | undefined>, () => void]}
   */
  #answerTo(number, timeout) {
    /** @type {(answer?: Answer) => void} */
    let settle = () => {};
    const answer = new Promise((resolve) => (settle = resolve));
    const timer = setTimeout(() => settle(), Math.min(timeout, LONGEST));
    this.#answers.set(number, settle);
    const stop = () => {
      clearTimeout(timer);
      this.#answers.delete(number);
    };
    return [answer, stop];
  }

  /** @param {Buffer} body */
  #answered(body) {
    try {
      const answer = openAnswer(body);
      this.#answers.get(Number(answer.inReplyTo))?.(answer);
    } catch (error) {
      if (!(error instanceof NoEvent)) throw error;
      this.#warn(`Ignored a message that is not an answer: ${error.message}`);
    }
  }
}

/**
 * @param {Answer | undefined} answer
 * @param {string} late
 */
function payloadOf(answer, late) {
  if (!answer) throw new Refused("TIMEOUT", late);
  if (answer.type !== "error") return answer.payload;
  const { code, message, retryAfter } = /** @type {any} */ (answer.payload ?? {});
  throw new Refused(
    typeof code === "string" && code ? code : "INTERNAL",
    typeof message === "string" ? message : "",
    { retryAfter: typeof retryAfter === "number" ? retryAfter : undefined },
  );
}
