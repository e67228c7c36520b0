/**
 * What handlers have done, as Redis runs it: all of it or nothing, with the acknowledgement of their entry. Called by
 * handling.js, and by instance.js for requests to other services.
 */

import { Full, OldGateway } from "./errors.js";
import { GATEWAY_BYTES, GATEWAY_LENGTH, HISTORY_RULES } from "./names.js";
import { script } from "./scripts.js";

const [FULL, KEPT] = [-1, -2];
const NUMBERS = { FULL, KEPT, most: GATEWAY_LENGTH, bytes: GATEWAY_BYTES };

/**
 * Those that commit, by what is said to rooms and users: of which none may have a history, or some.
 */
const COMMITS = { none: script("commit"), unkept: script("commitUnkept", { KEPT }), kept: script("commitKept") };
const COMMITS_AND_EMIT = {
  none: script("commitAndEmit", NUMBERS),
  unkept: script("commitUnkeptAndEmit", NUMBERS),
  kept: script("commitKeptAndEmit", NUMBERS),
};

const TELL_UNKEPT = `${script("unkept", { KEPT })}\nreturn redis.call('PUBLISH', ARGV[1], ARGV[2])`;
const TELL = `${script("tell")}\nreturn telling_to(unpack(ARGV))()`;

const UNAWARE = script("unaware");

/**
 * Runs commands on a Redis. What is said to a room, or to users, is part of its history if it has one. Only Redis knows that.
 * It is asked by a short script until it says that something has one: then by another one.
 */
export class Commits {
  #connection;
  #kept = false;

  /** @param {import("./connection.js").Connection} connection */
  constructor(connection) {
    this.#connection = connection;
  }

  /**
   * Run the commands; for an entry of a stream only if it is still pending for its consumer, which is the result. Rejects
   * with `NotNow`, and as connection.js has it.
   *
   * @param {import("./context.js").Command[]} commands
   * @param {{group: string, stream: string, id: string, consumer: string}} [entry]
   */
  async commit(commands, entry) {
    await this.#allKnow(commands);
    const [first] = commands;
    if (!entry && !first) return true;
    if (!entry && first && commands.length === 1 && first.when !== "emit") {
      await (first.topic ? this.#tell(first, first.topic) : this.#connection.call(...first.words));
      return true;
    }
    let done;
    do {
      done = await this.#run(commands, entry);
      this.#kept ||= done === KEPT;
    } while (done === KEPT);
    if (done === FULL) throw new Full();
    return Boolean(done);
  }

  /**
   * @param {import("./context.js").Command} command
   * @param {import("./context.js").Topic} topic
   */
  async #tell({ words }, topic) {
    if (!this.#kept) {
      const taken = await this.#connection.run(TELL_UNKEPT, [], [...words.slice(1), topic.prefix + HISTORY_RULES]);
      if (taken !== KEPT) return;
      this.#kept = true;
    }
    await this.#connection.run(TELL, [], telling(words, topic));
  }

  /**
   * @param {import("./context.js").Command[]} commands
   * @param {{group: string, stream: string, id: string, consumer: string}} [entry]
   */
  #run(commands, entry) {
    /** @type {import("./connection.js").Word[]} */
    const args = entry ? [entry.group, entry.id, "of", 1, entry.consumer] : ["", ""];
    const { prefix } = commands.find(({ topic }) => topic)?.topic ?? {};
    const rooms = prefix === undefined ? "none" : this.#kept ? "kept" : "unkept";
    for (const command of commands) args.push(...wordsOf(command, rooms));
    if (rooms === "unkept") args.push("rules", 1, prefix + HISTORY_RULES);
    const scripts = commands.some(({ when }) => when === "emit") ? COMMITS_AND_EMIT : COMMITS;
    return this.#connection.run(scripts[rooms], entry ? [entry.stream] : [], args);
  }

  /**
   * Whether all live gateways know the commands to them. Beforehand: in one step with the message it would be no safer, as
   * a gateway listens before it has its lease.
   *
   * @param {import("./context.js").Command[]} commands
   */
  async #allKnow(commands) {
    for (const { wants } of commands) {
      if (!wants) continue;
      const unaware = await this.#connection.run(UNAWARE, [wants.leases, wants.published], [wants.command]);
      const [id, command] = /** @type {Buffer[]} */ (unaware);
      if (id) throw new OldGateway(String(id), String(command));
    }
  }
}

/**
 * A command as the script has it.
 *
 * @param {import("./context.js").Command} command
 * @param {keyof typeof COMMITS} rooms
 * @returns {import("./connection.js").Word[]}
 */
function wordsOf({ when, words, topic }, rooms) {
  return topic && rooms === "kept" ? ["tell", 5, ...telling(words, topic)] : [when, words.length, ...words];
}

/**
 * The arguments of `telling_to` in tell_users.lua.
 *
 * @param {import("./connection.js").Word[]} publish
 * @param {import("./context.js").Topic} topic
 * @returns {import("./connection.js").Word[]}
 */
function telling([, channel = "", body = ""], { prefix, name }) {
  return [prefix, channel, name, body, ""];
}
