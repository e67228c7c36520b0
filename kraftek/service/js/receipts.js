/** Who has got a message: collects what all gateways say of it. Used by instance.js, which reads and waits. */

import { gatewayOf } from "./names.js";

/**
 * @typedef {import("./index.js").Receipt} Receipt
 * @typedef {import("./envelopes.js").Message} Message
 */

/** Milliseconds that gateways have to say how it ended. */
export const GRACE = 1_000;
/** Users whose acknowledgements may be waited for with one message, and the milliseconds of that. */
export const [USERS, LONGEST_RECEIPT] = [1_000, 30_000];

/** In place of the gateways, where none has a lease: after a loss of Redis's data they have it back one by one. */
const NOBODY_KNOWN = "";

export class Collector {
  /** @type {Set<string> | undefined} */
  #users;
  /** @type {Map<string, string>} */
  #here = new Map();
  #silent;
  #refused = new Set();
  /** @type {Map<string, string[]>} */
  #owing = new Map();
  /** @type {Set<string>} */
  #reached = new Set();
  #acknowledged = new Set();

  /**
   * @param {string[]} gateways those that there are
   * @param {Iterable<string> | undefined} users to whom it is, if it is not to a room
   * @param {[string, string][]} here who was in the room before it was sent, each with a socket
   * @param {Iterable<string>} [butFor] sockets that do not get it
   */
  constructor(gateways, users, here, butFor = []) {
    const excluded = new Set(butFor);
    this.#users = users && new Set(users);
    for (const [user, socketId] of here) if (!excluded.has(socketId)) this.#here.set(user, gatewayOf(socketId));
    this.#silent = new Set([...gateways, ...this.#here.values()]);
    if (!this.#silent.size) this.#silent.add(NOBODY_KNOWN);
  }

  /**
   * A gateway has said something.
   *
   * @param {unknown} payload
   */
  heard(payload) {
    const { gatewayId, acknowledged, waiting, done, refused } = /** @type {Record<string, unknown>} */ (payload ?? {});
    if (typeof gatewayId !== "string") return;
    this.#silent.delete(gatewayId);
    this.#silent.delete(NOBODY_KNOWN);
    const [have, owe] = [strings(acknowledged), strings(waiting)];
    for (const user of [...have, ...owe]) this.#reached.add(user);
    for (const user of have) this.#acknowledged.add(user);
    if (refused) this.#refused.add(gatewayId);
    else if (done) this.#owing.delete(gatewayId);
    else this.#owing.set(gatewayId, owe);
  }

  /** Whether nothing that is still to come would change the receipt. */
  get done() {
    return this.#allHave || !(this.#silent.size || this.#owed().size);
  }

  /**
   * What is known by now.
   *
   * @returns {Receipt}
   */
  receipt() {
    const owing = this.#owed();
    const unknown = new Set([...this.#silent, ...this.#refused]);
    /** @type {Receipt} */
    const receipt = { acknowledged: [], slow: [], offline: [], owed: [], complete: false };
    for (const user of this.#addressed(unknown)) {
      if (this.#acknowledged.has(user)) receipt.acknowledged.push(user);
      else if (this.#reached.has(user) && !owing.has(user)) receipt.slow.push(user);
      else if (unknown.size || owing.has(user)) receipt.owed.push(user);
      else receipt.offline.push(user);
    }
    receipt.complete = this.#allHave || (this.done && !this.#refused.size);
    return receipt;
  }

  get #allHave() {
    return this.#users !== undefined && [...this.#users].every((user) => this.#acknowledged.has(user));
  }

  #owed() {
    const owed = new Set([...this.#owing.values()].flat());
    for (const user of this.#acknowledged) owed.delete(user);
    return owed;
  }

  /** @param {Set<string>} unknown */
  #addressed(unknown) {
    if (this.#users) return this.#users;
    const there = [...this.#here].filter(([, gateway]) => unknown.has(gateway)).map(([user]) => user);
    return new Set([...this.#reached, ...there]);
  }
}

/** @param {unknown} value */
function strings(value) {
  return Array.isArray(value) ? value.filter((each) => typeof each === "string") : [];
}
