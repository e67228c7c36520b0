/** Connections to a Redis, and to sentinels, that are silent, gone, or elsewhere: closed at any time they end, and others go on. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { describe, it } from "node:test";
import { setImmediate as turn, setTimeout as pause } from "node:timers/promises";

const { Connection } = await import(`${process.env.KIT}/connection.js`);
const { Away } = await import(`${process.env.KIT}/errors.js`);

/** Milliseconds in which everything here has happened, and more. */
const BOUND = 30_000;
const OK = "+OK\r\n";
const NULL = "*-1\r\n";
const LOG = { info() {}, warn() {}, error() {} };

const list = (...words) => `*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")}`;

/** A server that answers each command with what `answer` returns, if that is anything. */
class Server {
  sockets = new Set();
  /** How many have connected. */
  accepted = 0;

  constructor(answer = () => undefined) {
    this.answer = answer;
    this.server = createServer((socket) => {
      this.accepted += 1;
      this.sockets.add(socket);
      socket.on("close", () => this.sockets.delete(socket));
      socket.on("error", () => {});
      socket.on("data", async (data) => {
        for (const words of commandsIn(data)) {
          const answered = await this.answer(words, socket);
          if (answered && !socket.destroyed) socket.write(answered);
        }
      });
    });
  }

  async listen() {
    await once(this.server.listen(0, "127.0.0.1"), "listening");
    this.port = this.server.address().port;
    return this;
  }

  end() {
    for (const socket of this.sockets) socket.destroy();
    return new Promise((ended) => this.server.close(ended));
  }
}

function commandsIn(data) {
  const lines = data.toString().split("\r\n");
  const commands = [];
  for (let at = 0; lines[at]?.startsWith("*"); ) {
    const many = Number(lines[at].slice(1));
    commands.push(Array.from({ length: many }, (_, number) => lines[at + 2 + 2 * number]));
    at += 1 + 2 * many;
  }
  return commands;
}

function asMaster([command]) {
  if (command.toUpperCase() === "ROLE") return "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
  return command.toUpperCase() === "PING" ? "+PONG\r\n" : OK;
}

function asSentinel(port) {
  return ([command, what]) => {
    if (command.toLowerCase() === "subscribe") return `*3\r\n$9\r\nsubscribe\r\n$${what.length}\r\n${what}\r\n:1\r\n`;
    if (command.toLowerCase() !== "sentinel") return OK;
    if (what === "sentinels") return "*0\r\n";
    return port() ? list("127.0.0.1", String(port())) : NULL;
  };
}

async function until(holds, what) {
  const deadline = performance.now() + BOUND;
  while (!(await holds())) {
    assert(performance.now() < deadline, what);
    await pause(20);
  }
}

const urlOf = (...sentinels) => `redis+sentinel://${sentinels.map(({ port }) => `127.0.0.1:${port}`).join(",")}/mymaster`;
const works = (connection) => connection.call("PING").then((answer) => String(answer) === "PONG", () => false);

/** A connection to a master that a sentinel names, the servers of both, and what ends all. */
async function stage(master = asMaster) {
  const server = await new Server(master).listen();
  const sentinel = await new Server(asSentinel(() => server.port)).listen();
  return { server, sentinel, url: urlOf(sentinel), end: () => Promise.all([server.end(), sentinel.end()]) };
}

async function gone() {
  const server = await new Server().listen();
  await server.end();
  return server;
}

describe("connections", { concurrency: true }, () => {
  it("leave nothing behind, at whatever moment they are closed", async () => {
    const { server, sentinel, url, end } = await stage();
    const connection = new Connection(url, LOG);
    await until(() => works(connection), "an answer");
    connection.close();
    for (let turns = 0; turns < 100; turns += 1) {
      const other = new Connection(url, LOG);
      for (let passed = 0; passed < turns; passed += 1) await turn();
      other.close();
    }
    await until(() => !server.sockets.size && !sentinel.sockets.size, "the end of all connections");
    await end();
  });

  for (const [state, make] of Object.entries({
    "its Redis is silent": async () => {
      const silent = await new Server().listen();
      return [`redis://127.0.0.1:${silent.port}`, silent];
    },
    "its sentinels are silent": async () => {
      const silent = [await new Server().listen(), await new Server().listen()];
      return [urlOf(...silent), ...silent];
    },
    "its sentinels are gone": async () => [urlOf(await gone(), await gone())],
    "the master is silent": async () => {
      const { server, sentinel, url } = await stage(() => undefined);
      return [url, server, sentinel];
    },
    "the master is gone": async () => {
      const { port } = await gone();
      const sentinel = await new Server(asSentinel(() => port)).listen();
      return [urlOf(sentinel), sentinel];
    },
  })) {
    it(`fail what they are asked, and end, when ${state}`, async () => {
      const [url, ...servers] = await make();
      const connection = new Connection(url, LOG);
      await assert.rejects(connection.call("PING"), Away);
      const reader = connection.reader();
      const read = reader.read("PING").catch(() => {});
      await pause(500);
      connection.close();
      await read;
      await until(() => servers.every(({ sockets }) => !sockets.size), "the end of all connections");
      await Promise.all(servers.map((server) => server.end()));
    });
  }

  it("are not made any more once all are closed", async () => {
    const { server, sentinel, url, end } = await stage();
    const connection = new Connection(url, LOG);
    connection.close();
    await assert.rejects(connection.reader().read("PING"), Away);
    await until(() => !server.sockets.size && !sentinel.sockets.size, "the end of all connections");
    await end();
  });

  it("pass over a sentinel that is silent", async () => {
    const { sentinel, end } = await stage();
    const silent = await new Server().listen();
    const connection = new Connection(urlOf(silent, sentinel), LOG);
    await until(() => works(connection), "an answer");
    connection.close();
    await Promise.all([end(), silent.end()]);
  });

  it("give up a server that accepts and is silent from then on", async () => {
    const server = await new Server((words) => (server.accepted > 1 ? asMaster(words) : undefined)).listen();
    const connection = new Connection(`redis://127.0.0.1:${server.port}`, LOG);
    await until(() => works(connection), "an answer");
    connection.close();
    await server.end();
  });

  it("wait for an answer that takes a while", async () => {
    const server = await new Server(async (words) => {
      await pause(words[0].toUpperCase() === "CLIENT" ? 750 : 1_500);
      return asMaster(words);
    }).listen();
    const connection = new Connection(`redis://127.0.0.1:${server.port}`, LOG);
    assert.equal(String(await connection.call("PING")), "PONG");
    assert.equal(server.accepted, 1);
    connection.close();
    await server.end();
  });

  it("go on when a sentinel tells of a new master while they ask for it", async () => {
    const [old, next] = [await new Server(asMaster).listen(), await new Server(asMaster).listen()];
    let told = false;
    let subscriber;
    const sentinel = await new Server(async (words, socket) => {
      const answer = asSentinel(() => next.port)(words);
      if (words[0].toLowerCase() === "subscribe") subscriber = socket;
      if (words[1] !== "get-master-addr-by-name") return answer;
      if (!subscriber) return list("127.0.0.1", String(old.port));
      if (!told) {
        told = true;
        subscriber.write(list("message", "+switch-master", `mymaster 127.0.0.1 ${old.port} 127.0.0.1 ${next.port}`));
        await pause(100);
      }
      return answer;
    }).listen();
    const connection = new Connection(urlOf(sentinel), LOG);
    await until(async () => (await works(connection)) && subscriber, "an answer of the old master");
    await old.end();
    await until(async () => next.accepted && (await works(connection)), "an answer of the new one");
    assert(told);
    connection.close();
    await Promise.all([next.end(), sentinel.end()]);
  });
});
