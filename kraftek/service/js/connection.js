/**
 * Redis, as the kit uses it: one connection for commands, one that listens, and one for each reader of a stream. Each
 * connects again by itself; a command is sent once, and fails with `Away`, `Refusing` or `Rejected` (errors.js).
 */

import { createHash } from "node:crypto";

import { Redis } from "ioredis";

import { connectionOptions } from "./address.js";
import { Away, Refusing, Rejected } from "./errors.js";
import { onceAMinute } from "./log.js";

/** Milliseconds after which Redis is asked whether it is there, and in which it has to answer. */
const QUIET = 2_000;
/** Milliseconds between two attempts to connect, after the first. */
export const RETRY = 1_000;
/** The same while no sentinel names the master: a fail-over is over for clients as soon as one does. */
const ASK_AGAIN = 500;

/** A server that answers so refuses for what it is, and not for what it was asked. */
const PASSING = /(?:^|-)(?:READONLY|MASTERDOWN|LOADING|MISCONF|NOREPLICAS|OOM) /;
/** A server that answers so is no master any more. Redis 6.2 puts the error of a script into a sentence of its own. */
const REPLICA = /(?:^|-)(?:READONLY|MASTERDOWN|LOADING) /;

const OPTIONS = {
  // Answers of the same shapes from every version.
  protocol: /** @type {const} */ (2),
  // Nothing is sent again: a message that is published twice is received twice. What is said while there is no connection
  // waits for the next attempt to connect, and fails with it.
  maxRetriesPerRequest: 0,
  autoResendUnfulfilledCommands: false,
  autoResubscribe: false,
  enableReadyCheck: false,
  connectTimeout: QUIET,
  sentinelCommandTimeout: QUIET,
  /** @param {number} times */
  retryStrategy: (times) => (times === 1 ? 100 : RETRY),
  /** @param {Error} error */
  reconnectOnError: (error) => REPLICA.test(error.message),
};

/** @typedef {string | number | Buffer} Word */
/** @typedef {{listener: (body: Buffer) => void, begun: () => void}} Channel */

export class Connection {
  #options;
  #warn;
  #info;
  #commands;
  /** @type {Map<string, string>} those of the scripts that were sent */
  #digests = new Map();
  /** @type {Link | undefined} */
  #listening;
  /** @type {Map<string, Channel>} */
  #channels = new Map();
  /** @type {Set<Link>} */
  #links = new Set();
  #closed = false;

  /**
   * @param {string} url
   * @param {import("./index.js").Log} log
   */
  constructor(url, log) {
    this.#options = { ...connectionOptions(url), ...OPTIONS };
    this.#warn = onceAMinute((text) => log.warn(text));
    this.#info = log.info;
    this.#commands = this.#open("ROLE");
  }

  /**
   * One command, in order with all others. Its answer has text as Buffers.
   *
   * @param {Word[]} words
   */
  call(...words) {
    return this.#commands.call(words);
  }

  /**
   * A script, in order with all commands. Its text is sent once, and again to a Redis that does not know it: another one,
   * or one that was restarted. Then it comes after what was sent meanwhile.
   *
   * @param {string} source
   * @param {string[]} keys
   * @param {Word[]} args
   */
  async run(source, keys, args) {
    const digest = this.#digests.get(source);
    if (digest) {
      try {
        return await this.call("EVALSHA", digest, keys.length, ...keys, ...args);
      } catch (error) {
        if (!(error instanceof Rejected && error.message.startsWith("NOSCRIPT "))) throw error;
      }
    }
    this.#digests.set(source, createHash("sha1").update(source).digest("hex"));
    return this.call("EVAL", source, keys.length, ...keys, ...args);
  }

  /** A connection for commands that wait. It is there from the first of them on. */
  reader() {
    /** @type {Link | undefined} */
    let link;
    return {
      /** @param {Word[]} words */
      read: (...words) => (link ??= this.#open("PING")).call(words),
      close: () => link && this.#close(link),
    };
  }

  /**
   * Settles when Redis has confirmed it for the first time. From then on it is renewed after every reconnect.
   *
   * @param {string} channel
   * @param {(body: Buffer) => void} listener
   * @returns {Promise<void>}
   */
  subscribe(channel, listener) {
    return new Promise((begun) => {
      this.#channels.set(channel, { listener, begun });
      if (this.#listening?.ready) this.#renew(this.#listening, [channel]);
      this.#listening ??= this.#listen();
    });
  }

  /**
   * Settles when everything that Redis still sent on the channel was received.
   *
   * @param {string} channel
   */
  async unsubscribe(channel) {
    if (this.#listening?.ready) await this.#listening.redis.unsubscribe(channel).catch(() => {});
    this.#channels.delete(channel);
  }

  /** Disconnect, for good. */
  close() {
    this.#closed = true;
    for (const link of this.#links) this.#close(link);
  }

  #listen() {
    const link = this.#open("PING");
    link.redis.on("messageBuffer", (/** @type {Buffer} */ channel, /** @type {Buffer} */ body) => {
      this.#channels.get(channel.toString())?.listener(body);
    });
    link.redis.on("ready", () => this.#renew(link, [...this.#channels.keys()]));
    return link;
  }

  /**
   * @param {Link} link
   * @param {string[]} channels
   */
  #renew(link, channels) {
    link.redis.subscribe(...channels).then(
      () => {
        for (const channel of channels) this.#channels.get(channel)?.begun();
      },
      (error) => {
        this.#warn(`Redis is unavailable: ${error.message}`);
        link.redis.disconnect(true);
      },
    );
  }

  /** @param {"PING" | "ROLE"} probe */
  #open(probe) {
    const link = new Link(this.#options, probe, this.#warn);
    if (probe === "ROLE") link.redis.on("ready", () => this.#info("Redis is connected"));
    if (this.#closed) link.close();
    else this.#links.add(link);
    return link;
  }

  /** @param {Link} link */
  #close(link) {
    this.#links.delete(link);
    link.close();
  }
}

/**
 * One connection. It is given up when Redis does not answer on it, or is no master any more, and made again whatever
 * ioredis thinks of that. Once closed it ends within the time that connecting or asking a sentinel may take.
 */
class Link {
  #probe;
  /** Something was asked, and is to be answered before the timer. */
  #asked = false;
  #closed = false;
  #timer;
  /** @type {NodeJS.Timeout | undefined} */
  #again;

  /**
   * @param {Omit<import("ioredis").RedisOptions, "replyMapping">} options
   * @param {"PING" | "ROLE"} probe what Redis is asked when it was quiet
   * @param {(text: string) => void} warn
   */
  constructor(options, probe, warn) {
    this.redis = new Redis(options);
    this.redis.on("error", (error) => {
      // That is what ioredis says when it has come to the end of their list, whatever they have answered.
      if (error.message.includes("Retrying from scratch")) return;
      const text = error.message.replace(" and retry is disabled", "");
      warn(`Redis is unavailable, retrying every ${RETRY / 1000} s: ${text}`);
    });
    this.redis.on("connect", () => this.#connected());
    this.redis.on("ready", () => this.#ask());
    this.redis.on("close", () => (this.#asked = false));
    this.redis.on("end", () => this.#ended());
    this.#probe = probe;
    this.#timer = setInterval(() => this.#look(), QUIET);
  }

  get ready() {
    return this.redis.status === "ready";
  }

  /**
   * @param {Word[]} words
   * @returns {Promise<unknown>}
   */
  async call(words) {
    const [command, ...args] = words;
    try {
      return await this.redis.callBuffer(String(command), ...args);
    } catch (error) {
      throw translated(/** @type {Error} */ (error));
    }
  }

  close() {
    this.#closed = true;
    clearInterval(this.#timer);
    clearTimeout(this.#again);
    this.redis.disconnect();
  }

  #connected() {
    // When it is closed while it connects, ioredis listens to the sentinels nevertheless, until it is closed again.
    if (this.#closed) return this.redis.disconnect();
    // What ioredis asks first is to be answered, too.
    return this.#expect();
  }

  /** ioredis gives up when a sentinel tells of a new master while it asks for the master, and when none names one. */
  #ended() {
    if (!this.#closed) this.#again = setTimeout(() => this.redis.connect().catch(() => {}), ASK_AGAIN);
  }

  #expect() {
    this.#asked = true;
    this.#timer.refresh();
  }

  #look() {
    if (!this.#asked) this.#ask();
    // When the process was stopped for a while, the answer has arrived and was not read yet: that is done before these.
    else setImmediate(() => setImmediate(() => this.#asked && this.redis.disconnect(true)));
  }

  #ask() {
    if (!this.ready) return;
    this.#expect();
    this.redis.call(this.#probe).then(
      (answer) => {
        this.#asked = false;
        // A service that only subscribes and publishes is refused nothing by a replica, and heard by nobody there. (To a
        // PING the answer is a list as well, on a connection that listens.)
        const [role] = this.#probe === "ROLE" && Array.isArray(answer) ? answer : ["master"];
        if (role !== "master") this.redis.disconnect(true);
      },
      () => (this.#asked = false),
    );
  }
}

/** @param {Error} error */
function translated(error) {
  const text = error.message || error.name;
  if (error.name !== "ReplyError") return new Away(text);
  return PASSING.test(text) ? new Refusing(text) : new Rejected(text);
}
