/**
 * Events from streams: the instances of a service are the consumers of one group. Made by instance.js.
 *
 * `Leased` are those streams whose leases this instance holds: partitions, or the one stream that there is. It reads ahead,
 * and has one event of each room in hand. Whoever gets the lease begins with what its last holder left unfinished, also if it
 * had the lease before. An instance that was stopped for a while may go on without the lease: it begins nothing then
 * (begin.lua), reads nothing (take.lua), and what it had in hand is not committed once another instance has taken it over
 * (pending.lua). While a handler blocks the loop, pulse.js keeps the leases, and what is in hand.
 *
 * `Shared`, with `unordered` and no partitions, is one that all instances read, each as many entries as it can handle at a
 * time. While it handles an entry it resets its idle time; idle entries belong to dead instances, and are claimed.
 */

import { open } from "./envelopes.js";
import { Away, NoEvent, Rejected } from "./errors.js";
import { Consumer, activeConsumers, entryOf } from "./groups.js";
import { EVENTS, Hands } from "./lanes.js";
import { instancesKey, leaseKey } from "./names.js";
import { script } from "./scripts.js";

/**
 * @typedef {ReturnType<import("./connection.js").Connection["reader"]>} Reader
 * @typedef {import("./handling.js").Entry} Entry
 *
 * @typedef {object} Reading That this instance reads a stream, from when it has the lease.
 * @property {string} stream
 * @property {string} place the key of the lease
 * @property {string} lease
 * @property {boolean} lost it does not any more, or begins anew; what it has read and not begun is left to who reads next
 * @property {Waiting[]} chosen whose turn it is, until Redis has noted that they begin
 * @property {boolean} notes somebody does that
 * @property {number} inHand
 *
 * @typedef {object} Waiting An entry that was read.
 * @property {Reading} reading
 * @property {string} id
 * @property {Buffer | undefined} body if it was kept
 * @property {number} delivered
 * @property {() => void} ended known from when it is its turn
 */

/** How the names of instances end that read streams only under a lease. */
export const ORDERED = ".ordered";
/** Milliseconds that Redis lets a reader wait: a stop or the loss of a lease is noticed after so long at most. */
const BLOCK = 500;
/** Entries that are read at a time, and their bytes, about. */
const BATCH = 100;
const BATCH_BYTES = 4 * 1024 * 1024;

const SHARE = script("share");
const TAKE = script("take");
const BEGIN = script("begin");
const KEEP = script("keep");
const RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

export class Shared {
  #service;
  #jobs;
  #handling;
  #consumer;
  #pulse;
  /** What is in hand. @type {Map<string, Entry>} */
  #entries = new Map();
  /** The pulse is told soon that something has ended. */
  #tells = false;

  /**
   * @param {string} name this consumer
   * @param {import("./service.js").Service} service
   * @param {import("./connection.js").Connection} connection
   * @param {import("./jobs.js").Jobs} jobs
   * @param {import("./handling.js").Handling} handling
   * @param {import("./pulse.js").Pulse} pulse
   */
  constructor(name, service, connection, jobs, handling, pulse) {
    this.#service = service;
    this.#jobs = jobs;
    this.#handling = handling;
    this.#pulse = pulse;
    this.#consumer = new Consumer(connection, service.channel, service.name, name);
  }

  async begin() {
    this.#jobs.spawn(() => this.#jobs.persistently((reader) => this.#read(reader)));
  }

  /** Nothing to do: the reading loop sees that the jobs are stopping. */
  stop() {}

  /** @param {Reader} reader */
  async #read(reader) {
    await this.#consumer.join();
    let lookAgain = 0;
    while (!this.#jobs.stopping || (this.#entries.size && !this.#jobs.cutOff)) {
      const now = performance.now();
      if (now >= lookAgain) {
        lookAgain = now + this.#service.claimAfter / 3;
        await this.#refresh();
        continue; // a stop may have begun, and all have ended, meanwhile
      }
      const free = this.#free;
      if (!free) await this.#jobs.changeWithin(lookAgain - now);
      else this.#take(await this.#consumer.read(reader, free, Math.min(BLOCK, lookAgain - now)));
    }
  }

  async #refresh() {
    const { attempts, claimAfter } = this.#service;
    if (this.#entries.size) await this.#consumer.keep([...this.#entries.keys()]);
    const free = this.#free;
    if (!free) return;
    const last = attempts > 1 && [...this.#entries.values()].some(({ delivered }) => delivered === attempts);
    this.#take(await this.#consumer.claim(claimAfter, free, attempts, last));
  }

  get #free() {
    return this.#jobs.stopping ? 0 : this.#service.concurrency - this.#entries.size;
  }

  /** @param {Entry[]} entries */
  #take(entries) {
    const begun = entries.filter(({ id }) => !this.#entries.has(id));
    if (!begun.length) return;
    for (const entry of begun) this.#entries.set(entry.id, entry);
    this.#tell();
    for (const entry of begun) {
      this.#jobs.spawn(async () => {
        try {
          // When another instance has it, nothing is to be done about the others.
          await this.#handling.delivered({ ...entry, consumer: this.#consumer.name, lost() {} });
        } finally {
          this.#entries.delete(entry.id);
          if (!this.#tells) setImmediate(() => this.#tell());
          this.#tells = true;
        }
      });
    }
  }

  #tell() {
    this.#tells = false;
    this.#pulse.beat(this.#entries.size ? this.#consumer.keeping([...this.#entries.keys()]) : []);
  }
}

export class Leased {
  #name;
  #service;
  #connection;
  #jobs;
  #handling;
  #pulse;
  #leases;
  /** The numbers of streams that are read, and whether to continue with them. @type {Map<number, boolean>} */
  #followed = new Map();
  /** @type {Set<Reading>} */
  #readings = new Set();
  /** @type {Hands<Waiting>} */
  #hands;
  /** One that is on its last attempt, and those that wait for it. @type {Waiting[]} */
  #last = [];

  /**
   * @param {string} name this instance, also as consumer
   * @param {import("./service.js").Service} service
   * @param {import("./connection.js").Connection} connection
   * @param {import("./jobs.js").Jobs} jobs
   * @param {import("./handling.js").Handling} handling
   * @param {import("./pulse.js").Pulse} pulse
   */
  constructor(name, service, connection, jobs, handling, pulse) {
    this.#name = name;
    this.#service = service;
    this.#connection = connection;
    this.#jobs = jobs;
    this.#handling = handling;
    this.#pulse = pulse;
    this.#leases = service.streams.map((stream) => leaseKey(stream, service.name));
    this.#hands = new Hands(service.concurrency, service.unordered, (waiting, ended) => this.#choose(waiting, ended));
  }

  async begin() {
    const { claimAfter } = this.#service;
    this.#pulse.beat(["EVAL", KEEP, this.#keys.length, ...this.#keys, this.#name, Math.floor(claimAfter)]);
    this.#jobs.spawn(() => this.#jobs.persistently(() => this.#share()));
  }

  get #keys() {
    return [instancesKey(this.#service.channel, this.#service.name), ...this.#leases];
  }

  stop() {
    for (const reading of this.#readings) reading.lost = true;
  }

  get #leaves() {
    return this.#jobs.stopping && (this.#followed.size === 0 || this.#jobs.cutOff);
  }

  /** Hold a fair share of the leases. */
  async #share() {
    const { claimAfter } = this.#service;
    const keys = this.#keys;
    for (;;) {
      const leaving = this.#leaves;
      const args = [this.#name, Math.floor(claimAfter), Number(this.#jobs.stopping)];
      const answer = await this.#connection.run(SHARE, keys, args);
      const [share, held, instances] = /** @type {[number, [number, Buffer][], Buffer[]]} */ (answer);
      if (leaving) return;
      const leases = new Map(held.sort(([one], [other]) => one - other));
      for (const [number, lease] of leases) this.#follow(number, lease.toString());
      const continued = [...this.#followed.keys()].filter((number) => leases.has(number));
      for (const number of continued.slice(share)) this.#followed.set(number, false);
      await this.#lookForOthers(instances.map(String), continued);
      if (!this.#leaves) await this.#jobs.changeWithin(claimAfter / 3);
    }
  }

  /**
   * Say who else reads, and keeps no order: by name, or because it does so without a lease.
   *
   * @param {string[]} instances
   * @param {number[]} numbers of the streams that this instance reads
   */
  async #lookForOthers(instances, numbers) {
    const names = new Set(instances);
    for (const number of numbers) {
      const stream = /** @type {string} */ (this.#service.streams[number]);
      for (const name of await activeConsumers(this.#connection, stream, this.#service.name)) names.add(name);
    }
    for (const name of [...names].filter((each) => !each.endsWith(ORDERED))) {
      const what = `${name} reads ${this.#service.channel}, too, and keeps no order: an instance of an older version`;
      this.#jobs.warn(`${what}, or one that is unordered. The order of rooms is kept from when it has stopped`);
    }
  }

  /**
   * @param {number} number
   * @param {string} lease
   */
  #follow(number, lease) {
    if (this.#followed.has(number) || this.#jobs.stopping) return;
    this.#followed.set(number, true);
    this.#jobs.spawn(async () => {
      try {
        await this.#jobs.persistently((reader) => this.#hold(number, lease, reader));
      } finally {
        this.#followed.delete(number);
      }
    });
  }

  /**
   * Read one stream for as long as its lease is held, and give that back when nothing of it is in hand.
   *
   * @param {number} number
   * @param {string} lease
   * @param {Reader} reader
   */
  async #hold(number, lease, reader) {
    const stream = /** @type {string} */ (this.#service.streams[number]);
    const place = /** @type {string} */ (this.#leases[number]);
    /** @type {Reading} */
    const reading = { stream, place, lease, lost: false, chosen: [], notes: false, inHand: 0 };
    await new Consumer(this.#connection, stream, this.#service.name, this.#name).join();
    this.#readings.add(reading);
    try {
      await this.#read(number, reading, reader);
    } finally {
      reading.lost = true;
      this.#readings.delete(reading);
    }
    while (reading.inHand && !this.#jobs.cutOff) await this.#jobs.changeWithin(BLOCK);
    await this.#connection.run(RELEASE, [place], [lease]);
  }

  /**
   * @param {number} number
   * @param {Reading} reading
   * @param {Reader} reader
   */
  async #read(number, reading, reader) {
    let [from, most] = ["-", BATCH];
    while (this.#followed.get(number) && !reading.lost && !this.#jobs.stopping) {
      if (this.#hands.waiting > EVENTS - BATCH) {
        await this.#jobs.changeWithin(BLOCK);
        continue;
      }
      const args = [reading.lease, this.#service.name, this.#name, from, most];
      const found = await this.#connection.run(TAKE, [reading.place, reading.stream], args);
      const [next, entries, last] = /** @type {[Buffer?, [Buffer, Buffer[], number][]?, Buffer?]} */ (found);
      if (!next || !entries) return; // another instance holds the lease now, or has held it meanwhile
      from = next.toString();
      if (last) await reader.read("XREAD", "COUNT", 1, "BLOCK", BLOCK, "STREAMS", reading.stream, last);
      let size = 0;
      for (const [id, fields, delivered] of entries) {
        size += this.#take(reading, entryOf(reading.stream, id, fields, delivered));
      }
      if (entries.length) most = Math.max(1, Math.min(BATCH, Math.floor((BATCH_BYTES * entries.length) / Math.max(1, size))));
    }
  }

  /**
   * @param {Reading} reading
   * @param {Entry} entry
   */
  #take(reading, { id, body, delivered }) {
    const make = (/** @type {boolean} */ kept) => ({ reading, id, body: kept ? body : undefined, delivered, ended() {} });
    this.#hands.putAll(make, eventIn(body), body.length);
    return body.length;
  }

  /**
   * It is the entry's turn.
   *
   * @param {Waiting} waiting
   * @param {() => void} ended
   */
  #choose(waiting, ended) {
    if (waiting.reading.lost || this.#jobs.cutOff) return void queueMicrotask(ended);
    waiting.ended = ended;
    waiting.reading.inHand += 1;
    if (waiting.delivered === this.#service.attempts && waiting.delivered > 1) {
      // Of the entries in hand when an instance ends only one is the cause. So one on its last attempt is tried without
      // another such one beside it: if the instance ends then, that counts against it alone.
      this.#last.push(waiting);
      if (this.#last.length > 1) return undefined;
    }
    return this.#send(waiting);
  }

  /** @param {Waiting} waiting */
  #send(waiting) {
    const { reading } = waiting;
    reading.chosen.push(waiting);
    if (!reading.notes) this.#jobs.spawn(() => this.#note(reading));
  }

  /**
   * Begin entries, all those at once that are chosen until Redis has answered for the ones before.
   *
   * @param {Reading} reading
   */
  async #note(reading) {
    reading.notes = true;
    try {
      while (reading.chosen.length) {
        const chosen = reading.chosen.splice(0);
        const begun = reading.lost ? [] : await this.#begun(reading, chosen);
        chosen.forEach((waiting, at) => this.#begin(waiting, begun[at] ?? 0));
      }
    } finally {
      reading.notes = false;
    }
  }

  /**
   * @param {Reading} reading
   * @param {Waiting[]} chosen
   * @returns {Promise<(number | Buffer[])[]>}
   */
  async #begun(reading, chosen) {
    const entries = chosen.flatMap(({ id, delivered, body }) => [id, delivered + 1, Number(!body)]);
    const args = [reading.lease, this.#service.name, this.#name, ...entries];
    let begun = /** @type {(number | Buffer[])[]} */ ([]);
    try {
      const keys = [reading.place, reading.stream];
      begun = /** @type {typeof begun} */ (await this.#connection.run(BEGIN, keys, args));
    } catch (error) {
      if (!(error instanceof Away || error instanceof Rejected)) throw error;
      this.#jobs.warn(`Entries of ${reading.stream} wait, and are read again: ${error.message}`);
    }
    if (!begun.length) reading.lost = true;
    return begun;
  }

  /**
   * @param {Waiting} waiting
   * @param {number | Buffer[]} answer what begin.lua has for the entry
   */
  #begin(waiting, answer) {
    const { reading, id, body, delivered } = waiting;
    if (answer === 0 || this.#jobs.cutOff) return this.#ended(waiting);
    const fields = Array.isArray(answer) ? answer : [];
    const entry = { ...entryOf(reading.stream, Buffer.from(id), fields, delivered), ...(body && { body }) };
    const owned = { ...entry, consumer: this.#name, lost: () => void (reading.lost = true) };
    return this.#jobs.spawn(() => this.#handling.delivered(owned).finally(() => this.#ended(waiting)));
  }

  /** @param {Waiting} waiting */
  #ended(waiting) {
    waiting.reading.inHand -= 1;
    const at = this.#last.indexOf(waiting);
    if (at >= 0) {
      this.#last.splice(at, 1);
      const next = this.#last[0];
      if (at === 0 && next) this.#send(next);
    }
    waiting.ended();
  }
}

/** @param {Buffer} body */
function eventIn(body) {
  try {
    return open(body);
  } catch (error) {
    if (!(error instanceof NoEvent)) throw error;
    return open(NO_EVENT);
  }
}

const NO_EVENT = Buffer.from('{"eventType":""}');
