import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { connect, KraftekError, state, told, world } from "./world.js";

const names = JSON.parse(await readFile(new URL("../names.json", import.meta.url), "utf8"));
const rejected = (promise) => promise.then(() => assert.fail("it was not rejected"), (error) => error);

test("emits events, and tells what services say", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ roomId: "r1" });
  assert.equal(client.emit("chat:message:send", { text: "größe 🎉" }), true);
  assert.deepEqual(await peer.hear("chat:message:send"), { type: "chat:message:send", payload: { text: "größe 🎉" } });
  client.emit("chat:message:send", 7, { roomId: "r2" });
  assert.equal((await peer.hear("chat:message:send")).roomId, "r2");

  const heard = new Promise((resolve) => client.on("chat:message:sent", (...all) => resolve(all)));
  peer.say("chat:message:sent", { text: "Hi" }, { roomId: "r1" });
  assert.deepEqual(await heard, [{ text: "Hi" }, { roomId: "r1" }]);
});

test("a request gets its own answer, whatever its type and order", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const [first, second] = [client.request("chat:room:who"), client.request("chat:a:b", [1], { roomId: "r2" })];
  const { id, ...rest } = await peer.hear("chat:room:who");
  assert.deepEqual(rest, { type: "chat:room:who" });
  const other = await peer.hear("chat:a:b");
  assert.deepEqual([other.payload, other.roomId], [[1], "r2"]);
  assert.match(id, /^[0-9a-f]{16}-\d+$/);
  assert.notEqual(id, other.id);
  peer.say("ack", { receivers: 2 }, { id: other.id });
  peer.say("chat:room:members", { users: ["ada"] }, { id });
  assert.deepEqual(await second, { receivers: 2 });
  assert.deepEqual(await first, { users: ["ada"] });
  // An answer is its request's alone, also the second.
  client.on("chat:room:members", () => assert.fail("told"));
  peer.say("chat:room:members", { users: ["eve"] }, { id });
  peer.say("chat:the:end", null);
  await told(client, "chat:the:end");
});

test("ids of two clients differ", async (t) => {
  const here = await world(t);
  const ids = [];
  for (const name of ["one", "other"]) {
    const { client, peer } = await here.ready();
    client.request(`chat:from:${name}`).catch(() => {});
    ids.push((await peer.hear(`chat:from:${name}`)).id);
  }
  assert.notEqual(ids[0], ids[1]);
  assert.ok(ids.every((id) => id.length <= 64));
});

test("an error rejects its request, and is told when it belongs to none", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  client.on("error", () => {});
  const answer = rejected(client.request("chat:a:b"));
  const { id } = await peer.hear("chat:a:b");
  peer.refuse(id, "SERVICE_UNAVAILABLE", { retryAfter: 2, eventType: "chat:a:b" });
  const error = await answer;
  assert.ok(error instanceof KraftekError && error instanceof Error);
  assert.deepEqual(
    [error.name, error.code, error.message, error.retryAfter, error.eventType],
    ["KraftekError", "SERVICE_UNAVAILABLE", "SERVICE_UNAVAILABLE it is", 2, "chat:a:b"],
  );
  peer.say("error", { code: "ACCESS_DENIED", message: "no", eventType: "chat:c:d" });
  const told_ = await told(client, "error");
  assert.deepEqual([told_.code, told_.eventType, told_.retryAfter], ["ACCESS_DENIED", "chat:c:d", undefined]);
});

test("nobody else can say our own words", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const heard = [];
  for (const own of ["state", "dropped"]) {
    client.on(own, (what) => heard.push(what));
    peer.say(own, { state: "closed" });
  }
  peer.say("chat:the:end", null);
  await told(client, "chat:the:end");
  assert.deepEqual(heard, []);
});

test("what names no event is not sent", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const wrong = { name: "TypeError", message: /^an event's name is service:module:name, of at most 128 characters/ };
  for (const name of [...names.bad, `a:b:${"ж".repeat(125)}`, undefined]) {
    assert.throws(() => client.emit(name), wrong, name);
    await assert.rejects(client.request(name), wrong, name);
  }
  // What follows is the first that arrives.
  for (const name of [...names.good, `a:b:${"🎉".repeat(124)}`]) {
    client.emit(name);
    await peer.hear(name);
  }
});

test("nobody but the gateway says who we are", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  peer.say("connected", { socketId: "other" });
  peer.say("connected", null);
  peer.say("chat:the:end", null);
  await told(client, "chat:the:end");
  assert.equal(client.socketId, "gateway.socket");
});

test("listeners come and go", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const heard = [];
  const listener = (payload) => heard.push(payload);
  assert.equal(client.on("chat:a:b", listener).once("chat:a:b", (payload) => heard.push(`once ${payload}`)), client);
  for (const payload of [1, 2, 3]) {
    peer.say("chat:a:b", payload);
    peer.say("chat:the:end", null);
    await told(client, "chat:the:end");
    if (payload === 2) client.off("chat:a:b", listener);
  }
  client.off("chat:c:d", listener);
  assert.deepEqual(heard, [1, "once 1", 2]);
});

test("a subscription that is ended twice ends no other one", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const heard = [];
  const ended = () => heard.push("ended");
  client.on("chat:a:b", ended).on("chat:a:b", (payload) => heard.push(payload)).once("chat:c:d", ended);
  client.off("chat:a:b", ended).off("chat:a:b", ended).off("chat:a:b", ended);
  peer.say("chat:a:b", 1);
  peer.say("chat:c:d", null);
  peer.say("chat:the:end", null);
  await told(client, "chat:the:end");
  assert.deepEqual(heard, [1, "ended"]);
});

test("what a listener has failed on is not acknowledged", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const failures = [];
  t.mock.method(globalThis, "queueMicrotask", (fail) => failures.push(fail));
  client.on("chat:a:b", (payload) => {
    if (payload === "bad") throw new Error("not handled");
  }).on("chat:a:b", () => {});
  for (const [payload, receipt] of [["bad", 1], ["good", "2"], ["good", 3]]) peer.say("chat:a:b", payload, { receipt });
  assert.deepEqual(await peer.hear("receipt"), { type: "receipt", id: 3 });
  assert.equal(failures.length, 1);
  assert.throws(failures[0], /not handled/);
});

test("a listener that another one has ended is not called any more", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const heard = [];
  const ended = () => heard.push("ended");
  client.on("chat:a:b", () => client.off("chat:a:b", ended)).on("chat:a:b", ended);
  peer.say("chat:a:b", null);
  peer.say("chat:the:end", null);
  await told(client, "chat:the:end");
  assert.deepEqual(heard, []);
});

test("once is once, though a listener before it causes more", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const heard = [];
  client.on("state", ({ state }) => state === "waiting" && client.close());
  client.once("state", ({ state }) => heard.push(state));
  peer.socket.terminate();
  await told(client, "state", ({ state }) => state === "waiting");
  assert.deepEqual(heard, ["closed"]);
});

test("what is sent before it is ready waits, in order", async (t) => {
  const here = await world(t);
  const client = here.connect();
  const payload = { n: 1 };
  assert.equal(client.emit("chat:a:1", payload), true);
  payload.n = 100;
  const answer = client.request("chat:a:2");
  client.emit("chat:a:3");
  const peer = await here.peer();
  await peer.admit();
  assert.deepEqual((await peer.hear("chat:a:1")).payload, { n: 1 });
  const { id } = await peer.hear("chat:a:2");
  assert.equal((await peer.hear("chat:a:3")).id, undefined);
  peer.say("ack", { receivers: 1 }, { id });
  await answer;
});

test("what is volatile is sent now or never", async (t) => {
  const here = await world(t);
  const client = here.connect();
  client.on("dropped", () => assert.fail("told"));
  assert.equal(client.emit("chat:e:1", null, { volatile: true }), false);
  const peer = await here.peer();
  await peer.admit();
  await state(client, "ready");
  assert.equal(client.emit("chat:e:2", { x: 1 }, { volatile: true, roomId: "r1" }), true);
  assert.equal(client.emit("chat:e:3", "x".repeat(20_000)), true);
  assert.equal(client.emit("chat:e:4", null, { volatile: true }), false);
  assert.deepEqual(await peer.hear("chat:e:2"), { type: "chat:e:2", payload: { x: 1 }, roomId: "r1" });
  await peer.hear("chat:e:3");
  const gone = state(client, "waiting");
  await peer.end();
  await gone;
  assert.equal(client.emit("chat:e:5", null, { volatile: true }), false);
  assert.throws(() => client.emit("chat", null, { volatile: true }), TypeError);
  client.close();
  assert.equal(client.emit("chat:e:6", null, { volatile: true }), false);
});

test("what was missed is told as a gap", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const heard = new Promise((resolve) => client.on("gap", resolve));
  peer.say("gap", { rooms: { r1: { "chat:typing:*": 2 } } });
  assert.deepEqual(await heard, { rooms: { r1: { "chat:typing:*": 2 } } });
});

test("requests without an answer are sent again with their id, and nothing else is", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const requests = ["chat:a:1", "chat:a:2", "chat:a:3"].map((type) => client.request(type, type));
  client.emit("chat:e:1");
  const ids = {};
  for (const type of ["chat:a:1", "chat:a:2", "chat:a:3"]) ids[type] = (await peer.hear(type)).id;
  await peer.hear("chat:e:1");
  peer.say("ack", 2, { id: ids["chat:a:2"] });
  assert.equal(await requests[1], 2);
  const gone = state(client, "waiting");
  await peer.end();
  await gone;
  client.emit("chat:e:2");

  here.clock.pass(10_000);
  const next = await here.peer();
  await next.admit();
  for (const type of ["chat:a:1", "chat:a:3"]) {
    const message = await next.hear(type);
    assert.deepEqual(message, { type, payload: type, id: ids[type], resent: true });
    next.say("ack", type, { id: message.id });
  }
  await next.hear("chat:e:2");
  assert.deepEqual(await Promise.all(requests), ["chat:a:1", 2, "chat:a:3"]);
  await next.end();
});

test("a request is sent again for the room that it was first sent from", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ roomId: "r1", timeout: 60_000 });
  const joining = client.join("r2");
  await peer.letJoin();
  await joining;
  const answers = [client.request("chat:a:1"), client.request("chat:a:2", 1, { roomId: "r2" })];
  const first = await peer.hear("chat:a:1");
  assert.equal(first.roomId, "r1");
  const second = await peer.hear("chat:a:2");
  client.leave("r1");
  answers.push(client.request("chat:a:3"));
  assert.equal((await peer.hear("leave")).payload.roomId, "r1");
  const third = await peer.hear("chat:a:3");
  assert.equal(third.roomId, "r2");

  let last = peer;
  for (let n = 0; n < 2; n += 1) {
    const gone = state(client, "waiting");
    await last.end();
    await gone;
    here.clock.pass(10_000);
    last = await here.peer();
    assert.deepEqual((await last.admit()).roomId, "r2");
    for (const before of [first, second, third]) {
      assert.deepEqual(await last.hear(before.type), { ...before, resent: true });
    }
  }
  for (const { id, type } of [first, second, third]) last.say("ack", type, { id });
  assert.deepEqual(await Promise.all(answers), ["chat:a:1", "chat:a:2", "chat:a:3"]);
  await last.end();
});

test("a request that was sent from no room is sent again from none", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const answer = client.request("chat:a:1");
  const first = await peer.hear("chat:a:1");
  assert.equal(first.roomId, undefined);
  const joining = client.join("r1");
  await peer.letJoin();
  await joining;
  const later = client.request("chat:a:2");
  const second = await peer.hear("chat:a:2");
  assert.equal(second.roomId, "r1");

  const gone = state(client, "waiting");
  await peer.end();
  await gone;
  here.clock.pass(10_000);
  const next = await here.peer();
  assert.equal((await next.admit()).roomId, undefined);
  assert.deepEqual(await next.hear("chat:a:1"), { ...first, resent: true });
  assert.equal(await next.letJoin(), "r1");
  assert.deepEqual(await next.hear("chat:a:2"), { ...second, resent: true });
  for (const { id, type } of [first, second]) next.say("ack", type, { id });
  assert.deepEqual([await answer, await later], ["chat:a:1", "chat:a:2"]);

  // Nothing from nowhere is left: it shows its room again.
  const left = state(client, "waiting");
  await next.end();
  await left;
  here.clock.pass(10_000);
  const last = await here.peer();
  assert.equal((await last.admit()).roomId, "r1");
  await last.end();
});

test("what waits is bounded", async (t) => {
  const here = await world(t);
  const client = here.connect({ queue: 1 });
  const dropped = [];
  client.on("dropped", (event) => dropped.push(event));
  assert.equal(client.emit("chat:a:1"), true);
  // Events that wait take no request's place.
  const answer = client.request("chat:a:2");
  assert.equal(client.emit("chat:a:3", { n: 3 }, { roomId: "r1" }), false);
  assert.deepEqual(dropped, [{ type: "chat:a:3", payload: { n: 3 }, roomId: "r1" }]);
  const error = await rejected(client.request("chat:a:4"));
  assert.deepEqual([error.code, error.eventType], ["QUEUE_FULL", "chat:a:4"]);

  const peer = await here.peer();
  const ready = state(client, "ready");
  await peer.admit();
  await ready;
  // The event is gone, the request counts until it is answered.
  assert.equal((await rejected(client.request("chat:a:5"))).code, "QUEUE_FULL");
  assert.equal(client.emit("chat:a:6"), true);
  await peer.hear("chat:a:1");
  peer.say("ack", 2, { id: (await peer.hear("chat:a:2")).id });
  await peer.hear("chat:a:6");
  assert.equal(await answer, 2);
});

test("what the other end does not read is bounded, too", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  peer.socket.pause();
  const large = "x".repeat(60_000);
  const dropped = told(client, "dropped");
  for (let n = 0; n < 1_000 && client.emit("chat:a:b", large); n += 1) await new Promise(setImmediate);
  assert.equal((await dropped).type, "chat:a:b");
});

test("no answer in time is an error, and a reason to look whether anybody is there", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ timeout: 1_000 });
  const requests = [client.request("chat:a:1"), client.request("chat:a:2", null, { timeout: 200 })].map(rejected);
  const { id } = await peer.hear("chat:a:1");
  await peer.hear("chat:a:2");
  here.clock.pass(200);
  const error = await requests[1];
  assert.deepEqual([error.code, error.eventType, error.message], ["TIMEOUT", "chat:a:2", "no answer within 200 ms"]);
  peer.say("pong", null, { id: (await peer.hear("ping")).id });
  here.clock.pass(800);
  assert.equal((await requests[0]).code, "TIMEOUT");
  // Too late now, and it is not sent again.
  peer.say("ack", 1, { id });
  const gone = state(client, "waiting");
  peer.socket.close(1001);
  await gone;
  here.clock.pass(10_000);
  const next = await here.peer();
  await next.admit();
  await next.end();
});

test("a request may wait for ever", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ heartbeat: Infinity });
  const answer = client.request("chat:a:b", null, { timeout: Infinity });
  assert.equal(here.clock.timers, 0);
  peer.say("ack", "at last", { id: (await peer.hear("chat:a:b")).id });
  assert.equal(await answer, "at last");
});

test("a signal ends the wait", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ heartbeat: Infinity });
  const control = new AbortController();
  const answer = rejected(client.request("chat:a:b", null, { signal: control.signal }));
  await peer.hear("chat:a:b");
  control.abort(new Error("not needed"));
  assert.equal((await answer).message, "not needed");
  assert.deepEqual((await peer.hear("cancel")).payload, { eventType: "chat:a:b" });
  assert.equal((await rejected(client.request("chat:c:d", null, { signal: control.signal }))).message, "not needed");
  assert.equal(here.clock.timers, 0);
  await peer.end();
});

test("closing settles everything", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const answer = rejected(client.request("chat:a:b"));
  await peer.hear("chat:a:b");
  const gone = state(client, "waiting");
  await peer.end();
  await gone;
  client.emit("chat:c:d", [1], { roomId: "r" });
  const entered = rejected(client.join("r9"));
  const dropped = told(client, "dropped");
  client.close();
  assert.deepEqual(await dropped, { type: "chat:c:d", payload: [1], roomId: "r" });
  for (const error of [await answer, await entered, await rejected(client.request("chat:e:f")), await rejected(client.join("r"))]) {
    assert.equal(error.code, "CLOSED");
  }
  assert.equal(client.emit("chat:g:h"), false);
  assert.equal(here.clock.timers, 0);

  client.open();
  const peerAgain = await here.peer();
  await peerAgain.admit();
  await peerAgain.end();
});

test("a message that the gateway finds too big is not sent again for ever", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const requests = [client.request("chat:a:1", "€".repeat(50)), client.request("chat:a:2", "x".repeat(100))];
  const tooLarge = rejected(requests[0]);
  await peer.hear("chat:a:1");
  await peer.hear("chat:a:2");
  const gone = state(client, "waiting");
  await peer.end(1009);
  await gone;
  assert.deepEqual([(await tooLarge).code, (await tooLarge).eventType], ["TOO_LARGE", "chat:a:1"]);
  here.clock.pass(10_000);
  const next = await here.peer();
  await next.admit();
  next.say("ack", 1, { id: (await next.hear("chat:a:2")).id });
  await requests[1];
  await next.end();
});

test("what is no JSON is the caller's mistake", async (t) => {
  const here = await world(t);
  const { client } = await here.ready({ heartbeat: Infinity });
  const circle = {};
  circle.self = circle;
  assert.throws(() => client.emit("chat:a:b", circle), TypeError);
  await assert.rejects(client.request("chat:a:b", circle), TypeError);
  assert.equal(here.clock.timers, 0);
  assert.equal(typeof connect, "function");
});

// The gateway takes no more for a while.

const limited = { retryAfter: 2, limit: "user" };

test("what the gateway limits is sent again in order, and nothing before that", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ roomId: "r1" });
  const requests = ["chat:a:1", "chat:a:2", "chat:a:3"].map((type) => client.request(type, type));
  const asked = [];
  for (const type of ["chat:a:1", "chat:a:2", "chat:a:3"]) asked.push(await peer.hear(type));
  peer.say("ack", 1, { id: asked[0].id });
  for (const { id } of asked.slice(1)) peer.refuse(id, "RATE_LIMITED", limited);
  assert.equal(await requests[0], 1);
  peer.say("chat:a:sign", null);
  await told(client, "chat:a:sign");
  client.emit("chat:e:1");
  const last = client.request("chat:a:4");
  here.clock.pass(2_999);
  peer.say("chat:a:sign", null);
  await told(client, "chat:a:sign");
  assert.equal(peer.messages.length, 0);
  here.clock.pass(1);
  assert.deepEqual(await peer.hear("chat:a:2"), asked[1]);
  assert.deepEqual(await peer.hear("chat:a:3"), asked[2]);
  await peer.hear("chat:e:1");
  const { id } = await peer.hear("chat:a:4");
  for (const [n, each] of [asked[1].id, asked[2].id, id].entries()) peer.say("ack", n, { id: each });
  assert.deepEqual(await Promise.all([...requests.slice(1), last]), [0, 1, 2]);
  await peer.end();
});

test("what the gateway limits for longer than anybody waits is refused", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const request = client.request("chat:a:1", null, { timeout: 3_000 });
  peer.refuse((await peer.hear("chat:a:1")).id, "RATE_LIMITED", limited);
  await assert.rejects(request, { code: "RATE_LIMITED", retryAfter: 2, limit: "user" });
  client.emit("chat:e:1");
  here.clock.pass(3_000);
  await peer.hear("chat:e:1");
  await peer.end();
});

test("what a service limits is its answer", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const request = client.request("chat:a:1");
  peer.refuse((await peer.hear("chat:a:1")).id, "RATE_LIMITED", { retryAfter: 2 });
  await assert.rejects(request, { code: "RATE_LIMITED", limit: undefined });
  client.emit("chat:e:1");
  await peer.hear("chat:e:1");
  await peer.end();
});

test("a limited event holds what comes after it, as far as there is room", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ queue: 1 });
  client.emit("chat:e:1");
  await peer.hear("chat:e:1");
  peer.refuse(undefined, "RATE_LIMITED", limited);
  await told(client, "error");
  assert.equal(client.emit("chat:e:2"), true);
  assert.equal(client.emit("chat:e:3"), false);
  here.clock.pass(3_000);
  await peer.hear("chat:e:2");
  await peer.end();
});

test("a limit outlasts the connection, and a limited request is not one sent again", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ roomId: "r1", timeout: 100_000 });
  const requests = ["chat:a:1", "chat:a:2"].map((type) => client.request(type));
  const [refused, waits] = [await peer.hear("chat:a:1"), await peer.hear("chat:a:2")];
  peer.refuse(refused.id, "RATE_LIMITED", { retryAfter: 30, limit: "user" });
  peer.say("chat:a:sign", null);
  await told(client, "chat:a:sign");
  const gone = state(client, "waiting");
  await peer.end();
  await gone;
  here.clock.pass(1_000);
  const next = await here.peer();
  const ready = state(client, "ready");
  await next.admit();
  await ready;
  client.join("r2");
  await next.letJoin();
  here.clock.pass(44_000);
  assert.deepEqual(await next.hear("chat:a:1"), refused);
  assert.deepEqual(await next.hear("chat:a:2"), { ...waits, resent: true });
  for (const { id } of [refused, waits]) next.say("ack", 0, { id });
  await Promise.all(requests);
  await next.end();
});

test("a limited token and a limited room are shown again, and no timer is left", async (t) => {
  const here = await world(t);
  const client = here.connect();
  const peer = await here.peer();
  const refused = told(client, "error");
  peer.refuse((await peer.hear("authenticate")).id, "RATE_LIMITED", { retryAfter: 1, limit: "questions" });
  await refused;
  here.clock.pass(1_500);
  const ready = state(client, "ready");
  await peer.admit();
  await ready;
  const joining = client.join("r1");
  peer.refuse((await peer.hear("join")).id, "RATE_LIMITED", { retryAfter: 1, limit: "joins" });
  peer.say("chat:a:sign", null);
  await told(client, "chat:a:sign");
  // It is for that room.
  client.emit("chat:e:1");
  here.clock.pass(1_500);
  await peer.letJoin();
  await joining;
  await peer.hear("chat:e:1");
  peer.refuse(undefined, "RATE_LIMITED", limited);
  await told(client, "error");
  const request = client.request("chat:a:1");
  client.close();
  await assert.rejects(request, { code: "CLOSED" });
  assert.equal(here.clock.timers, 0);
});
