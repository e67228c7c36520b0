/**
 * Compares what a service runs with and what gateways publish about it, and says what to change where it differs: as
 * kraftek/service/comparison.py does, word for word.
 */

import { Away, Rejected } from "./errors.js";
import { REGISTRATIONS, replyChannel } from "./names.js";
import { Watch } from "./watch.js";

/** Milliseconds between two looks. */
const INTERVAL = 30_000;
/** The same while something is to be mended, or gateways differ: a reload takes them one after the other. */
const SOON = 5_000;
/** Of the document. */
const VERSION = 1;
/** Seconds that gateways wait for an answer, unless they are configured otherwise. */
const TIMEOUT = 10;
/** Services that a line names when the one in question is not among them. */
const NAMES_SHOWN = 10;
const RELOAD = "reload them";

const ID = "[0-9a-f]".repeat(12);
/** The channel that each gateway is subscribed to, with the prefix before it. */
const GATEWAY = new RegExp(`^(.*)${replyChannel(ID)}$`, "s");

/**
 * @typedef {object} Given What a service runs with.
 * @property {string} name
 * @property {string} channel
 * @property {string} transport
 * @property {number} partitions
 * @property {string} prefix
 * @property {string} broadcast
 * @property {boolean | undefined} reply whether it answers requests, if it says so
 * @property {string | undefined} answered the name of a client's request that it has answered, if it has
 * @property {boolean} [registers] itself
 *
 * @typedef {{channel: string, transport?: string, partitions?: number, reply?: boolean, timeout?: number}} Registration
 * @typedef {object} Published
 * @property {number} version
 * @property {string} broadcast
 * @property {Record<string, Registration>} services
 * @property {string[]} [autoRegister]
 * @property {Record<string, string>} [refused]
 *
 * @typedef {object} Finding
 * @property {string[]} lines what differs
 * @property {boolean} sure no gateway sees it otherwise, so that it is no reload that is under way
 * @property {boolean} compared a gateway was there to compare with
 * @property {number} [timeout] the seconds that gateways wait for its answers, the longest of them
 *
 * @typedef {{difference: string, mend: string}} Difference `difference` is about the gateways, who are named after it.
 * @typedef {(...words: (string | number | Buffer)[]) => Promise<unknown>} Call
 */

/**
 * Look once.
 *
 * @param {Call} call runs a Redis command; its errors are thrown
 * @param {Given} given
 * @returns {Promise<Finding>}
 */
export async function compare(call, given) {
  const bodies = /** @type {Buffer[]} */ (await call("HVALS", given.prefix + REGISTRATIONS));
  const fleet = bodies.map(read).filter((one) => one !== undefined);
  if (fleet.length) return { ...differences(given, fleet), ...timeoutAt(fleet, given.name) };
  const subject = `Service ${given.name} is not compared with its registration`;
  /** @param {string} why */
  const not = (why) => ({ lines: [`${subject}: ${why}`], sure: true, compared: false });
  if (bodies.length) return not("the gateways publish those in a newer form. Update the SDK");
  const prefixes = await prefixesOf(call);
  if (prefixes.includes(given.prefix)) {
    return not("the gateways there publish none, as those of older versions, or use another database of this Redis");
  }
  if (!prefixes.length) return not("no gateway is connected to this Redis");
  const there = prefixes.map((prefix) => `"${prefix}"`).join(", ");
  const line =
    `Service ${given.name}: no gateway with the prefix "${given.prefix}" is connected to this Redis; there are gateways ` +
    `with ${there}. Either give the service prefix = "${prefixes[0]}", or write prefix = "${given.prefix}" under [redis] ` +
    "of them, and restart them";
  return { lines: [line], sure: false, compared: true };
}

/**
 * A document; `undefined` for one that is newer, or that another program wrote.
 *
 * @param {Buffer} body
 * @returns {Published | undefined}
 */
function read(body) {
  try {
    const document = JSON.parse(body.toString());
    const complete = typeof document.broadcast === "string" && typeof document.services === "object" && document.services;
    return document.version === VERSION && complete ? document : undefined;
  } catch {
    return undefined;
  }
}

/**
 * @param {Published[]} fleet
 * @param {string} name
 */
function timeoutAt(fleet, name) {
  const known = fleet.filter(({ services }) => Object.hasOwn(services, name));
  return known.length ? { timeout: Math.max(...known.map(({ services }) => services[name]?.timeout ?? TIMEOUT)) } : {};
}

/**
 * Those of the gateways that are connected. Found by what they are subscribed to: there is nothing to write, and nothing
 * to clean up, and Redis looks through its channels, not through its keys.
 *
 * @param {Call} call
 */
async function prefixesOf(call) {
  try {
    const channels = /** @type {Buffer[]} */ (await call("PUBSUB", "CHANNELS", `*${replyChannel(ID)}`));
    const prefixes = channels.map((channel) => GATEWAY.exec(channel.toString())?.[1]);
    return [...new Set(prefixes)].filter((prefix) => prefix !== undefined).sort();
  } catch (error) {
    if (error instanceof Rejected) return []; // we may not ask
    throw error;
  }
}

/**
 * @param {Given} given
 * @param {Published[]} fleet
 * @returns {Finding}
 */
function differences(given, fleet) {
  /** @type {Map<string, Difference & {gateways: number}>} */
  const found = new Map();
  for (const each of fleet.flatMap((one) => [...differencesFrom(given, one)])) {
    const key = JSON.stringify(each);
    const known = found.get(key) ?? { ...each, gateways: 0 };
    known.gateways += 1;
    found.set(key, known);
  }
  const all = [...found.values()];
  const lines = all.map(({ difference, mend, gateways }) => {
    const who = gateways === fleet.length ? "the gateways" : `${gateways} of ${fleet.length} gateways`;
    return `Service ${given.name}: ${difference} ${who}. ${mend}`;
  });
  return { lines, sure: all.every(({ gateways }) => gateways === fleet.length), compared: true };
}

/**
 * @param {Given} given
 * @param {Published} there
 * @returns {Generator<Difference>}
 */
function* differencesFrom(given, there) {
  if (there.broadcast !== given.broadcast) yield differs("broadcast", given.broadcast, there.broadcast, "redis", "restart");
  const registered = Object.hasOwn(there.services, given.name) ? there.services[given.name] : undefined;
  if (!registered) {
    yield given.registers ? notTaken(given, there) : unknown(given, there.services);
    return;
  }
  const service = { transport: "pubsub", partitions: 0, reply: false, ...registered };
  const table = tableOf(given.name);
  const keys = /** @type {const} */ (["channel", "transport", "partitions", "reply"]);
  for (const key of keys) {
    const here = given[key];
    if (here === undefined || here === service[key]) continue;
    if (key === "partitions" && given.transport !== service.transport) continue;
    yield differs(key, here, service[key], table, "reload");
  }
  if (given.reply === undefined && given.answered !== undefined && !service.reply) {
    yield {
      difference: `it has answered ${given.answered}, and clients got an ack in place of that: reply is false at`,
      mend: `Either write reply = true under [${table}] of the gateways, and ${RELOAD}; or return nothing there`,
    };
  }
}

/**
 * @param {string} key
 * @param {unknown} here
 * @param {unknown} there
 * @param {string} table
 * @param {string} how
 * @returns {Difference}
 */
function differs(key, here, there, table, how) {
  const [mine, theirs] = [JSON.stringify(here), JSON.stringify(there)];
  return {
    difference: `${key} is ${mine} here, and ${theirs} at`,
    mend: `Either give the service ${key} = ${theirs}, or write ${key} = ${mine} under [${table}] of the gateways, and ${how} them`,
  };
}

/**
 * @param {Given} given
 * @param {Record<string, Registration>} services
 * @returns {Difference}
 */
function unknown(given, services) {
  const same = Object.keys(services).filter((name) => services[name]?.channel === given.channel);
  const known = same.length ? same : Object.keys(services).sort();
  const shown = known.slice(0, NAMES_SHOWN).join(", ") + (known.length > NAMES_SHOWN ? " and others" : "");
  const there = !known.length ? "nothing is" : same.length ? `its channel is that of ${shown}` : `those that are: ${shown}`;
  const keys = [`channel = "${given.channel}"`];
  if (given.transport !== "pubsub") keys.push(`transport = "${given.transport}"`);
  if (given.partitions) keys.push(`partitions = ${given.partitions}`);
  if (given.reply) keys.push("reply = true");
  const rename = known.length === 1 ? `Either give the service the name ${shown}, or write` : "Write";
  return {
    difference: `it is not registered (${there}) at`,
    mend: `${rename} [${tableOf(given.name)}] with ${keys.join(", ")} into the gateways' configuration, and ${RELOAD}`,
  };
}

/**
 * @param {Given} given
 * @param {Published} there
 * @returns {Difference}
 */
function notTaken({ name }, { autoRegister = [], refused = {} }) {
  if (Object.hasOwn(refused, name)) {
    return { difference: `it may not register itself (${refused[name]}) at`, mend: "Change that in the service" };
  }
  if (autoRegister.some((pattern) => covers(pattern, name))) {
    return { difference: "it has registered itself, and is not known yet at", mend: "Wait for them" };
  }
  return {
    difference: "it registers itself, and auto_register does not have its name at",
    mend:
      `Write it into auto_register = ["${name}"] of the gateways, and ${RELOAD}; or register it there under ` +
      `[${tableOf(name)}]`,
  };
}

/**
 * @param {string} pattern
 * @param {string} name
 */
function covers(pattern, name) {
  const parts = pattern.split("*").map((part) => part.replaceAll(".", "\\."));
  return new RegExp(`^${parts.join(".*")}$`, "s").test(name);
}

/**
 * A service's table in the configuration.
 *
 * @param {string} name
 */
const tableOf = (name) => (name.includes(".") ? `services.'${name}'` : `services.${name}`);

/**
 * The watch over one service, from `start` to `stop`. Each difference is told once, until it changes; one that not all
 * gateways have, once it lasts.
 */
export class Comparison extends Watch {
  #service;
  #call;
  #registered;
  /** @type {Finding} */
  #seen = { lines: [], sure: true, compared: true };
  #told = this.#seen;

  /**
   * @param {import("./service.js").Service} service
   * @param {Call} call
   * @param {(timeout: number) => void} registered is told how many milliseconds gateways wait for its answers
   */
  constructor(service, call, registered) {
    const first = service.register ? SOON : 0; // gateways have to hear of it first
    super(service.log, "The service is not compared with its registration any more", first);
    this.#service = service;
    this.#call = call;
    this.#registered = registered;
  }

  async turn() {
    await this.look();
    return this.#seen.lines.length ? SOON : INTERVAL;
  }

  /** Look once, and tell what is new. */
  async look() {
    const { name } = this.#service;
    /** @type {Finding} */
    let finding;
    try {
      const { timeout, ...rest } = await compare(this.#call, this.#given());
      finding = rest;
      if (timeout !== undefined) this.#registered(1000 * timeout);
    } catch (error) {
      if (error instanceof Away) return; // the connection says so
      if (!(error instanceof Rejected)) throw error;
      const why = `Service ${name} is not compared with its registration: Redis refuses that: ${error.message}`;
      finding = { lines: [why], sure: true, compared: false };
    }
    const lasts = isSame(finding, this.#seen);
    this.#seen = finding;
    if (!this.stopped && !isSame(finding, this.#told) && (finding.sure || lasts)) this.#tell(finding);
  }

  /** @param {Finding} finding */
  #tell(finding) {
    const { log, name } = this.#service;
    const told = this.#told.lines;
    this.#told = finding;
    for (const line of finding.lines) {
      if (told.includes(line)) continue;
      if (finding.compared) log.warn(line);
      else log.info(line);
    }
    if (!finding.lines.length) log.info(`Service ${name} agrees with its registration at the gateways`);
  }

  /** @returns {Given} */
  #given() {
    const { name, channel, transport, partitions, prefix, broadcast, reply, answered, register } = this.#service;
    const own = { channel: channel.slice(prefix.length), broadcast: broadcast.slice(prefix.length) };
    return { name, transport, partitions, prefix, reply, answered, registers: register, ...own };
  }
}

/**
 * @param {Finding} one
 * @param {Finding} other
 */
const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);
