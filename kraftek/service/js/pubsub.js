/** Events over Pub/Sub: every instance gets each of them while it listens, once. Made by instance.js. */

import { Lanes } from "./lanes.js";

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
  #fromClients = new Hands();
  /** Requests of services have hands of their own: what holds the others up may be waiting for just this answer. */
  #fromServices = new Hands();
  /** @type {Set<string>} */
  #told = new Set();
  #toldSince = 0;

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
    if (!event) return;
    const hands = isRequestOfService(event) ? this.#fromServices : this.#fromClients;
    const lane = this.#service.unordered || isRequestOfService(event) ? "" : (event.roomId ?? event.socketId);
    if (hands.waiting.put(event, event.userId || (event.source ?? ""), lane, body.length)) this.#work(hands);
    else if (event.id !== undefined || this.#isToBeTold(event.socketId)) {
      this.#jobs.spawn(() => this.#handling.refuse(event));
    }
  }

  /** @param {Hands} hands */
  #work(hands) {
    while (hands.busy < this.#service.concurrency) {
      const taken = hands.waiting.take();
      if (!taken) return;
      const [event, handled] = taken;
      hands.busy += 1;
      this.#jobs.spawn(async () => {
        try {
          await this.#handling.published(event);
        } finally {
          hands.busy -= 1;
          handled();
          this.#work(hands);
        }
      });
    }
  }

  /** @param {string} socketId */
  #isToBeTold(socketId) {
    const now = performance.now();
    if (now - this.#toldSince >= TOLD) {
      this.#toldSince = now;
      this.#told.clear();
    }
    if (this.#told.has(socketId)) return false;
    this.#told.add(socketId);
    return true;
  }
}

class Hands {
  /** @type {Lanes<Incoming>} */
  waiting = new Lanes();
  busy = 0;
}

/** @param {Incoming} event */
function isRequestOfService(event) {
  return event.source !== undefined && event.id !== undefined;
}
