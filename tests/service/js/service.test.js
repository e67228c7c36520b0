/** What an author may say wrongly, and hears at once. */

import assert from "node:assert/strict";
import { test } from "node:test";

const { Refused, Service } = await import("kraftek-service");
const { connectionOptions } = await import(`${process.env.KIT}/address.js`);

const nothing = () => {};

for (const [option, value, expected] of [
  ["channel", "a b", "a Redis channel"],
  ["transport", "kafka", '"pubsub" or "stream"'],
  ["partitions", 257, "a whole number from 0 to 256"],
  ["concurrency", 0, "a whole number from 1"],
  ["concurrency", 1.5, "a whole number from 1"],
  ["unordered", 1, "true or false"],
  ["timeout", 0, "milliseconds, more than 0"],
  ["timeout", NaN, "milliseconds, more than 0"],
  ["attempts", "3", "a whole number from 1"],
  ["claimAfter", Infinity, "milliseconds, more than 0"],
  ["grace", -1, "milliseconds, from 0"],
  ["messageBytes", 100, "a number of bytes from 4096"],
  ["prefix", "a\n", "a prefix without white space"],
  ["broadcast", "", "a Redis channel"],
  ["log", {}, "an object with info, warn and error"],
  ["concurency", 1, "no such option"],
]) {
  test(`${option} is checked: ${value}`, () => {
    assert.throws(() => new Service("chat", { [option]: value }), (error) => {
      assert(error instanceof TypeError);
      assert(error.message.startsWith(`chat: ${option}: expected ${expected}`), error.message);
      return true;
    });
  });
}

for (const name of ["", "a b", "a:b", 7, undefined]) {
  test(`no service is named ${name}`, () => {
    assert.throws(() => new Service(name), TypeError);
  });
}

test("only a stream has partitions", () => {
  assert.throws(() => new Service("chat", { partitions: 2 }), /only a stream has partitions/);
  assert.deepEqual(new Service("chat", { partitions: 2, transport: "stream", prefix: "p:" }).streams,
    ["p:events:chat:0", "p:events:chat:1"]);
});

for (const event of ["send", "a:b:c:d", ":send", "a::c", "message:to send", `message:${"x".repeat(128)}`]) {
  test(`no event is named ${event}`, () => {
    assert.throws(() => new Service("chat").on(event, nothing), /expected module:name or service:module:name/);
  });
}

test("an event has one handler", () => {
  const chat = new Service("chat").on("message:send", nothing);
  assert.throws(() => chat.on("chat:message:send", nothing), /each once/);
});

test("a handler is a function, and a schema can check", () => {
  assert.throws(() => new Service("chat").on("a:b", {}), /expected a function of the context and the payload/);
  assert.throws(() => new Service("chat").on("a:b", {}, nothing), /expected a Standard Schema/);
});

test("a refusal has a code, and is an error with its message", () => {
  const refused = new Refused("NOT_NOW", "come back", { retryAfter: 2 });
  assert.deepEqual([refused.code, refused.message, refused.retryAfter, `${refused}`],
    ["NOT_NOW", "come back", 2, "Refused: come back"]);
});

for (const [url, expected] of [
  ["redis://", undefined],
  ["redis://localhost", { host: "localhost", port: 6379, db: 0 }],
  ["redis://localhost:7000/3", { host: "localhost", port: 7000, db: 3 }],
  ["redis://:p%40ss@[::1]:7000", { host: "::1", port: 7000, db: 0, password: "p@ss" }],
  ["rediss://ada:p@redis.example", { host: "redis.example", port: 6379, db: 0, username: "ada", password: "p",
    tls: { servername: "redis.example" } }],
  ["unix:///run/redis.sock?db=2", { path: "/run/redis.sock", db: 2 }],
  ["unix://run/redis.sock", undefined],
  ["redis://localhost/x", undefined],
  ["redis://secret@localhost", undefined],
  ["redis://localhost:99999", undefined],
  ["redis://a,b", undefined],
  ["redis+sentinel://a/0", undefined],
  ["redis+sentinel://a/mine?x=1", undefined],
  ["http://localhost", undefined],
  ["redis://local host", undefined],
]) {
  test(`the URL ${url}`, () => {
    if (expected) assert.deepEqual(connectionOptions(url), expected);
    else {
      assert.throws(() => connectionOptions(url), (error) => {
        assert(error instanceof TypeError);
        assert(!error.message.includes("secret"));
        return error.message.startsWith("expected ");
      });
    }
  });
}

test("sentinels are asked for the master", () => {
  const { sentinelRetryStrategy, ...options } =
    connectionOptions("rediss+sentinel://:p@a,b:7/mine/2?sentinel_password=q&sentinel_username=u");
  assert.deepEqual([1, 2].map(sentinelRetryStrategy), [0, null]);
  assert.deepEqual(options, {
    password: "p",
    sentinels: [{ host: "a", port: 26379 }, { host: "b", port: 7 }],
    name: "mine",
    db: 2,
    failoverDetector: true,
    sentinelUsername: "u",
    sentinelPassword: "q",
    tls: {},
    sentinelTLS: {},
    enableTLSForSentinelMode: true,
  });
});

test("a service without a Redis can be stopped", async () => {
  const log = { info: nothing, warn: nothing, error: nothing };
  const running = new Service("chat", { log }).start("redis://127.0.0.1:1");
  assert.equal(await running.stop(), true);
});

test("a URL that is none is refused at once", () => {
  assert.throws(() => new Service("chat").start("nonsense"), TypeError);
});
