/**
 * What handlers have done, as Redis runs it: all of it or nothing, with the acknowledgement of their entry. Called by
 * handling.js, and by instance.js for requests to other services.
 */

import { Full, OldGateway } from "./errors.js";
import { GATEWAY_BYTES, GATEWAY_LENGTH } from "./names.js";
import { script } from "./scripts.js";

const FULL = -1;

/** The script is sent each time, and one that emits nothing is four times as short. */
const COMMIT = script("commit");
const COMMIT_AND_EMIT = script("commitAndEmit", { FULL, most: GATEWAY_LENGTH, bytes: GATEWAY_BYTES });

const UNAWARE = script("unaware");

/**
 * Run the commands; for an entry of a stream only if it is still pending for its consumer, which is the result. Rejects
 * with `NotNow`, and as connection.js has it.
 *
 * @param {import("./connection.js").Connection} connection
 * @param {import("./context.js").Command[]} commands
 * @param {{group: string, stream: string, id: string, consumer: string}} [entry]
 */
export async function commit(connection, commands, entry) {
  await allKnow(connection, commands);
  const [first] = commands;
  if (!entry && !first) return true;
  if (!entry && first && commands.length === 1 && first.when !== "emit") {
    await connection.call(...first.words);
    return true;
  }
  /** @type {import("./connection.js").Word[]} */
  const args = entry ? [entry.group, entry.id, "of", 1, entry.consumer] : ["", ""];
  for (const { when, words } of commands) args.push(when, words.length, ...words);
  const emits = commands.some(({ when }) => when === "emit");
  const done = await connection.run(emits ? COMMIT_AND_EMIT : COMMIT, entry ? [entry.stream] : [], args);
  if (done === FULL) throw new Full();
  return Boolean(done);
}

/**
 * Whether all live gateways know the commands to them. Beforehand: in one step with the message it would be no safer, as a
 * gateway listens before it has its lease.
 *
 * @param {import("./connection.js").Connection} connection
 * @param {import("./context.js").Command[]} commands
 */
async function allKnow(connection, commands) {
  for (const { wants } of commands) {
    if (!wants) continue;
    const unaware = await connection.run(UNAWARE, [wants.leases, wants.published], [wants.command]);
    const [id, command] = /** @type {Buffer[]} */ (unaware);
    if (id) throw new OldGateway(String(id), String(command));
  }
}
