/**
 * Events from streams: the instances of a service are the consumers of one group. Made by instance.js.
 *
 * `Stream` is one that is read by all instances, each as many entries as it can handle at a time. While it handles an
 * entry it resets its idle time; idle entries belong to dead instances, and are claimed.
 *
 * `Partitions` are those streams whose leases this instance holds. An instance that takes over a lease begins with what
 * its last holder left unfinished, so the order is kept.
 */

import { Consumer, entryOf } from "./groups.js";
import { instancesKey, leaseKey } from "./names.js";
import { script } from "./scripts.js";

/**
 * @typedef {ReturnType<import("./connection.js").Connection["reader"]>} Reader
 * @typedef {import("./handling.js").Entry} Entry
 */

/** Milliseconds that Redis lets a reader wait: a stop or the loss of a lease is noticed after so long at most. */
const BLOCK = 500;

const SHARE = script("share");
const TAKE_NEXT = script("takeNext");
const RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

export class Stream {
  #service;
  #jobs;
  #handling;
  #consumer;
  /** What is in hand. @type {Map<string, Entry>} */
  #entries = new Map();

  /**
   * @param {string} name this consumer
   * @param {import("./service.js").Service} service
   * @param {import("./connection.js").Connection} connection
   * @param {import("./jobs.js").Jobs} jobs
   * @param {import("./handling.js").Handling} handling
   */
  constructor(name, service, connection, jobs, handling) {
    this.#service = service;
    this.#jobs = jobs;
    this.#handling = handling;
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
    for (const entry of entries) {
      if (this.#entries.has(entry.id)) continue;
      this.#entries.set(entry.id, entry);
      this.#jobs.spawn(async () => {
        try {
          await this.#handling.delivered(entry);
        } finally {
          this.#entries.delete(entry.id);
        }
      });
    }
  }
}

export class Partitions {
  #name;
  #service;
  #connection;
  #jobs;
  #handling;
  #leases;
  /** The partitions that are read, and whether to continue with them. @type {Map<number, boolean>} */
  #followed = new Map();

  /**
   * @param {string} name this instance, also as consumer
   * @param {import("./service.js").Service} service
   * @param {import("./connection.js").Connection} connection
   * @param {import("./jobs.js").Jobs} jobs
   * @param {import("./handling.js").Handling} handling
   */
  constructor(name, service, connection, jobs, handling) {
    this.#name = name;
    this.#service = service;
    this.#connection = connection;
    this.#jobs = jobs;
    this.#handling = handling;
    this.#leases = service.streams.map((stream) => leaseKey(stream, service.name));
  }

  async begin() {
    this.#jobs.spawn(() => this.#jobs.persistently(() => this.#share()));
  }

  /** Nothing to do: the reading loops see that the jobs are stopping, and release their leases. */
  stop() {}

  /** Hold a fair share of the partitions. */
  async #share() {
    const { channel, claimAfter, name } = this.#service;
    const keys = [instancesKey(channel, name), ...this.#leases];
    for (;;) {
      const leaving = this.#jobs.stopping && (this.#followed.size === 0 || this.#jobs.cutOff);
      const args = [this.#name, Math.floor(claimAfter), Number(this.#jobs.stopping)];
      const [share, held] = /** @type {[number, number[]]} */ (await this.#connection.run(SHARE, keys, args));
      if (leaving) return;
      for (const number of held.sort((one, other) => one - other)) this.#follow(number);
      const continued = [...this.#followed.keys()].filter((number) => held.includes(number));
      for (const number of continued.slice(share)) this.#followed.set(number, false);
      await this.#jobs.changeWithin(claimAfter / 3);
    }
  }

  /** @param {number} number */
  #follow(number) {
    if (this.#followed.has(number) || this.#jobs.stopping) return;
    this.#followed.set(number, true);
    this.#jobs.spawn(async () => {
      try {
        await this.#jobs.persistently((reader) => this.#read(number, reader));
      } finally {
        this.#followed.delete(number);
      }
    });
  }

  /**
   * One partition, one event after the other, for as long as its lease is held.
   *
   * @param {number} number
   * @param {Reader} reader
   */
  async #read(number, reader) {
    const group = this.#service.name;
    const stream = /** @type {string} */ (this.#service.streams[number]);
    const lease = /** @type {string} */ (this.#leases[number]);
    await new Consumer(this.#connection, stream, group, this.#name).join();
    while (this.#followed.get(number) && !this.#jobs.stopping) {
      const answer = await this.#connection.run(TAKE_NEXT, [lease, stream], [group, this.#name]);
      const [id, fields, delivered] = /** @type {[Buffer?, Buffer[]?, number?]} */ (answer);
      if (!id) return; // another instance holds the lease now
      if (!fields) await reader.read("XREAD", "COUNT", 1, "BLOCK", BLOCK, "STREAMS", stream, id);
      else await this.#handling.delivered(entryOf(stream, id, fields, Number(delivered)));
    }
    await this.#connection.run(RELEASE, [lease], [this.#name]);
  }
}
