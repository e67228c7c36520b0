import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket as OtherWebSocket } from "ws";
import { connect, Kraftek, state, told, until, world } from "./world.js";

test("authenticates with what the callback says, and is ready", async (t) => {
  const here = await world(t);
  const client = here.connect({ roomId: "r1" });
  assert.equal(client.state, "connecting");
  assert.ok(client instanceof Kraftek);
  const peer = await here.peer();
  assert.equal(peer.socket.protocol, "kraftek.v1.json");
  const ready = state(client, "ready");
  assert.deepEqual(await peer.admit(), { token: "s3cret", roomId: "r1" });
  assert.deepEqual(await ready, { state: "ready" });
  assert.equal(client.state, "ready");
  assert.deepEqual([client.userId, client.socketId, client.rooms], ["user_ada", "gateway.socket", ["r1"]]);
});

test("shows no room where it has none", async (t) => {
  const here = await world(t);
  const client = here.connect({ roomId: null });
  assert.deepEqual(await (await here.peer()).admit(), { token: "s3cret" });
  await state(client, "ready");
  assert.deepEqual(client.rooms, []);
});

test("connects with the class that it is given", async (t) => {
  const here = await world(t);
  let made = 0;
  class Counted extends OtherWebSocket {
    constructor(...given) {
      super(...given);
      made += 1;
    }
  }
  const { client } = await here.ready({ WebSocket: Counted });
  assert.deepEqual([client.state, made], ["ready", 1]);
  // Given up before it is open, such a socket tells of an error: nobody has to die of it.
  client.open();
  client.close();
  assert.equal(made, 2);
});

test("a refused connection is tried again, also where no close tells of it", async (t) => {
  const here = await world(t);
  const sockets = [];
  class Refused {
    constructor() {
      sockets.push(this);
    }
    close() {}
  }
  const client = here.connect({ WebSocket: Refused });
  const waiting = state(client, "waiting");
  sockets[0].onerror({ type: "error" });
  assert.equal((await waiting).code, 1006);
  here.clock.pass(250);
  assert.deepEqual([client.state, sockets.length], ["connecting", 2]);
  sockets[0].onerror({ type: "error" });
  assert.equal(client.state, "connecting");
});

test("a URL that is none is told at once", () => {
  assert.throws(() => connect("http:// nowhere", { token: () => "" }), { name: "SyntaxError" });
});

test("needs a class where there is no global one", () => {
  assert.throws(() => connect("ws://127.0.0.1:1", { token: () => "", WebSocket: null }), TypeError);
});

test("needs somebody to ask for a token", () => {
  for (const options of [undefined, {}, { token: "s3cret" }]) {
    assert.throws(() => connect("ws://127.0.0.1:1", options), { name: "TypeError", message: /options\.token/ });
  }
});

test("a token that is none is told, and asked for again", async (t) => {
  const here = await world(t);
  const tokens = [undefined, null, 7, { roomId: "r1" }, "s3cret"];
  const client = here.connect({ token: () => tokens.shift() });
  for (const wait of [250, 500, 1000, 2000]) {
    const { code, error } = await state(client, "waiting");
    assert.equal(code, 1006);
    assert.match(error.message, /^expected a string or \{token, roomId\}/);
    await (await here.peer()).gone;
    here.clock.pass(wait);
  }
  assert.deepEqual(await (await here.peer()).admit(), { token: "s3cret" });
  await state(client, "ready");
});

test("who does not speak the gateway's language is left, and tried again", async (t) => {
  const here = await world(t);
  for (const said of ["hello!", "7", "null", "[]", "{}", Buffer.from("{}")]) {
    const { client, peer } = await here.ready();
    const waiting = state(client, "waiting");
    peer.socket.send(said);
    const { code, reason } = await waiting;
    assert.deepEqual([code, reason], [1002, "not kraftek.v1.json"]);
    await peer.gone;
    client.close();
  }
});

test("waits longer and longer, within bounds, and from the bottom after a good connection", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ base: 100, cap: 500, random: () => 0.9 });
  const waits = [];
  let gone = state(client, "waiting");
  await peer.end(1001, "the gateway stops");
  assert.deepEqual(await gone, { state: "waiting", wait: 90, code: 1001, reason: "the gateway stops", error: undefined });
  for (const wait of [90, 180, 360, 450, 450]) {
    here.clock.pass(wait - 1);
    assert.equal(client.state, "waiting");
    here.clock.pass(1);
    assert.equal(client.state, "connecting");
    gone = state(client, "waiting");
    const next = await here.peer();
    await next.hear("authenticate");
    await next.end(1011);
    waits.push((await gone).wait);
  }
  assert.deepEqual(waits, [180, 360, 450, 450, 450]);

  for (const [lasted, wait] of [[4_999, 450], [5_000, 90]]) {
    here.clock.pass(450);
    const ready = state(client, "ready");
    const next = await here.peer();
    await next.admit();
    await ready;
    here.clock.pass(lasted);
    gone = state(client, "waiting");
    await next.end();
    assert.equal((await gone).wait, wait, `after ${lasted} ms`);
  }
});

for (const [code, wait] of [
  [1000, 50], [1001, 50], [1007, 50], [1009, 50], [1011, 50], [1012, 400], [1013, 400], [3000, 50],
  [4399, 50], [4408, 1400], [4413, 1400], [4429, 1400], [4500, 50],
]) {
  test(`comes back after ${code}, in ${wait} ms at this random`, async (t) => {
    const here = await world(t);
    const { client, peer } = await here.ready({ base: 100 });
    const gone = state(client, "waiting");
    await peer.end(code);
    assert.equal((await gone).wait, wait);
    here.clock.pass(wait);
    assert.equal(client.state, "connecting");
    await here.peer();
  });
}

for (const [reconnectAfter, wait] of [[0.25, 250], [0, 0], [-1, 0], [1e9, 60_000], ["1", 400], [null, 400]]) {
  test(`comes back when a gateway that stops says so: ${reconnectAfter}`, async (t) => {
    const here = await world(t);
    const { client, peer } = await here.ready({ base: 100 });
    let gone = state(client, "waiting");
    peer.say("drain", { reconnectAfter });
    await peer.end(1012, "the gateway stops");
    assert.equal((await gone).wait, wait);
    here.clock.pass(wait);
    assert.equal(client.state, "connecting");
    gone = state(client, "waiting");
    await (await here.peer()).socket.close(1011);
    assert.ok([50, 800].includes((await gone).wait));
  });
}

for (const code of [4400, 4403, 4409, 4499]) {
  test(`stays away after ${code}, until it is told otherwise`, async (t) => {
    const here = await world(t);
    const { client, peer } = await here.ready();
    const gone = state(client, "closed");
    peer.say("error", { code: "SOME_REASON", message: "because" });
    await peer.end(code, "SOME_REASON");
    const { error, ...rest } = await gone;
    assert.deepEqual(rest, { state: "closed", code, reason: "SOME_REASON" });
    assert.deepEqual([error.code, error.message], ["SOME_REASON", "because"]);
    assert.equal(here.clock.timers, 0);

    client.open();
    const ready = state(client, "ready");
    await (await here.peer()).admit();
    await ready;
  });
}

test("an older error is not why the connection was closed", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const gone = state(client, "closed");
  peer.say("error", { code: "SERVICE_UNAVAILABLE", message: "away" });
  await peer.end(4403, "ACCESS_REVOKED");
  assert.equal((await gone).error, undefined);
});

test("after 4429 it waits as long as the gateway asks for", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ base: 100 });
  const gone = state(client, "waiting");
  peer.say("error", { code: "RATE_LIMITED", message: "slowly", retryAfter: 7 });
  await peer.end(4429, "RATE_LIMITED");
  assert.equal((await gone).wait, 7_400);
});

test("a refused token is followed by another one, once", async (t) => {
  const here = await world(t);
  const asked = [];
  const client = here.connect({
    token: ({ refused }) => {
      asked.push(refused);
      return refused ? "fresh" : "stale";
    },
  });
  const refuse = async (token) => {
    const peer = await here.peer();
    const { id, payload } = await peer.hear("authenticate");
    assert.equal(payload.token, token);
    peer.refuse(id, "AUTH_FAILED");
    await peer.end(4401, "AUTH_FAILED");
  };
  let gone = state(client, "waiting");
  await refuse("stale");
  const { error, wait } = await gone;
  assert.equal(error.code, "AUTH_FAILED");
  assert.ok(!JSON.stringify([error, error.message]).includes("stale"));
  here.clock.pass(wait);
  const closed = state(client, "closed");
  await refuse("fresh");
  assert.equal((await closed).error.code, "AUTH_FAILED");
  assert.deepEqual(asked, [false, true]);

  // Once it is let in, a later refusal is a first one again.
  client.open();
  let peer = await here.peer();
  const ready = state(client, "ready");
  await peer.admit();
  await ready;
  gone = state(client, "waiting");
  await peer.end(4401, "AUTH_FAILED");
  await gone;
  assert.deepEqual(asked, [false, true, true]);
});

test("asks again on the same socket when access cannot be checked", async (t) => {
  const here = await world(t);
  const client = here.connect();
  const peer = await here.peer();
  const ready = state(client, "ready");
  for (const retryAfter of [2, 30]) {
    const why = told(client, "error");
    peer.refuse((await peer.hear("authenticate")).id, "AUTH_UNAVAILABLE", { retryAfter });
    assert.equal((await why).code, "AUTH_UNAVAILABLE");
    here.clock.pass(1_500 * retryAfter - 1);
    assert.deepEqual([client.state, peer.messages.length], ["connecting", 0]);
    here.clock.pass(1);
  }
  await peer.admit();
  await ready;
});

test("a callback that fails is asked again later", async (t) => {
  const here = await world(t);
  const away = new Error("the login page is away");
  let fails = true;
  const client = here.connect({
    token: async () => {
      if (fails) throw away;
      return { token: "t", roomId: "r7" };
    },
  });
  await here.peer();
  const { error, code, wait } = await state(client, "waiting");
  assert.deepEqual([error, code], [away, 1006]);
  fails = false;
  here.clock.pass(wait);
  assert.deepEqual(await (await here.peer()).admit(), { token: "t", roomId: "r7" });
});

test("a callback that answers too late is not heard", async (t) => {
  const here = await world(t);
  let answer;
  const client = here.connect({ token: () => new Promise((resolve) => (answer = resolve)) });
  const peer = await here.peer();
  await until(() => answer, "a question for a token");
  const late = answer;
  client.open();
  assert.equal(await peer.gone, 1000);
  const next = await here.peer();
  await until(() => answer !== late, "another question for a token");
  late("late");
  answer("in time");
  assert.equal((await next.admit()).token, "in time");
  assert.equal(peer.messages.length, 0);
});

test("gives an attempt up that comes to nothing", async (t) => {
  const here = await world(t);
  const client = here.connect({ patience: 3_000 });
  const peer = await here.peer();
  await peer.hear("authenticate");
  const gone = state(client, "waiting");
  here.clock.pass(3_000);
  assert.equal((await gone).code, 1006);
  await peer.gone;
});

test("close is for good, and leaves nothing behind", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready();
  const changes = [];
  client.on("state", (change) => changes.push(change));
  client.close();
  client.close();
  assert.equal(await peer.gone, 1000);
  assert.deepEqual(changes, [{ state: "closed" }]);
  assert.equal(here.clock.timers, 0);
});

test("silence is looked into: who answers stays, who does not is left", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ heartbeat: 30_000, patience: 10_000 });
  here.clock.pass(20_000);
  peer.say("stickyNotes:a:sign", null);
  await told(client, "stickyNotes:a:sign");
  here.clock.pass(29_999);
  client.emit("stickyNotes:still:nothing");
  await peer.hear("stickyNotes:still:nothing");
  here.clock.pass(1);
  const probe = await peer.hear("ping");
  const errors = [];
  client.on("error", (error) => errors.push(error));
  peer.say("pong", null, { id: probe.id });
  peer.say("stickyNotes:a:sign", null);
  await told(client, "stickyNotes:a:sign");
  here.clock.pass(10_000);
  assert.equal(client.state, "ready");
  assert.deepEqual(errors, []);

  here.clock.pass(20_000);
  await peer.hear("ping");
  const gone = state(client, "waiting");
  here.clock.pass(9_999);
  assert.equal(client.state, "ready");
  here.clock.pass(1);
  assert.equal((await gone).code, 1006);
});

test("without a heartbeat nothing is asked, and no attempt is pending", async (t) => {
  const here = await world(t);
  const { client, peer } = await here.ready({ heartbeat: Infinity });
  assert.equal(here.clock.timers, 0);
  here.clock.pass(1e9);
  assert.equal(client.state, "ready");
  await peer.end();
});

test("a page that is seen again, or has a network again, looks whether anybody is there", async (t) => {
  const [page, shown] = [new EventTarget(), new EventTarget()];
  const restore = ["addEventListener", "removeEventListener", "document"].map((name) => [name, globalThis[name]]);
  t.after(() => restore.forEach(([name, value]) => (globalThis[name] = value)));
  globalThis.addEventListener = page.addEventListener.bind(page);
  globalThis.removeEventListener = page.removeEventListener.bind(page);
  globalThis.document = shown;
  const here = await world(t);
  const { client, peer } = await here.ready();

  for (const look of [
    () => page.dispatchEvent(new Event("online")),
    () => shown.dispatchEvent(new Event("visibilitychange")),
  ]) {
    look();
    look();
    const { id } = await peer.hear("ping");
    peer.refuse(id, "INVALID_EVENT");
    peer.say("stickyNotes:a:sign", null);
    await told(client, "stickyNotes:a:sign");
  }
  shown.hidden = true;
  shown.dispatchEvent(new Event("visibilitychange"));
  const gone = state(client, "waiting");
  await peer.end();
  await gone;
  page.dispatchEvent(new Event("online"));
  assert.equal(client.state, "connecting");
  await here.peer();
  client.close();
  page.dispatchEvent(new Event("online"));
  assert.equal(client.state, "closed");
});

test("credentials that the gateway cannot read are not shown again", async (t) => {
  const here = await world(t);
  const client = here.connect({ token: () => "\ud83d", roomId: "r1" });
  const peer = await here.peer();
  const closed = state(client, "closed");
  peer.refuse((await peer.hear("authenticate")).id, "INVALID_MESSAGE");
  const { code, reason, error } = await closed;
  assert.deepEqual([code, reason, error.code], [4400, "INVALID_MESSAGE", "INVALID_MESSAGE"]);
  assert.equal(here.clock.timers, 0);
});

test("a token that nobody answers for costs the connection", async (t) => {
  const here = await world(t);
  const client = here.connect();
  const peer = await here.peer();
  await peer.hear("authenticate");
  const gone = state(client, "waiting");
  here.clock.pass(10_000);
  assert.equal((await gone).code, 1006);
});
