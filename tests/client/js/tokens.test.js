import assert from "node:assert/strict";
import { test } from "node:test";
import { told, world } from "./world.js";

/** A client whose token expires in 100 s, unless it is said otherwise; `tokens` has what its callback says. */
async function ready(t, { expiresIn = 100, random = () => 0.5, roomId = "r1" } = {}) {
  const here = await world(t);
  const tokens = ["t0"];
  const asked = [];
  const token = async (why) => {
    asked.push(why);
    const [next] = tokens;
    if (tokens.length > 1) tokens.shift();
    if (next instanceof Error) throw next;
    return next;
  };
  const client = here.connect({ token, random, roomId, heartbeat: Infinity });
  const peer = await here.peer();
  const { id } = await peer.hear("authenticate");
  const isReady = told(client, "state", ({ state }) => state === "ready");
  peer.say("authenticated", { userId: "ada", expiresIn }, { id });
  await isReady;
  tokens[0] = "t1";
  return { ...here, client, peer, tokens, asked, nextPeer: here.peer };
}

/** The client shows this token, and it is good for so long. */
async function refreshed(client, peer, token, expiresIn) {
  const { payload, id } = await peer.hear("authenticate");
  assert.deepEqual(payload, { token });
  const seen = told(client, "a:b:seen");
  peer.say("authenticated", { userId: "ada", expiresIn }, { id });
  peer.say("a:b:seen");
  await seen;
}

for (const [random, after] of [[0, 70_000], [0.5, 80_000], [0.99, 89_800]]) {
  test(`shows another token after ${after} ms of 100 s`, async (t) => {
    const { client, peer, clock, asked, tokens } = await ready(t, { random: () => random });
    clock.pass(after - 1);
    assert.equal(asked.length, 1);
    clock.pass(1);
    await refreshed(client, peer, "t1", 1000);
    assert.deepEqual(asked[1], { refused: false });
    client.emit("a:b:c", 1);
    await peer.hear("a:b:c");
    tokens[0] = "t2";
    clock.pass(7 * after);
    assert.equal(asked.length, 2);
    clock.pass(3 * after + 1);
    await refreshed(client, peer, "t2");
    await peer.end();
  });
}

test("the room that expires first counts", async (t) => {
  const { client, peer, clock } = await ready(t);
  const joined = client.join("r2");
  const { id } = await peer.hear("join");
  peer.say("joined", { roomId: "r2", expiresIn: 10 }, { id });
  await joined;
  clock.pass(8_000);
  await refreshed(client, peer, "t1", 100);
});

for (const expiresIn of [null, 2 ** 31, 4_102_444_800, "7"]) {
  test(`sets no timer for ${expiresIn}`, async (t) => {
    const { client, clock } = await ready(t, { expiresIn });
    assert.equal(client.state, "ready");
    assert.equal(clock.timers, 0);
  });
}

test("asks less and less often for another token than the same one", async (t) => {
  const { client, clock, tokens, asked } = await ready(t);
  tokens[0] = "t0";
  clock.pass(80_000);
  for (const wait of [1500, 3000, 6000, 12_000, 24_000]) {
    const before = asked.length;
    await new Promise(setImmediate);
    clock.pass(wait - 1);
    assert.equal(asked.length, before);
    clock.pass(1);
    assert.equal(asked.length, before + 1);
    await new Promise(setImmediate);
  }
  assert.equal(client.state, "ready");
});

test("a callback that fails leaves the connection as it is", async (t) => {
  const { client, peer, clock, tokens } = await ready(t);
  tokens.splice(0, 1, new Error("away"), "t1");
  await assert.rejects(client.refresh(), { code: "NO_TOKEN" });
  assert.equal(client.state, "ready");
  clock.pass(1500);
  await refreshed(client, peer, "t1");
});

test("refreshes by hand", async (t) => {
  const { client, peer, tokens } = await ready(t, { expiresIn: undefined });
  const both = [client.refresh(), client.refresh()];
  await refreshed(client, peer, "t1");
  assert.deepEqual(await Promise.all(both), [undefined, undefined]);
  await assert.rejects(client.refresh(), { code: "SAME_TOKEN" });
  tokens[0] = "t2";
  const refused = client.refresh();
  const { id } = await peer.hear("authenticate");
  peer.refuse(id, "AUTH_UNAVAILABLE", { retryAfter: 1 });
  await assert.rejects(refused, { code: "AUTH_UNAVAILABLE" });
  client.close();
  await assert.rejects(client.refresh(), { code: "CLOSED" });
});

test("a refresh whose connection is lost counts with the next one", async (t) => {
  const here = await ready(t);
  const { client, peer, clock } = here;
  const done = client.refresh();
  await peer.hear("authenticate");
  const waiting = told(client, "state", ({ state }) => state === "waiting");
  peer.socket.close(1001);
  clock.pass((await waiting).wait);
  const next = await here.nextPeer();
  await next.admit();
  await done;
});

test("a token that has expired is replaced, and what was refused is sent again", async (t) => {
  const { client, peer } = await ready(t);
  const answer = client.request("a:b:c");
  const { id } = await peer.hear("a:b:c");
  peer.say("error", { code: "TOKEN_EXPIRED", message: "it is" }, { roomId: "r1" });
  peer.refuse(id, "TOKEN_EXPIRED");
  const { id: shown } = await peer.hear("authenticate");
  client.emit("a:b:d");
  peer.say("authenticated", { userId: "ada" }, { id: shown });
  const again = await peer.hear("a:b:c");
  assert.equal(again.id, id);
  peer.say("a:b:c", 7, { id });
  assert.equal(await answer, 7);
  await peer.hear("a:b:d");
  assert.deepEqual(client.rooms, ["r1"]);
});
