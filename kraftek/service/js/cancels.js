/** Hears which requests their clients have cancelled. Made by handling.js; instance.js begins it. */

import { openCancelled } from "./envelopes.js";
import { NoEvent } from "./errors.js";
import { REQUEST_KNOWN, cancelChannel } from "./names.js";

/**
 * @typedef {object} Named What names a request: an event, or its context.
 * @property {string} eventType
 * @property {string} userId
 * @property {string} socketId
 * @property {import("./index.js").RequestId | undefined} id
 * @property {number} timestamp
 *
 * @typedef {Named & {cancel: () => void}} Running
 */

/** Cancelled requests that are known at a time, each for REQUEST_KNOWN milliseconds. */
const MOST = 10_000;
/** Those of one user: the flood of one pushes out nobody else's. */
const OF_USER = 1_000;
/** Milliseconds that the clocks of two gateways may differ. */
const SKEW = 1_000;

/**
 * All instances hear of all requests of the service, and of most that they are not theirs, or not yet: an event may wait in
 * a stream, or for others of its room.
 */
export class Cancels {
  /** The contexts of handlers that run. @type {Set<Running>} */
  running = new Set();
  /** When each was heard of, and when it was cancelled by its gateway's clock. @type {Map<string, [number, number]>} */
  #known = new Map();
  /** The keys of each user. @type {Map<string, Set<string>>} */
  #ofUsers = new Map();
  #service;
  #connection;
  #warn;

  /**
   * @param {import("./service.js").Service} service
   * @param {import("./connection.js").Connection} connection
   * @param {(text: string) => void} warn logs a line, once a minute
   */
  constructor(service, connection, warn) {
    this.#service = service;
    this.#connection = connection;
    this.#warn = warn;
  }

  /** Listen; settles when Redis has confirmed it. */
  begin() {
    return this.#connection.subscribe(this.#service.prefix + cancelChannel(this.#service.name), (body) => this.#received(body));
  }

  /**
   * Whether this request was cancelled. One that came later under the same id is another one.
   *
   * @param {Named} event
   */
  has(event) {
    if (!this.#known.size || event.id === undefined) return false;
    const [, at] = this.#known.get(keyOf({ ...named(event), socketId: "" })) ?? this.#known.get(keyOf(event)) ?? [];
    return at !== undefined && event.timestamp <= at + SKEW;
  }

  /** @param {Buffer} body */
  #received(body) {
    let cancelled;
    try {
      cancelled = openCancelled(body);
    } catch (error) {
      if (!(error instanceof NoEvent)) throw error;
      this.#warn(`Ignored a message that cancels no request: ${error.message}`);
      return;
    }
    const now = performance.now();
    for (const [key, [heard]] of this.#known) {
      if (this.#known.size < MOST && heard > now - REQUEST_KNOWN) break;
      this.#forget(key);
    }
    const key = keyOf(cancelled);
    this.#forget(key);
    const ofUser = this.#ofUsers.get(cancelled.userId) ?? new Set();
    if (ofUser.size >= OF_USER) this.#forget(/** @type {string} */ (ofUser.values().next().value));
    this.#ofUsers.set(cancelled.userId, ofUser.add(key));
    this.#known.set(key, [now, cancelled.timestamp]);
    // First what is cheap: as many as run are looked at for each word.
    for (const context of [...this.running]) {
      if (context.id === cancelled.id && this.has(context)) context.cancel();
    }
  }

  /** @param {string} key */
  #forget(key) {
    if (!this.#known.delete(key)) return;
    const userId = JSON.parse(key)[1];
    const ofUser = this.#ofUsers.get(userId);
    ofUser?.delete(key);
    if (!ofUser?.size) this.#ofUsers.delete(userId);
  }
}

/**
 * @param {Named} event
 * @returns {Named}
 */
function named({ eventType, userId, socketId, id, timestamp }) {
  return { eventType, userId, socketId, id, timestamp };
}

/** @param {Named} event */
function keyOf({ eventType, userId, socketId, id }) {
  return JSON.stringify([eventType, userId, socketId, typeof id, String(id)]);
}
