/** Registers a service that registers itself, for as long as an instance lives, where `auto_register` permits it. */

import { Away, Rejected } from "./errors.js";
import { SELF_LEASES, SELF_REGISTERED } from "./names.js";
import { script } from "./scripts.js";
import { Watch } from "./watch.js";

/** Milliseconds for which it stands, unless it is done again. */
const LEASE = 15_000;
/** Services that may have registered themselves at a time. */
const MOST = 256;

const REGISTER = script("register");

export class SelfRegistration extends Watch {
  #service;
  #call;
  #words;
  #told = "";

  /**
   * @param {import("./service.js").Service} service
   * @param {import("./comparison.js").Call} call
   */
  constructor(service, call) {
    super(service.log, "The service is not registered any more");
    this.#service = service;
    this.#call = call;
    const { transport, partitions, prefix, timeout } = service;
    const channel = service.channel.slice(prefix.length);
    // The same to the byte as the SDK for Python has it: instances have to agree.
    this.#words = JSON.stringify({ channel, transport, partitions, reply: service.reply ?? false, timeout: timeout / 1000 });
  }

  async turn() {
    await this.register();
    return LEASE / 3;
  }

  /** Do it once, and tell what is new. */
  async register() {
    const { prefix, name, claimAfter } = this.#service;
    const keys = [prefix + SELF_REGISTERED, prefix + SELF_LEASES];
    try {
      const words = [name, this.#words, Math.floor(Math.max(LEASE, claimAfter)), MOST];
      const stands = String(await this.#call("EVAL", REGISTER, keys.length, ...keys, ...words));
      this.#tell(stands === this.#words ? "" : this.#refusal(stands));
    } catch (error) {
      if (error instanceof Away) return; // the connection says so
      if (!(error instanceof Rejected)) throw error;
      this.#tell(`cannot register itself: Redis refuses that: ${error.message}`);
    }
  }

  /** @param {string} stands */
  #refusal(stands) {
    if (!stands) return `cannot register itself: ${MOST} services have done so`;
    return (
      `is registered by other instances as ${stands}, and by this one as ${this.#words}. Give all the same; this one counts ` +
      "when the others have ended"
    );
  }

  /** @param {string} problem */
  #tell(problem) {
    const { log, name } = this.#service;
    const told = this.#told;
    this.#told = problem;
    if (problem && problem !== told) log.warn(`Service ${name} ${problem}`);
    else if (told && !problem) log.info(`Service ${name} is registered by this instance, too, from now on`);
  }
}
