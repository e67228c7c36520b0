/** A service, tested as its author would: with the kit's own stand-in for the gateway, and a redis-server of its own. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

const { Refused, Service } = await import("kraftek-service");
const { TestGateway } = await import("kraftek-service/testing");

const errors = [];
const log = { info() {}, warn: (text) => errors.push(text), error: (text) => errors.push(text) };
let gateway;

before(async () => {
  gateway = await TestGateway.start();
});

after(() => gateway.close());

test("what a handler says is delivered as the gateway would", async () => {
  const chat = new Service("chat", { prefix: "p:", log })
    .on("message:send", ({ text }) => ({ text }), async (context, { text }) => {
      context.broadcastToRoom("chat:message:sent", { text }, { exclude: [context.socketId] });
      context.broadcastToUser("chat:you:said", text, context.userId);
      return [...(await context.whoIsIn()).keys()].sort();
    })
    .on("message:refuse", () => {
      throw new Refused("NO", "not here", { retryAfter: 3 });
    });
  await gateway.run(chat);
  const [ada, bob, eve] = [
    await gateway.client("ada", { roomId: "r1" }),
    await gateway.client("bob", { roomId: "r1" }),
    await gateway.client("eve", { roomId: "r2" }),
  ];

  assert.deepEqual(await ada.request("chat:message:send", { text: "Hello" }), ["ada", "bob"]);
  assert.deepEqual(await bob.receive(), { type: "chat:message:sent", payload: { text: "Hello" } });
  assert.deepEqual(await ada.receive(), { type: "chat:you:said", payload: "Hello" });
  await gateway.settle();
  assert.deepEqual([ada.inbox, bob.inbox, eve.inbox], [[], [], []]);
  await assert.rejects(ada.request("chat:message:refuse"), { code: "NO", message: "not here", retryAfter: 3 });
});

test("who has got a message", async () => {
  const news = new Service("news", { prefix: "p:", log })
    .on("item:tell", (context, payload) =>
      context.broadcastWithReceipt("news:item:told", payload, payload === "users" ? { userIds: ["ann", "dan", "ann"] } : {}))
    .on("item:wrong", async (context, payload) => {
      const nobody = await context.broadcastWithReceipt("news:item:told", payload, { userIds: [""] });
      await assert.rejects(context.broadcastWithReceipt("news:item:told", payload, { timeout: 30_001 }), TypeError);
      for (const more of [{ roomId: "r1" }, { exclude: ["g1.s1"] }]) {
        const both = context.broadcastWithReceipt("news:item:told", payload, { userIds: ["ann"], ...more });
        await assert.rejects(both, /expected users, or else a room/);
      }
      const many = Array.from({ length: 1001 }, (_, number) => `${number}`);
      await assert.rejects(context.broadcastWithReceipt("news:item:told", payload, { userIds: many }), /1000 users/);
      return nobody.complete;
    });
  await gateway.run(news);
  const [ann, ben] = [await gateway.client("ann", { roomId: "n1" }), await gateway.client("ben", { roomId: "n1" })];
  ben.acknowledges = false;
  const all = { acknowledged: ["ann"], slow: [], offline: [], owed: [], complete: true };
  assert.deepEqual(await ann.request("news:item:tell", "room"), { ...all, slow: ["ben"] });
  assert.deepEqual(await ann.request("news:item:tell", "users"), { ...all, offline: ["dan"] });
  assert.deepEqual(await ben.receive(), { type: "news:item:told", payload: "room" });
  assert.equal(await ann.request("news:item:wrong"), true);
});

for (const [transport, partitions] of [["pubsub", 0], ["stream", 0], ["stream", 3]]) {
  test(`services ask each other: ${transport} ${partitions}`, async () => {
    const name = `asks${transport}${partitions}`;
    const asks = new Service(name, { transport, partitions, prefix: "p:", log });
    asks.on("one:ask", (context, payload) => context.request("wiki:page:read", payload));
    await gateway.run(asks);
    const ada = await gateway.client("ada", { roomId: "r1" });

    const answer = ada.request(`${name}:one:ask`, "Start");
    const asked = await gateway.emitted();
    assert.deepEqual([asked.eventType, asked.payload, asked.source, asked.userId], ["wiki:page:read", "Start", name, "ada"]);
    await gateway.answer(asked, { title: "Start" });
    assert.deepEqual(await answer, { title: "Start" });
  });
}

test("presence events are sent as they are", async () => {
  const board = new Service("board", { prefix: "p:", log });
  const seen = new Promise((resolve) => board.on("gateway:client:joined", (context) => resolve(context.roomId)));
  await gateway.run(board);
  await gateway.deliver({ eventType: "gateway:client:joined", roomId: "r1" }, board);
  assert.equal(await seen, "r1");
});

test("a context that is used after its handler says so", async () => {
  const late = new Service("late", { prefix: "p:", log });
  const kept = new Promise((resolve) => late.on("a:b", (context) => resolve(context)));
  await gateway.run(late);
  assert.equal(await (await gateway.client("ada")).request("late:a:b"), null);
  const context = await kept;
  assert.throws(() => context.broadcastToUser("late:said:it", 1, "ada"), /the handler of late:a:b has ended/);
  await assert.rejects(context.redis("PING"), /has ended/);
  assert.equal(context.signal.aborted, true);
});

test("a handler has a time limit, and is told", async () => {
  const slow = new Service("slow", { prefix: "p:", timeout: 50, log });
  const aborted = new Promise((resolve) => {
    slow.on("a:b", (context) => new Promise(() => context.signal.addEventListener("abort", resolve)));
  });
  await gateway.run(slow);
  await assert.rejects((await gateway.client("ada")).request("slow:a:b"), { code: "EVENT_PROCESSING_ERROR" });
  await aborted;
  assert(errors.includes("slow:a:b failed"));
});

test("who waits for nothing hears of it", async () => {
  await assert.rejects(gateway.deliver({ eventType: "nobody:a:b" }), /nobody: no such service was run or registered/);
});
