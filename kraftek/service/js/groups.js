/** Consumer groups of a stream, as kraftek/contract/consumer_groups.py has them. Used by streams.js. */

import { Rejected } from "./errors.js";
import { script } from "./scripts.js";

/** Milliseconds after which a consumer that has nothing pending and sends no commands is removed from its group. */
const FORGOTTEN_AFTER = 60_000;
/** Milliseconds in which a consumer that reads sends a command. */
const ACTIVE = 2_000;

const JOIN = script("join");
const CLAIM = script("claim");

/**
 * @typedef {import("./connection.js").Connection} Connection
 * @typedef {import("./handling.js").Entry} Entry
 */

export class Consumer {
  #connection;

  /**
   * @param {Connection} connection
   * @param {string} stream the key with its prefix
   * @param {string} group
   * @param {string} name
   */
  constructor(connection, stream, group, name) {
    this.#connection = connection;
    this.stream = stream;
    this.group = group;
    this.name = name;
  }

  /** Make the group where it is missing, from the first entry on; forget consumers that are gone. */
  async join() {
    await this.#connection.run(JOIN, [this.stream], [this.group, FORGOTTEN_AFTER]);
  }

  /**
   * New entries; waits so long for one.
   *
   * @param {ReturnType<Connection["reader"]>} reader
   * @param {number} most
   * @param {number} milliseconds
   * @returns {Promise<Entry[]>}
   */
  async read(reader, most, milliseconds) {
    const group = ["GROUP", this.group, this.name];
    const limits = ["COUNT", most, "BLOCK", Math.max(1, Math.floor(milliseconds))];
    const answer = await reader.read("XREADGROUP", ...group, ...limits, "STREAMS", this.stream, ">");
    const streams = /** @type {[Buffer, [Buffer, Buffer[]][]][]} */ (answer ?? []);
    return streams.flatMap(([, entries]) => entries.map(([id, fields]) => entryOf(this.stream, id, fields, 1)));
  }

  /**
   * Reset the idle time of entries in hand, so that no other consumer claims them.
   *
   * @param {string[]} ids
   */
  async keep(ids) {
    await this.#connection.call(...this.keeping(ids));
  }

  /**
   * The command that does so.
   *
   * @param {string[]} ids
   * @returns {import("./connection.js").Word[]}
   */
  keeping(ids) {
    return ["XCLAIM", this.stream, this.group, this.name, 0, ...ids, "IDLE", 0, "JUSTID"];
  }

  /**
   * Take over entries that were idle for so many milliseconds: those of dead consumers.
   *
   * @param {number} idle
   * @param {number} most
   * @param {number} attempts which delivery is the last one
   * @param {boolean} last an entry on its last attempt is in hand, so another one is not taken
   * @returns {Promise<Entry[]>}
   */
  async claim(idle, most, attempts, last) {
    const args = [this.group, this.name, Math.floor(idle), most, "", attempts, Number(last)];
    const found = await this.#connection.run(CLAIM, [this.stream], args);
    const claimed = /** @type {[Buffer, Buffer[], number][]} */ (found);
    return claimed.map(([id, fields, delivered]) => entryOf(this.stream, id, fields, delivered));
  }
}

/**
 * The consumers of a group that read just now.
 *
 * @param {Connection} connection
 * @param {string} stream
 * @param {string} group
 */
export async function activeConsumers(connection, stream, group) {
  const replies = await connection.call("XINFO", "CONSUMERS", stream, group).catch((error) => {
    if (!(error instanceof Rejected)) throw error;
    return []; // the group is lost, and made again
  });
  return /** @type {(Buffer | number)[][]} */ (replies)
    .map((reply) => new Map(reply.map((value, at) => [String(value), reply[at + 1]])))
    .filter((consumer) => Number(consumer.get("idle")) < ACTIVE)
    .map((consumer) => String(consumer.get("name")));
}

/**
 * An entry as Redis has it; its event is empty when there is no such field.
 *
 * @param {string} stream
 * @param {Buffer} id
 * @param {Buffer[]} fields names and values in turn
 * @param {number} delivered
 * @returns {Entry}
 */
export function entryOf(stream, id, fields, delivered) {
  const at = fields.findIndex((name, index) => index % 2 === 0 && name.toString() === "event");
  return { stream, id: id.toString(), body: (at < 0 ? undefined : fields[at + 1]) ?? Buffer.alloc(0), delivered };
}
