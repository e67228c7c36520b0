/**
 * Events that wait until a service has time for them: each room's in order, one at a time, and the users in turn. Used by
 * pubsub.js and streams.js.
 */

/** Events that may wait. */
export const EVENTS = 10_000;
/** Bytes that they may have together. */
export const SIZE = 64 * 1024 * 1024;

/**
 * @template T
 * @typedef {{item: T, user: string, size: number}} Waiting
 */

/**
 * A lane has the events of a room, in order; of them one at a time is handled. A user may have as many waiting, and as large
 * ones, as is still free: one alone half of what there is. So one who sends without end is refused, and the others, in other
 * rooms, wait for one event of that one each time.
 *
 * @template T
 */
export class Lanes {
  /** The events of each lane: what is handled comes first. @type {Map<string, Waiting<T>[]>} */
  #lanes = new Map();
  /** The lanes whose next event is that user's, and may be handled; users in turn. @type {Map<string, string[]>} */
  #ready = new Map();
  /** @type {Map<string, {events: number, size: number}>} */
  #users = new Map();
  #freeEvents = EVENTS;
  #freeBytes = SIZE;
  #unnamed = 0;

  /** Whether an event can be taken. */
  get ready() {
    return this.#ready.size > 0;
  }

  /**
   * Have an event wait. False: it cannot, because too many do.
   *
   * @param {T} item
   * @param {string} user
   * @param {string} lane empty: in no order
   * @param {number} size bytes
   */
  put(item, user, lane, size) {
    const has = this.#users.get(user) ?? { events: 0, size: 0 };
    const waits = this.#freeEvents < EVENTS;
    if (waits && (has.events >= this.#freeEvents || has.size + size > this.#freeBytes)) return false;
    this.#count(user, 1, size);
    const name = lane || `\n${(this.#unnamed += 1)}`;
    const events = this.#lanes.get(name);
    if (events) events.push({ item, user, size });
    else {
      this.#lanes.set(name, [{ item, user, size }]);
      this.#offer(name, user);
    }
    return true;
  }

  /**
   * The next event, and what is to be called when it was handled. Its lane rests until then.
   *
   * @returns {[T, () => void] | undefined}
   */
  take() {
    for (const [user, lanes] of this.#ready) {
      const name = /** @type {string} */ (lanes.shift());
      const [first] = /** @type {Waiting<T>[]} */ (this.#lanes.get(name));
      this.#ready.delete(user);
      if (lanes.length) this.#ready.set(user, lanes);
      if (!first) break;
      this.#count(user, -1, -first.size);
      return [first.item, () => this.#next(name)];
    }
    return undefined;
  }

  /** @param {string} name */
  #next(name) {
    const events = this.#lanes.get(name);
    events?.shift();
    const following = events?.[0];
    if (following) this.#offer(name, following.user);
    else this.#lanes.delete(name);
  }

  /**
   * @param {string} lane
   * @param {string} user
   */
  #offer(lane, user) {
    const lanes = this.#ready.get(user);
    if (lanes) lanes.push(lane);
    else this.#ready.set(user, [lane]);
  }

  /**
   * @param {string} user
   * @param {number} events
   * @param {number} size
   */
  #count(user, events, size) {
    this.#freeEvents -= events;
    this.#freeBytes -= size;
    const has = this.#users.get(user) ?? { events: 0, size: 0 };
    const now = { events: has.events + events, size: has.size + size };
    if (now.events) this.#users.set(user, now);
    else this.#users.delete(user);
  }
}
