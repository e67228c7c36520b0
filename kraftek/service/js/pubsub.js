/** Events over Pub/Sub: every instance gets each of them while it listens, once. Made by instance.js. */

import { Hands } from "./lanes.js";

/** @typedef {import("./envelopes.js").Incoming} Incoming */

/**
 * Milliseconds for which a socket whose event was refused hears of no further one without an id: an error for each would
 * take as long as to handle them.
 */
const TOLD = 1_000;

export class Subscription {
  #service;
  #connection;
  #jobs;
  #handling;
  /** @type {Hands<Incoming>} */
  #hands;
  /** Sockets, and when each was told. @type {Map<string, number>} */
  #told = new Map();

  /**
   * @param {import("./service.js").Service} service
   * @param {import("./connection.js").Connection} connection
   * @param {import("./jobs.js").Jobs} jobs
   * @param {import("./handling.js").Handling} handling
   */
  constructor(service, connection, jobs, handling) {
    this.#service = service;
    this.#connection = connection;
    this.#jobs = jobs;
    this.#handling = handling;
    this.#hands = new Hands(service.concurrency, service.unordered, (event, ended) => {
      jobs.spawn(() => handling.published(event).finally(ended));
    });
  }

  begin() {
    return this.#connection.subscribe(this.#service.channel, (body) => this.#received(body));
  }

  /** Accept no more events; what Redis sends until then is handled. */
  stop() {
    this.#jobs.spawn(() => this.#connection.unsubscribe(this.#service.channel));
  }

  /** @param {Buffer} body */
  #received(body) {
    const event = this.#handling.opened(body);
    if (!event || this.#hands.put(event, event, body.length)) return;
    if (event.id !== undefined || this.#isToBeTold(event.socketId)) this.#jobs.spawn(() => this.#handling.refuse(event));
  }

  /** @param {string} socketId */
  #isToBeTold(socketId) {
    const now = performance.now();
    for (const [socket, at] of this.#told) {
      if (now - at < TOLD) break;
      this.#told.delete(socket);
    }
    if (this.#told.has(socketId)) return false;
    this.#told.set(socketId, now);
    return true;
  }
}
