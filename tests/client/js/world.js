/** What the tests of kraftek.js stand in: a real WebSocket server that says what the test says, and a clock. */

import { WebSocketServer } from "ws";

/** The client under test: the one that was installed. */
export const { Kraftek, KraftekError, connect } = await import(process.env.KRAFTEK_JS);

const PATIENCE = 10_000;

/** What `promise` becomes; after `PATIENCE` it fails with what was awaited, and what there was instead. */
async function within(promise, what, instead) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${PATIENCE} ms: ${what}; instead ${instead()}`)), PATIENCE);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Returns as soon as `seen` is true. */
export async function until(seen, what) {
  const end = performance.now() + PATIENCE;
  while (!seen()) {
    if (performance.now() > end) throw new Error(`not within ${PATIENCE} ms: ${what}`);
    await new Promise(setImmediate);
  }
}

/** Values in the order of their coming, for who waits for them. */
class Line {
  #what;
  #values = [];
  #waiting = [];

  constructor(what) {
    this.#what = what;
  }

  push(value) {
    const next = this.#waiting.shift();
    if (next) next(value);
    else this.#values.push(value);
  }

  next() {
    if (this.#values.length) return Promise.resolve(this.#values.shift());
    return within(new Promise((resolve) => this.#waiting.push(resolve)), this.#what, () => "nothing");
  }

  get length() {
    return this.#values.length;
  }
}

/** The gateway's end of one connection. */
class Peer {
  messages = new Line("a message of the client");
  #gone = new Promise((resolve) => (this.left = resolve));

  /** The code with which the client's socket was closed. */
  get gone() {
    return within(this.#gone, "the end of the client's socket", () => `${this.messages.length} messages`);
  }

  constructor(socket) {
    this.socket = socket;
    socket.on("message", (data) => this.messages.push(JSON.parse(data)));
    socket.on("close", (code) => this.left(code));
  }

  /** The next message of the client, which must be of this type. */
  async hear(type) {
    const message = await this.messages.next();
    if (message.type !== type) throw new Error(`expected ${type}, got ${JSON.stringify(message)}`);
    return message;
  }

  say(type, payload, more = {}) {
    this.socket.send(JSON.stringify({ type, payload, ...more }));
  }

  refuse(id, code, more = {}) {
    this.say("error", { code, message: `${code} it is`, ...more }, { id });
  }

  /** Let the client in; the credentials that it shows. */
  async admit(userId = "user_ada") {
    const { payload, id } = await this.hear("authenticate");
    this.say("authenticated", { success: true, userId, roomId: payload.roomId ?? null }, { id });
    return payload;
  }

  async letJoin() {
    const { payload, id } = await this.hear("join");
    this.say("joined", payload, { id });
    return payload.roomId;
  }

  /** Nothing else has come from the client: it answers a close frame behind all that it sent. */
  async end(code = 1001, reason = "") {
    this.socket.close(code, reason);
    await this.gone;
    if (this.messages.length) throw new Error(`left over: ${JSON.stringify(await this.messages.next())}`);
  }
}

/** Time that passes when the test says so. */
export class Clock {
  #time = 0;
  #count = 0;
  #timers = new Map();

  now = () => this.#time;

  setTimeout = (call, wait) => {
    this.#count += 1;
    this.#timers.set(this.#count, { call, due: this.#time + wait });
    return this.#count;
  };

  clearTimeout = (timer) => {
    this.#timers.delete(timer);
  };

  get timers() {
    return this.#timers.size;
  }

  pass(wait) {
    const end = this.#time + wait;
    for (;;) {
      const due = [...this.#timers].filter(([, timer]) => timer.due <= end).sort(([, a], [, b]) => a.due - b.due)[0];
      if (!due) break;
      const [name, timer] = due;
      this.#timers.delete(name);
      this.#time = timer.due;
      timer.call();
    }
    this.#time = end;
  }
}

/** A server, and clients of it. `t` is the test, which takes them down. */
export async function world(t) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  const peers = new Line("a connection of the client");
  server.on("connection", (socket) => {
    const peer = new Peer(socket);
    peer.say("connected", { socketId: "gateway.socket" });
    peers.push(peer);
  });
  await new Promise((resolve) => server.once("listening", resolve));
  const clients = [];
  t.after(() => {
    for (const client of clients) client.close();
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  const url = `ws://127.0.0.1:${server.address().port}/`;
  const clock = new Clock();
  return {
    server,
    url,
    clock,
    /** The gateway's end of the next connection. */
    peer: () => peers.next(),
    connect(options = {}) {
      const client = connect(url, { token: async () => "s3cret", clock, random: () => 0.5, ...options });
      clients.push(client);
      return client;
    },
    /** A client that is ready, and its peer. */
    async ready(options) {
      const client = this.connect(options);
      const peer = await peers.next();
      const ready = state(client, "ready");
      await peer.admit();
      await ready;
      return { client, peer };
    },
  };
}

/** The next change of the client to this state. */
export function state(client, wanted) {
  return told(client, "state", (change) => change.state === wanted);
}

/** What a listener is told next, the first argument alone. */
export function told(client, type, matches = () => true) {
  const others = [];
  const first = new Promise((resolve) => {
    client.on(type, function heard(what) {
      if (!matches(what)) {
        others.push(what);
        return;
      }
      client.off(type, heard);
      resolve(what);
    });
  });
  return within(first, `"${type}"`, () => JSON.stringify(others));
}
