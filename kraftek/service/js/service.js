/** A service: its settings, and a function for each of its events. `run` and `start` make an instance of it. */

import { connectionOptions, redisUrl } from "./address.js";
import { Instance } from "./instance.js";
import { toStandardError } from "./log.js";
import { BROADCAST, defaultChannel, serviceOf } from "./names.js";
import { checkerOf } from "./schema.js";

/**
 * @typedef {import("./index.js").Service} IService
 * @typedef {import("./index.js").ServiceOptions} ServiceOptions
 * @typedef {import("./index.js").Handler<any>} Handler
 *
 * @typedef {object} Route
 * @property {Handler} handler
 * @property {import("./schema.js").Check | undefined} check
 * @property {boolean} answers
 * @property {number | undefined} timeout
 */

const YEAR = 31_536_000_000;
/** That of a registration, unless gateways are configured otherwise. */
const TIMEOUT = 10_000;
const MILLISECONDS = "milliseconds, more than 0 and at most a year";

/** The options with their defaults. Times are in milliseconds. */
const DEFAULTS = {
  transport: /** @type {"pubsub" | "stream"} */ ("pubsub"),
  partitions: 0,
  reply: /** @type {boolean | undefined} */ (undefined),
  register: false,
  concurrency: 64,
  unordered: false,
  timeout: /** @type {number | undefined} */ (undefined),
  attempts: 3,
  claimAfter: 5_000,
  grace: 10_000,
  /** What waits for a client that does not read is bounded by as much. */
  messageBytes: 1_048_576,
  prefix: "",
  broadcast: BROADCAST,
};

/** @type {Record<string, [string, (value: any) => boolean]>} */
const EXPECTED = {
  channel: ["a Redis channel, without white space", (value) => isWord(value)],
  transport: ['"pubsub" or "stream"', (value) => value === "pubsub" || value === "stream"],
  partitions: ["a whole number from 0 to 256", (value) => isCount(value, 0, 256)],
  reply: ["true or false", (value) => typeof value === "boolean"],
  register: ["true or false", (value) => typeof value === "boolean"],
  concurrency: ["a whole number from 1 to 2147483647", (value) => isCount(value, 1, 2 ** 31 - 1)],
  unordered: ["true or false", (value) => typeof value === "boolean"],
  timeout: [MILLISECONDS, (value) => value > 0 && value <= YEAR],
  attempts: ["a whole number from 1 to 2147483647", (value) => isCount(value, 1, 2 ** 31 - 1)],
  claimAfter: [MILLISECONDS, (value) => value > 0 && value <= YEAR],
  grace: ["milliseconds, from 0 to a year", (value) => value >= 0 && value <= YEAR],
  messageBytes: ["a number of bytes from 4096", (value) => isCount(value, 4096, 2 ** 40)],
  prefix: ["a prefix without white space, or nothing", (value) => value === "" || isWord(value)],
  broadcast: ["a Redis channel, without white space", (value) => isWord(value)],
  log: ["an object with info, warn and error", (value) => typeof value?.info === "function"],
};

/** @implements {IService} */
export class Service {
  /** @type {Map<string, Route>} */
  #routes = new Map();
  #asRegistered;
  /** The last request of a client's that got more than null. @type {string | undefined} */
  answered;

  /**
   * @param {string} name
   * @param {ServiceOptions} [options]
   */
  constructor(name, options = {}) {
    if (!isWord(name) || name.includes(":")) throw new TypeError("expected a service's name, without white space and colons");
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    for (const [option, value] of given) {
      const [expected, holds] = EXPECTED[option] ?? ["no such option", () => false];
      if (!holds(value)) throw new TypeError(`${name}: ${option}: expected ${expected}`);
    }
    const settings = { ...DEFAULTS, channel: defaultChannel(name), log: toStandardError, ...Object.fromEntries(given) };
    if (settings.partitions && settings.transport !== "stream") throw new TypeError(`${name}: only a stream has partitions`);
    this.name = name;
    /** With the prefix. */
    this.channel = settings.prefix + settings.channel;
    this.transport = settings.transport;
    this.partitions = settings.partitions;
    this.reply = settings.reply;
    this.register = settings.register;
    this.concurrency = settings.concurrency;
    this.unordered = settings.unordered;
    this.timeout = settings.timeout ?? TIMEOUT;
    this.#asRegistered = settings.timeout === undefined;
    this.attempts = settings.attempts;
    this.claimAfter = settings.claimAfter;
    this.grace = settings.grace;
    this.messageBytes = settings.messageBytes;
    this.prefix = settings.prefix;
    /** With the prefix. */
    this.broadcast = settings.prefix + settings.broadcast;
    this.log = settings.log;
  }

  /** The keys of its streams. */
  get streams() {
    if (!this.partitions) return [this.channel];
    return Array.from({ length: this.partitions }, (_, number) => `${this.channel}:${number}`);
  }

  /**
   * @param {string} event
   * @param {any[]} rest a schema, if there is one; the handler; options
   */
  on(event, ...rest) {
    const [schema, handler, options] = typeof rest[1] === "function" ? rest : [undefined, ...rest];
    const name = event.split(":").length === 3 ? event : `${this.name}:${event}`;
    if (serviceOf(name) === undefined || this.#routes.has(name)) {
      throw new TypeError(`${event}: expected module:name or service:module:name, each once`);
    }
    if (typeof handler !== "function") throw new TypeError(`${name}: expected a function of the context and the payload`);
    const check = schema === undefined ? undefined : checkerOf(schema, name);
    const { answers = true, timeout } = options ?? {};
    if (timeout !== undefined && !(timeout > 0 && timeout <= YEAR)) throw new TypeError(`${name}: timeout: expected ${MILLISECONDS}`);
    this.#routes.set(name, { handler, check, answers, timeout });
    return this;
  }

  /**
   * So many milliseconds gateways wait for its answers.
   *
   * @param {number} timeout
   */
  registered(timeout) {
    if (this.#asRegistered) this.timeout = timeout;
  }

  /** @param {string} event */
  routeOf(event) {
    return this.#routes.get(event);
  }

  /** @param {string} [url] */
  start(url = redisUrl()) {
    connectionOptions(url); // throws at once
    const instance = new Instance(this, url);
    instance.start();
    return { name: instance.name, begun: instance.begun, stop: () => instance.stop() };
  }

  /** @param {string} [url] */
  async run(url) {
    const instance = this.start(url);
    await new Promise((resolve) => {
      for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, resolve);
    });
    // What is given up may keep the program running for ever.
    if (!(await instance.stop())) process.exit();
  }
}

/** @param {unknown} value */
function isWord(value) {
  return typeof value === "string" && /^[^\p{White_Space}\p{Cc}\p{Cs}]+$/u.test(value);
}

/**
 * @param {unknown} value
 * @param {number} least
 * @param {number} most
 */
function isCount(value, least, most) {
  return Number.isInteger(value) && Number(value) >= least && Number(value) <= most;
}
