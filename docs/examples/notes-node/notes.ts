/**
 * Sticky notes: the service behind the demo's board, as kraftek/daemon/demo/notes.py, and an example of what a service
 * author writes. `npm run setup && npm start` runs it, for the Redis of REDIS_URL and REDIS_PREFIX.
 *
 * Every change is broadcast to the whole room, including its sender, as the stored note: every page shows what the service
 * has. The events of a room are handled one after the other, so when two people move a note the later one wins.
 */

import { randomBytes } from "node:crypto";

import { type Context, Refused, Service } from "kraftek-service";

const NOTES_LIMIT = 200; // of a room
const LIFETIME = 7 * 24 * 3600; // seconds from the last change of a room until its notes expire
const COLOURS = ["yellow", "orange", "pink", "violet", "blue", "green"];

interface Note {
  id: string;
  x: number;
  y: number;
  text: string;
  colour: string;
  by: string;
  at: number;
}

/** What each part of a note has to be, and what the sender is told otherwise. x and y are in the board's own units. */
const PARTS = {
  id: ["a string", (value: unknown) => typeof value === "string"],
  x: ["a number from 0 to 1600", (value: unknown) => typeof value === "number" && value >= 0 && value <= 1600],
  y: ["a number from 0 to 800", (value: unknown) => typeof value === "number" && value >= 0 && value <= 800],
  text: ["at most 500 characters", (value: unknown) => typeof value === "string" && [...value].length <= 500],
  colour: [`one of ${COLOURS.join(", ")}`, (value: unknown) => COLOURS.includes(String(value))],
} as const;

/** A check of payloads: an object with these parts; what else is in it is left out. */
function parts<Name extends keyof typeof PARTS>(...names: Name[]) {
  return (payload: unknown): Pick<Note, Name> => {
    const given = (payload ?? {}) as Record<string, unknown>;
    for (const name of names) {
      const [expected, holds] = PARTS[name];
      if (!holds(given[name])) throw new TypeError(`expected ${expected} in ${name}`);
    }
    return Object.fromEntries(names.map((name) => [name, given[name]])) as Pick<Note, Name>;
  };
}

const prefix = process.env.REDIS_PREFIX ?? "";
const notes = new Service("stickyNotes", { prefix });

notes.on("board:open", async (context) => {
  const stored = (await context.redis("HVALS", key(context))) as string[];
  const board = { roomId: context.roomId, notes: stored.map((note) => JSON.parse(note) as Note) };
  context.broadcastToSockets("stickyNotes:board:opened", board, [context.socketId]);
});

notes.on("note:create", parts("x", "y", "text", "colour"), async (context, wanted) => {
  if (Number(await context.redis("HLEN", key(context))) < NOTES_LIMIT) {
    change(context, "created", { id: randomBytes(8).toString("hex"), ...wanted });
  } else refuse(context, `the board is full: it takes ${NOTES_LIMIT} notes`);
});

notes.on("note:move", parts("id", "x", "y"), (context, wanted) => alter(context, "moved", wanted));
notes.on("note:edit", parts("id", "text"), (context, wanted) => alter(context, "edited", wanted));
notes.on("note:recolour", parts("id", "colour"), (context, wanted) => alter(context, "recoloured", wanted));
notes.on("note:delete", parts("id"), (context, wanted) => alter(context, "deleted", wanted));

/** Find the note and change the parts that are given. */
async function alter(context: Context, done: string, wanted: Pick<Note, "id"> & Partial<Note>) {
  const stored = (await context.redis("HGET", key(context), wanted.id)) as string | null;
  if (stored === null) refuse(context, "there is no such note any more");
  else change(context, done, { ...(JSON.parse(stored) as Note), ...wanted });
}

/** Store the note and broadcast it to the room: both or neither. */
function change(context: Context, done: string, changed: Omit<Note, "by" | "at">) {
  const note: Note = { ...changed, by: context.userId, at: context.timestamp };
  if (done === "deleted") context.also("HDEL", key(context), note.id);
  else context.also("HSET", key(context), note.id, JSON.stringify(note));
  context.also("EXPIRE", key(context), LIFETIME);
  context.broadcastToRoom(`stickyNotes:note:${done}`, { roomId: context.roomId, userId: context.userId, note });
}

/** Tell the sender why the change is not possible. Malformed events are refused before they get here. */
function refuse(context: Context, why: string) {
  const payload = { eventType: context.eventType, message: why };
  context.broadcastToSockets("stickyNotes:note:refused", payload, [context.socketId]);
}

/** The key of the room's notes: a hash from the note's id to the note as JSON. */
function key(context: Context) {
  if (context.roomId === undefined) throw new Refused("NOT_IN_A_ROOM", "the notes are in rooms");
  return `${prefix}notes:${context.roomId}`;
}

await notes.run();
