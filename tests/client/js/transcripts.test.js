/** Plays the transcripts in ../transcripts/, which ../player.py explains and plays with the Python clients. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { KraftekError, until, world } from "./world.js";

const FOLDER = new URL("../transcripts/", import.meta.url);
const SIGNS = { ">": "sends", "<": "told", leave: "closes" };

/** Of an object only the members that are expected. */
const pick = (found, expected) =>
  Object.fromEntries(Object.keys(expected).map((key) => [key, found?.[key] ?? null]));

const plain = (value) => JSON.parse(JSON.stringify(value ?? null));

class Player {
  #here;
  #client;
  #peer = null;
  #leaving = null;
  #sockets = [];
  #shown;
  #token;
  #room;
  #asked = [];
  #states = [{ state: "connecting" }];
  #heard = [];
  #ids = new Map();
  #calls = new Map();
  #aborts = new Map();
  #fetching = [];
  #noSnapshot = new Map();
  #roomStates = new Map();
  #noPresence = new Map();

  constructor(here, { client: { room, timeout, ...options } = {}, token = "t1", listens = [], js = {} }) {
    this.#here = here;
    this.#token = token;
    this.#room = room;
    const sockets = this.#sockets;
    class Noted extends WebSocket {
      constructor(...given) {
        super(...given);
        sockets.push(this);
      }
    }
    if (timeout !== undefined) options.timeout = 1000 * timeout;
    this.#client = here.connect({
      ...options,
      roomId: room,
      heartbeat: Infinity,
      WebSocket: Noted,
      token: ({ refused }) => {
        this.#asked.push(refused);
        if (this.#token === null) throw new Error("no token");
        return this.#token;
      },
      ...js,
    });
    this.#client.on("state", ({ state, wait, code }) => this.#states.push({ state, wait: wait / 1000, code }));
    this.#client.on("error", (error) => this.#heard.push(["error", { ...error }]));
    for (const own of ["dropped", "recovered"]) {
      if (own === "dropped" || listens.includes(own)) this.#client.on(own, (event) => this.#heard.push([own, plain(event)]));
    }
    for (const type of listens.filter((type) => type !== "recovered")) {
      this.#client.on(type, (payload, { append } = {}) => {
        const heard = append ? { piece: payload, key: append.key, text: append.text ?? null, ...(append.last && { last: true }) } : payload;
        this.#heard.push([type, heard]);
      });
    }
  }

  async play(steps) {
    for (const [number, [verb, ...given]] of steps.entries()) {
      const [name, library] = verb.split(" ").reverse();
      if (library === "python") continue;
      try {
        await this[SIGNS[name] ?? name](...given);
      } catch (error) {
        throw new Error(`step ${number + 1}, ${JSON.stringify([verb, ...given])}: ${error.message}`, { cause: error });
      }
    }
    await this.nothing();
  }

  async nothing() {
    for (let n = 0; n < 2; n += 1) {
      await new Promise(setImmediate);
      if (!this.#peer) continue;
      this.#peer.socket.ping();
      await once(this.#peer.socket, "pong");
    }
    const sent = [];
    while (this.#peer?.messages.length) sent.push(await this.#peer.messages.next());
    assert.deepEqual({ sent, states: this.#states, heard: this.#heard }, { sent: [], states: [], heard: [] });
  }

  async open(socketId = "s") {
    this.#peer = await this.#here.peer();
    this.#peer.say("connected", { socketId });
  }

  async ready(told = {}) {
    await this.state({ state: "connecting" });
    await this.open();
    const shown = this.#room === undefined ? { token: this.#token } : { token: this.#token, roomId: this.#room };
    await this.admit(shown, { userId: "ada", ...told });
    await this.state({ state: "ready" });
  }

  async shows(expected) {
    const { payload, id } = await this.#peer.hear("authenticate");
    assert.deepEqual(payload, expected);
    this.#shown = id;
  }

  admitted(told) {
    this.#peer.say("authenticated", told, { id: this.#shown });
  }

  refused(error) {
    this.#peer.say("error", { message: "because", ...error }, { id: this.#shown });
  }

  async admit(shown, told) {
    await this.shows(shown);
    this.admitted(told);
  }

  async refuse(shown, error) {
    await this.shows(shown);
    this.refused(error);
  }

  async sends(expected) {
    const sent = await this.#peer.hear(expected.type);
    const name = expected.id;
    if (typeof name === "string") {
      if (!this.#ids.has(name)) this.#ids.set(name, sent.id);
      assert.equal(sent.id, this.#ids.get(name));
      sent.id = name;
    }
    assert.deepEqual(sent, expected);
  }

  told({ id, ...message }) {
    this.#peer.socket.send(JSON.stringify(id === undefined ? message : { ...message, id: this.#ids.get(id) }));
  }

  async close(code, reason = "") {
    await this.nothing();
    this.#peer.socket.close(code, reason);
    await this.#peer.gone;
    this.#peer = null;
  }

  /** A close frame, and nothing of what the client says to it is read: so the connection stays. */
  async closing(code, reason = "") {
    await this.nothing();
    const { socket } = this.#peer;
    socket.pause();
    const frame = Buffer.concat([Buffer.from([0x88, 2 + reason.length, code >> 8, code & 0xff]), Buffer.from(reason)]);
    socket._socket.write(frame);
    await until(() => this.#sockets.at(-1).readyState !== WebSocket.OPEN, "that the client has read the close frame");
    this.#leaving = this.#peer;
    this.#peer = null;
  }

  async closed() {
    await this.nothing();
    this.#leaving.socket.resume();
    await this.#leaving.gone;
  }

  async drops() {
    assert.equal(await this.#peer.gone, 1000);
    this.#peer = null;
  }

  async cut() {
    await this.nothing();
    this.#peer.socket.terminate();
    this.#peer = null;
  }

  async pass(seconds) {
    await this.nothing();
    this.#here.clock.pass(1000 * seconds);
  }

  token(token) {
    this.#token = token;
  }

  async asked(expected) {
    await until(() => this.#asked.length >= expected.length, "a question for a token");
    assert.deepEqual(this.#asked.splice(0), expected);
  }

  connect() {
    this.#client.open();
  }

  async closes() {
    await this.nothing();
    this.#client.close();
    this.#peer = null;
  }

  /** Where Python raises QueueFull, Closed or ValueError, kraftek.js returns false and tells of "dropped", or throws. */
  async emit({ type, payload, room, volatile }, expected) {
    await this.nothing();
    let result;
    try {
      result = this.#client.emit(type, payload, { roomId: room, volatile });
    } catch (error) {
      result = codeOf(error);
    }
    assert.equal(result, ["QUEUE_FULL", "CLOSED"].includes(expected) ? false : expected);
  }

  async call(name, method, { type, payload, room, timeout, progress, ...more }) {
    await this.nothing();
    const options = { ...more, ...(timeout !== undefined && { timeout: 1000 * timeout }) };
    if (progress) options.onProgress = (part, { number }) => this.#heard.push(["part", [part, number]]);
    const { signal } = this.#aborts.set(name, new AbortController()).get(name);
    const calls = {
      request: () => this.#client.request(type, payload, { roomId: room, signal, ...options }),
      history: async () => {
        const { messages, before } = await this.#client.history(room, { signal, ...options });
        return { messages: messages.map((each) => [each.offset, each.payload]), before: before ?? null };
      },
      join: () => this.#client.join(room, options),
      leave: () => this.#client.leave(room),
      refresh: () => this.#client.refresh(),
    };
    const called = Promise.resolve(calls[method]());
    this.#calls.set(name, called.then((ok) => ({ ok: plain(ok) }), (error) => ({ error: codeOf(error) })));
  }

  async cancel(name) {
    await this.nothing();
    this.#aborts.get(name).abort(new TypeError("given up"));
    await this.done(name, { error: "WRONG_NAME" });
  }

  async done(name, expected) {
    const open = new Promise((resolve) => setTimeout(resolve, 10_000, "it has not ended").unref());
    assert.deepEqual(await Promise.race([this.#calls.get(name), open]), expected);
  }

  /** What it fetches the state of a room with: `fetched` says what that becomes. */
  #fetch(room) {
    this.#heard.push(["snapshot", room]);
    return new Promise((resolve, reject) => this.#fetching.push({ room, resolve, reject }));
  }

  async snapshot(room) {
    const fetch = () => this.#fetch(room);
    this.#noSnapshot.set(room, room === null ? this.#client.userSnapshot(fetch) : this.#client.snapshot(room, fetch));
  }

  async no_snapshot(room) {
    await this.nothing();
    this.#noSnapshot.get(room)();
  }

  async presence(room) {
    const shown = (users) => Object.fromEntries(users.map(({ userId, data }) => [userId, data ?? null]));
    const end = this.#client.presence(room, ({ users, count, joined, left }) =>
      this.#heard.push(["presence", { users: shown(users), count, joined: shown(joined), left }]));
    this.#noPresence.set(room, end);
  }

  async no_presence(room) {
    await this.nothing();
    this.#noPresence.get(room)();
  }

  async fetched(room, { ok, error }) {
    await this.nothing();
    const [{ resolve, reject }] = this.#fetching.splice(this.#fetching.findIndex((each) => each.room === room), 1);
    if (error === undefined) resolve(ok);
    else reject(new Error(error));
  }

  async room_state(room, types) {
    const changes = Object.fromEntries(types.map((type) => [type, (list, payload) => [...list, payload]]));
    const how = { snapshot: () => this.#fetch(room), changes };
    const state = room === null ? this.#client.userState(how) : this.#client.roomState(room, how);
    state.subscribe((value) => this.#heard.push(["room_state", value]));
    this.#roomStates.set(room, state);
  }

  async state_error(room, code) {
    await this.nothing();
    assert.equal(this.#roomStates.get(room).error?.code ?? null, code);
  }

  async state(expected) {
    await until(() => this.#states.length, "a change of the state");
    assert.deepEqual(pick(this.#states.shift(), expected), expected);
  }

  async hear(type, expected) {
    await until(() => this.#heard.length, "something to be heard");
    const [heard, what] = this.#heard.shift();
    const isObject = expected !== null && typeof expected === "object" && !Array.isArray(expected);
    assert.deepEqual([heard, isObject ? pick(what, expected) : what], [type, expected]);
  }
}

function codeOf(error) {
  if (error instanceof KraftekError) return error.code;
  return error instanceof TypeError ? "WRONG_NAME" : `${error}`;
}

for (const file of readdirSync(FOLDER).filter((name) => name.endsWith(".json")).sort()) {
  for (const transcript of JSON.parse(readFileSync(new URL(file, FOLDER), "utf8"))) {
    test(`${file.replace(".json", "")}: ${transcript.name}`, async (t) => {
      await new Player(await world(t), transcript).play(transcript.steps);
    });
  }
}
