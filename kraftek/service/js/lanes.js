/**
 * The events that a service has received and not begun: those of a room in order, the rooms beside each other. Used by
 * pubsub.js and streams.js.
 *
 * What is kept in order is a lane: the events of a room, or of a socket that is in none, as partitions have it. One event
 * of a lane is in hand at a time, and the next begins when it has ended. A reset of the rooms concerns all lanes: it is
 * handled alone, after what came before it and before what comes after.
 */

import { ROOMS_RESET } from "./names.js";

/** Events that may wait. */
export const EVENTS = 10_000;
/** Bytes that they may have together. */
export const SIZE = 64 * 1024 * 1024;
/** Events of a room that are read ahead from a stream, and their bytes; of the ones after them only the ids are kept. */
const LANE_EVENTS = 100;
const LANE_SIZE = 1024 * 1024;
/** The lane of events that are handled alone. */
export const ALONE = "\n";

/**
 * @template T
 * @typedef {{item: T, user: string, size: number}} Waiting
 */

/**
 * @template T
 * @typedef {{lanes: Lanes<T>, busy: number}} Hand
 */

/**
 * Each lane's events in order. Of the lanes that may go on, the one is next whose first event is of the user whose turn it
 * is. A user and a room may have as many waiting, and as large ones, as is still free: one alone half of what there is. So
 * one who sends without end is refused, and the others wait for one event of that one each time; nor does a room whose
 * handler is slow take it all.
 *
 * @template T
 */
export class Lanes {
  /** @type {Map<string, Waiting<T>[]>} */
  #lanes = new Map();
  /**
   * From the first event on that waits to be handled alone, or comes after such a one.
   *
   * @type {{lane: string, waiting: Waiting<T>}[]}
   */
  #behind = [];
  /** The lanes that may go on, by the user of their next event; users in turn. @type {Map<string, string[]>} */
  #turns = new Map();
  /** What waits, by users and lanes. @type {Map<string, {events: number, size: number}>} */
  #counts = new Map();
  #freeEvents = EVENTS;
  #freeBytes = SIZE;

  /** How many wait. */
  get waiting() {
    return EVENTS - this.#freeEvents;
  }

  /**
   * Whether an event of so many bytes may wait.
   *
   * @param {string} lane
   * @param {string} user
   * @param {number} size
   */
  takes(lane, user, size) {
    return !this.waiting || [`u${user}`, `l${lane}`].every((who) => {
      const has = this.#countOf(who);
      return has.events < this.#freeEvents && has.size + size <= this.#freeBytes;
    });
  }

  /**
   * Whether one of so many bytes is among the first of its lane, those that are kept in memory.
   *
   * @param {string} lane
   * @param {number} size
   */
  keeps(lane, size) {
    const has = this.#countOf(`l${lane}`);
    const among = !has.events || (has.events < LANE_EVENTS && has.size + size <= LANE_SIZE);
    return among && this.#freeBytes >= size;
  }

  /**
   * Have the event wait.
   *
   * @param {T} item
   * @param {string} lane
   * @param {string} user
   * @param {number} size bytes
   */
  put(item, lane, user, size) {
    this.#count(lane, user, 1, size);
    const waiting = { item, user, size };
    if (this.#behind.length || this.#bars(lane)) this.#behind.push({ lane, waiting });
    else this.#put(lane, waiting);
  }

  /**
   * The next event, and what is to be called when it has ended: its lane stands still until then.
   *
   * @returns {[T, () => void] | undefined}
   */
  take() {
    const [turn] = this.#turns;
    if (!turn) return undefined;
    const [user, lanes] = turn;
    const lane = /** @type {string} */ (lanes.shift());
    this.#turns.delete(user);
    if (lanes.length) this.#turns.set(user, lanes);
    const first = /** @type {Waiting<T>} */ (this.#lanes.get(lane)?.shift());
    this.#count(lane, user, -1, -first.size);
    return [first.item, () => this.#ended(lane)];
  }

  /** @param {string} lane */
  #ended(lane) {
    const following = this.#lanes.get(lane)?.[0];
    if (following) this.#mayGoOn(lane, following.user);
    else {
      this.#lanes.delete(lane);
      this.#goOn();
    }
  }

  #goOn() {
    let next = 0;
    for (const { lane, waiting } of this.#behind) {
      if (this.#bars(lane)) break;
      this.#put(lane, waiting);
      next += 1;
    }
    if (next) this.#behind.splice(0, next);
  }

  /**
   * Whether the next event of the lane has to wait for others to end.
   *
   * @param {string} lane
   */
  #bars(lane) {
    return this.#lanes.has(ALONE) || (lane === ALONE && this.#lanes.size > 0);
  }

  /**
   * @param {string} lane
   * @param {Waiting<T>} waiting
   */
  #put(lane, waiting) {
    const events = this.#lanes.get(lane);
    if (events) events.push(waiting);
    else {
      this.#lanes.set(lane, [waiting]);
      this.#mayGoOn(lane, waiting.user);
    }
  }

  /**
   * @param {string} lane
   * @param {string} user
   */
  #mayGoOn(lane, user) {
    const lanes = this.#turns.get(user);
    if (lanes) lanes.push(lane);
    else this.#turns.set(user, [lane]);
  }

  /** @param {string} who */
  #countOf(who) {
    return this.#counts.get(who) ?? { events: 0, size: 0 };
  }

  /**
   * @param {string} lane
   * @param {string} user
   * @param {number} events
   * @param {number} size
   */
  #count(lane, user, events, size) {
    this.#freeEvents -= events;
    this.#freeBytes -= size;
    for (const who of [`u${user}`, `l${lane}`]) {
      const has = this.#countOf(who);
      const now = { events: has.events + events, size: has.size + size };
      if (now.events) this.#counts.set(who, now);
      else this.#counts.delete(who);
    }
  }
}

/**
 * The hand for events, and one of its own for requests of other services: what a handler waits for may lead back here, and
 * would wait for that handler's room, or for a free hand. For the same reason requests keep no order.
 *
 * @template T
 */
export class Hands {
  #concurrency;
  #unordered;
  #begin;
  /** @type {Hand<T>} */
  #events = { lanes: new Lanes(), busy: 0 };
  /** @type {Hand<T>} */
  #requests = { lanes: new Lanes(), busy: 0 };
  #unnamed = 0;

  /**
   * @param {number} concurrency how many of each may be in hand at a time
   * @param {boolean} unordered no event waits for another
   * @param {(item: T, ended: () => void) => void} begin called when it is an event's turn
   */
  constructor(concurrency, unordered, begin) {
    this.#concurrency = concurrency;
    this.#unordered = unordered;
    this.#begin = begin;
  }

  /** How many events and requests wait. */
  get waiting() {
    return this.#events.lanes.waiting + this.#requests.lanes.waiting;
  }

  /**
   * Have the event begun when it is its turn. False: too many wait.
   *
   * @param {T} item
   * @param {import("./envelopes.js").Incoming} event
   * @param {number} size bytes
   */
  put(item, event, size) {
    const [hand, lane, user] = this.#placeOf(event);
    if (!hand.lanes.takes(lane, user, size)) return false;
    hand.lanes.put(item, lane, user, size);
    this.#next(hand);
    return true;
  }

  /**
   * The same for an event that can be read again, and is never refused. `make` is told whether it is kept in memory.
   *
   * @param {(kept: boolean) => T} make
   * @param {import("./envelopes.js").Incoming} event
   * @param {number} size bytes
   */
  putAll(make, event, size) {
    const [hand, lane, user] = this.#placeOf(event);
    const kept = hand.lanes.keeps(lane, size);
    hand.lanes.put(make(kept), lane, user, kept ? size : 0);
    this.#next(hand);
  }

  /** @param {Hand<T>} hand */
  #next(hand) {
    while (hand.busy < this.#concurrency) {
      const taken = hand.lanes.take();
      if (!taken) return;
      const [item, ended] = taken;
      hand.busy += 1;
      this.#begin(item, () => {
        hand.busy -= 1;
        ended();
        this.#next(hand);
      });
    }
  }

  /**
   * @param {import("./envelopes.js").Incoming} event
   * @returns {[Hand<T>, string, string]}
   */
  #placeOf(event) {
    const user = event.userId || (event.source ?? "");
    const request = event.source !== undefined && event.id !== undefined;
    const place = event.roomId || event.socketId;
    const alone = !this.#unordered && !place && event.eventType === ROOMS_RESET;
    const unnamed = request || this.#unordered || !place;
    const lane = alone ? ALONE : unnamed ? `\n${(this.#unnamed += 1)}` : place;
    return [request ? this.#requests : this.#events, lane, user];
  }
}
