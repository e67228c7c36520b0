import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { Activity, Component, createElement as h, StrictMode, useEffect } from "react";
import { renderToString } from "react-dom/server";
import { create } from "react-test-renderer";
import { KraftekError, until, world } from "./world.js";

const file = join(dirname(process.env.KRAFTEK_JS), "react.js");
const { GatewayProvider, useEvent, useGateway, usePresence, useRequest, useRoom, useRoomState, useUserState } = await import(file);
/** Another instance of the module: React warns when two renderers share a context. */
const onServer = await import(`${file}?server`);

/** What React complains of: that is a mistake of ours, except that its renderer for tests is old. */
const complaints = [];
console.error = (...what) => /react-test-renderer is deprecated/.test(what[0]) || complaints.push(what.join(" "));

/** What a component got at its last rendering; null when it is gone. */
const seen = {};
const show = (name, what) => (seen[name] = what);

function Here({ name = "room", roomId }) {
  show("gateway", useGateway());
  show(name, useRoom(roomId));
  useEffect(() => () => show(name, null), [name]);
  return null;
}

/** A page: these components, in StrictMode, under a provider of a world's server. */
async function page(t, ...children) {
  const here = await world(t);
  const options = { token: async () => "s3cret", clock: here.clock, random: () => 0.5, heartbeat: Infinity };
  const element = (inside, more) =>
    h(StrictMode, null, h(GatewayProvider, { url: here.url, options: { ...options, ...more } }, ...inside));
  const root = create(element(children));
  t.after(() => root.unmount());
  return { ...here, unmount: () => root.unmount(), render: (inside, more) => root.update(element(inside, more)) };
}

const shown = (what) => until(what, what.toString());

test("a server renders without a connection", async (t) => {
  const { server, url } = await world(t);
  server.on("connection", () => assert.fail("a connection while rendering"));
  function Says() {
    const { client, state } = onServer.useGateway();
    const { entered, error } = onServer.useRoom("r1");
    onServer.useRequest("a:b:c");
    onServer.useEvent("a:b:c", () => {});
    const { state: list } = onServer.useRoomState("r1", { snapshot: () => [], changes: {} });
    const { state: inbox } = onServer.useUserState({ snapshot: () => [] });
    const { users, known } = onServer.usePresence("r1");
    return `${client} ${state} ${entered} ${error} ${list} ${inbox} ${users.length} ${known}`;
  }
  const text = renderToString(h(onServer.GatewayProvider, { url, options: { token: () => "t" } }, h(Says)));
  assert.equal(text, "null connecting false null undefined undefined 0 false");
});

test("what is not in a provider says so", () => {
  assert.throws(() => renderToString(h(Here, { roomId: "r1" })), /expected a <GatewayProvider>/);
});

test("a mistake in the options is told when it is mounted", async (t) => {
  const { url } = await world(t);
  let told;
  class Boundary extends Component {
    state = { failed: false };
    static getDerivedStateFromError = () => ({ failed: true });
    componentDidCatch = (error) => (told = error);
    render = () => (this.state.failed ? null : this.props.children);
  }
  const root = create(h(Boundary, null, h(GatewayProvider, { url, options: {} })));
  t.after(() => root.unmount());
  await until(() => told, "the mistake");
  assert.match(told.message, /expected a function in options.token/);
  complaints.length = 0;
});

test("StrictMode makes one connection, which logs in once", async (t) => {
  const { server, peer, unmount } = await page(t, h(Here, { roomId: "r1" }));
  const one = await peer();
  assert.deepEqual(await one.admit(), { token: "s3cret", roomId: "r1" });
  await shown(() => seen.gateway.state === "ready" && seen.room.entered);
  assert.equal(server.clients.size, 1);
  assert.deepEqual(seen.gateway.client.rooms, ["r1"]);
  unmount();
  assert.equal(await one.gone, 1000);
  assert.equal(one.messages.length, 0);
  assert.equal(seen.gateway.client.state, "closed");
});

test("the token is asked of the last rendering", async (t) => {
  const { peer, render, clock } = await page(t, h(Here, { roomId: "r1" }));
  const one = await peer();
  await one.admit();
  await shown(() => seen.gateway.state === "ready");
  render([h(Here, { roomId: "r1" }), h(Here, { name: "later", roomId: "r1" })], { token: () => "another" });
  await shown(() => seen.later?.entered);
  one.socket.close(1001);
  await shown(() => seen.gateway.state === "waiting" && seen.gateway.code === 1001);
  clock.pass(seen.gateway.wait);
  assert.deepEqual(await (await peer()).admit(), { token: "another", roomId: "r1" });
});

test("a room is left by the last component that is in it", async (t) => {
  const both = [h(Here, { key: 1, name: "one", roomId: "r1" }), h(Here, { key: 2, name: "two", roomId: "r2" })];
  const { peer, render } = await page(t, ...both, h(Here, { key: 3, name: "three", roomId: "r2" }));
  const one = await peer();
  await one.admit();
  assert.equal(await one.letJoin(), "r2");
  await shown(() => seen.two.entered && seen.three.entered);
  render(both);
  seen.gateway.client.emit("a:b:c", 1);
  await one.hear("a:b:c");
  render([both[0]]);
  assert.deepEqual((await one.hear("leave")).payload, { roomId: "r2" });
  assert.deepEqual(seen.gateway.client.rooms, ["r1"]);
});

test("a component in the place of another leaves no gap", async (t) => {
  const { peer, render } = await page(t, h(Here, { key: 1, roomId: "r1" }));
  const one = await peer();
  await one.admit();
  await shown(() => seen.room.entered);
  render([h(Here, { key: 2, name: "other", roomId: "r1" })]);
  await shown(() => seen.other?.entered);
  await new Promise((resolve) => setTimeout(resolve, 1));
  seen.gateway.client.emit("a:b:c", 1);
  await one.hear("a:b:c");
});

for (const roomId of ["r0", "r1"]) {
  test(`the room of the options is not left: ${roomId}`, async (t) => {
    const here = await world(t);
    const options = { token: async () => ({ token: "t", roomId }), clock: here.clock };
    const element = (...inside) => h(GatewayProvider, { url: here.url, options }, h(Here, { key: 0 }), ...inside);
    const root = create(element(h(Here, { key: 1, name: "mine", roomId: "r1" })));
    t.after(() => root.unmount());
    const one = await here.peer();
    assert.equal((await one.admit()).roomId, roomId);
    if (roomId === "r0") assert.equal(await one.letJoin(), "r1");
    await shown(() => seen.mine.entered);
    root.update(element());
    await shown(() => seen.mine === null);
    if (roomId === "r0") assert.deepEqual((await one.hear("leave")).payload, { roomId: "r1" });
    await new Promise((resolve) => setTimeout(resolve, 1));
    seen.gateway.client.emit("a:b:c", 1);
    await one.hear("a:b:c");
  });
}

test("a room in whose place the token names another is entered again", async (t) => {
  const { peer, render, clock } = await page(t);
  const token = () => ({ token: "t", roomId: clock.now() ? "r2" : "r1" });
  render([h(Here, { roomId: "r1" })], { token });
  const one = await peer();
  await one.admit();
  await shown(() => seen.room.entered);
  one.socket.close(1001);
  await shown(() => seen.gateway.state === "waiting");
  clock.pass(seen.gateway.wait);
  const two = await peer();
  assert.equal((await two.admit()).roomId, "r2");
  assert.equal(await two.letJoin(), "r1");
  await shown(() => seen.room.entered && seen.gateway.client.rooms.join() === "r2,r1");
});

test("a room that is denied or taken back says why", async (t) => {
  const both = [h(Here, { name: "one", roomId: "r1" }), h(Here, { name: "two", roomId: "r2" })];
  const { peer, render, clock } = await page(t, ...both);
  const one = await peer();
  await one.admit();
  const { id } = await one.hear("join");
  one.refuse(id, "ACCESS_DENIED");
  await shown(() => seen.two.error?.code === "ACCESS_DENIED");
  assert.ok(seen.two.error instanceof KraftekError);
  assert.equal(seen.gateway.state, "ready");
  render([h(Here, { name: "one", roomId: "r1" }), h(Here, { name: "two", roomId: "r3" })]);
  const { id: later } = await one.hear("join");
  clock.pass(60_000);
  one.say("joined", { roomId: "r3" }, { id: later });
  await shown(() => seen.two.entered);
  one.say("error", { code: "ACCESS_REVOKED", message: "it was" }, { roomId: "r3" });
  await shown(() => !seen.two.entered && seen.two.error.code === "ACCESS_REVOKED");
  assert.ok(seen.one.entered);
});

test("rooms are entered again when it is opened again", async (t) => {
  const { peer } = await page(t, h(Here, { name: "one", roomId: "r1" }), h(Here, { name: "two", roomId: "r2" }));
  const one = await peer();
  await one.admit();
  await one.hear("join");
  one.socket.close(4409, "DUPLICATE_CONNECTION");
  await shown(() => seen.gateway.state === "closed" && !seen.one.entered);
  assert.equal(seen.gateway.code, 4409);
  assert.equal(seen.two.error, null);
  seen.gateway.client.open();
  const two = await peer();
  await two.admit();
  assert.equal(await two.letJoin(), "r2");
  await shown(() => seen.one.entered && seen.two.entered && seen.gateway.state === "ready");
});

test("another address is another client, in the same rooms", async (t) => {
  const [here, there] = [await world(t), await world(t)];
  const element = (url, options, ...inside) =>
    h(GatewayProvider, { url, options: { token: () => "t", clock: here.clock, ...options } }, h(Here, { name: "no" }), ...inside);
  const root = create(element(here.url, {}, h(Here, { roomId: "r1" })));
  t.after(() => root.unmount());
  const one = await here.peer();
  await one.admit();
  await shown(() => seen.room?.entered);
  const before = seen.gateway.client;
  const options = { roomId: "r1" };
  root.update(element(there.url, options, h(Here, { roomId: "r1" })));
  const two = await there.peer();
  assert.equal((await two.admit()).roomId, "r1");
  assert.equal(await one.gone, 1000);
  await shown(() => seen.room.entered && seen.gateway.client !== before && seen.gateway.state === "ready");
  // That one is in the room by its options.
  root.update(element(there.url, options));
  await shown(() => seen.room === null);
  await new Promise((resolve) => setTimeout(resolve, 1));
  seen.gateway.client.emit("a:b:c", 1);
  await two.hear("a:b:c");
});

test("what is hidden is closed, and opened again when it is shown", async (t) => {
  const here = await world(t);
  const options = { token: () => "t", clock: here.clock };
  const element = (mode) =>
    h(Activity, { mode }, h(GatewayProvider, { url: here.url, options }, h(Here, { name: "hidden", roomId: "r1" })));
  const root = create(element("visible"));
  t.after(() => root.unmount());
  const one = await here.peer();
  await one.admit();
  await shown(() => seen.hidden?.entered);
  const { client } = seen.gateway;
  root.update(element("hidden"));
  assert.equal(await one.gone, 1000);
  root.update(element("visible"));
  const two = await here.peer();
  assert.equal((await two.admit()).roomId, "r1");
  await shown(() => seen.hidden?.entered && seen.gateway.state === "ready");
  assert.equal(seen.gateway.client, client);
});

test("a request is asked when it is called, also in the first effect", async (t) => {
  const functions = new Set();
  function Asks() {
    const ask = useRequest("a:b:c");
    functions.add(ask);
    useEffect(() => {
      ask({ n: 1 }, { roomId: "r1" }).then((answer) => show("answer", answer));
    }, [ask]);
    show("ask", ask);
    return null;
  }
  const { peer, unmount } = await page(t, h(Asks), h(Here, { roomId: "r1" }));
  const one = await peer();
  await one.admit();
  // Twice, because StrictMode runs an effect twice.
  for (let count = 0; count < 2; count += 1) {
    const { payload, roomId, id } = await one.hear("a:b:c");
    assert.deepEqual([payload, roomId], [{ n: 1 }, "r1"]);
    one.say("a:b:c", count, { id });
  }
  await shown(() => seen.answer === 1);
  assert.equal(one.messages.length, 0);
  unmount();
  await one.gone;
  await assert.rejects(seen.ask(), { code: "CLOSED" });
});

test("the newest listener hears, and none after the end", async (t) => {
  function Hears({ count }) {
    useEvent("a:b:said", (payload, { roomId }) => show("heard", [count, payload, roomId]));
    useEffect(() => {
      show("hearing", count);
      return () => show("hearing", null);
    }, [count]);
    return null;
  }
  const { peer, render } = await page(t, h(Hears, { count: 1 }), h(Here, { roomId: "r1" }));
  const one = await peer();
  await one.admit();
  await shown(() => seen.gateway.state === "ready");
  one.say("a:b:said", "hi", { roomId: "r1" });
  await shown(() => seen.heard?.join() === "1,hi,r1");
  render([h(Hears, { count: 2 }), h(Here, { roomId: "r1" })]);
  await shown(() => seen.hearing === 2);
  one.say("a:b:said", "hi");
  await shown(() => seen.heard.join() === "2,hi,");
  render([null, h(Here, { roomId: "r1" })]);
  seen.gateway.client.on("a:b:said", () => show("last", true));
  await shown(() => seen.hearing === null);
  one.say("a:b:said", "bye");
  await shown(() => seen.last);
  assert.equal(seen.heard[1], "hi");
});

test("the state of a room is that of its snapshot and its messages", async (t) => {
  const fetches = [];
  function List({ roomId, added }) {
    const snapshot = () => new Promise((...how) => fetches.push(how));
    show("list", useRoomState(roomId, { snapshot, changes: { "a:b:added": (list, each) => [...list, added(each)] } }));
    useEffect(() => show("added", added));
    return null;
  }
  const { peer, render, unmount } = await page(t, h(List, { roomId: "r1", added: (each) => each }));
  const one = await peer();
  const { id } = await one.hear("authenticate");
  one.say("authenticated", { userId: "ada", roomId: "r1", epoch: "e", offset: 1 }, { id });
  await shown(() => fetches.length);
  assert.deepEqual(seen.list, { state: undefined, error: null });
  one.say("a:b:added", 2, { roomId: "r1", offset: 2 });
  fetches.pop()[0]([1]);
  await shown(() => seen.list.state?.length === 2);
  const negative = (each) => -each;
  render([h(List, { roomId: "r1", added: negative })]);
  await shown(() => seen.added === negative);
  one.say("a:b:added", 3, { roomId: "r1", offset: 3 });
  await shown(() => seen.list.state.length === 3);
  assert.deepEqual(seen.list, { state: [1, 2, -3], error: null });
  one.say("position", { epoch: "f", offset: 1, recovered: false, reason: "epoch" }, { roomId: "r1" });
  await shown(() => fetches.length);
  fetches.pop()[1](new Error("no service"));
  await shown(() => seen.list.error?.code === "NO_SNAPSHOT");
  assert.deepEqual(seen.list.state, [1, 2, -3]);

  render([h(List, { roomId: "r2", added: (each) => each })]);
  await shown(() => seen.list.state === undefined);
  const joined = await one.hear("join");
  one.say("error", { code: "ACCESS_DENIED", message: "no" }, { id: joined.id });
  await shown(() => seen.list.error?.code === "ACCESS_DENIED");
  assert.equal(fetches.length, 0);
  unmount();
  assert.equal(await one.gone, 1000);
});

test("the state of the user is that of its snapshot and what it is told", async (t) => {
  const fetches = [];
  function Inbox({ added }) {
    const snapshot = () => new Promise((...how) => fetches.push(how));
    show("inbox", useUserState({ snapshot, changes: { "a:b:added": (list, each) => [...list, added(each)] } }));
    return null;
  }
  const { peer, unmount } = await page(t, h(Inbox, { added: (each) => each }));
  const one = await peer();
  const { id } = await one.hear("authenticate");
  one.say("authenticated", { userId: "ada", roomId: null, userPosition: { epoch: "u", offset: 1 } }, { id });
  await shown(() => fetches.length);
  assert.deepEqual(seen.inbox, { state: undefined, error: null });
  one.say("a:b:added", 2, { userOffset: 2 });
  one.say("a:b:added", 0, { roomId: "r1" });
  fetches.pop()[0]([1]);
  await shown(() => seen.inbox.state?.length === 2);
  assert.deepEqual(seen.inbox, { state: [1, 2], error: null });
  one.say("error", { code: "RATE_LIMITED", message: "later" });
  one.say("position", { epoch: "v", offset: 1, recovered: false, reason: "epoch" });
  await shown(() => fetches.length);
  assert.equal(seen.inbox.error, null);
  fetches.pop()[1](new Error("no service"));
  await shown(() => seen.inbox.error?.code === "NO_SNAPSHOT");
  assert.deepEqual(seen.inbox.state, [1, 2]);
  unmount();
  assert.equal(await one.gone, 1000);
});

test("who is in a room is shown, and why nobody says it", async (t) => {
  function People({ roomId }) {
    show("people", usePresence(roomId));
    return null;
  }
  const { peer, render, unmount } = await page(t, h(People, { roomId: "r1" }));
  const one = await peer();
  await one.admit();
  const asked = await one.hear("presence");
  assert.deepEqual(asked.payload, { roomId: "r1" });
  assert.deepEqual(seen.people, { users: [], count: 0, known: false, error: null });
  one.say("presence", { roomId: "r1", count: 1, version: "v", users: [{ userId: "ada" }] }, { id: asked.id });
  await shown(() => seen.people.known);
  one.say("presence", { roomId: "r1", count: 9, version: "w", joined: [{ userId: "bob", data: 1 }] }, { roomId: "r1" });
  await shown(() => seen.people.count === 9);
  assert.deepEqual(seen.people.users, [{ userId: "ada" }, { userId: "bob", data: 1 }]);
  const no = { code: "ACCESS_DENIED", message: "no", eventType: "gateway:room:presence" };
  one.say("error", no, { roomId: "r1" });
  await shown(() => seen.people.error?.code === "ACCESS_DENIED");
  assert.equal(seen.people.count, 9);

  render([h(People, { roomId: "r2" })]);
  await shown(() => !seen.people.known);
  assert.deepEqual((await one.hear("presence")).payload, { roomId: "r1", changes: false, version: "w" });
  const joined = await one.hear("join");
  await one.hear("leave");
  one.say("joined", { roomId: "r2" }, { id: joined.id });
  const again = await one.hear("presence");
  assert.deepEqual(again.payload, { roomId: "r2" });
  one.say("error", { code: "NO_PRESENCE", message: "none" }, { id: again.id });
  await shown(() => seen.people.error?.code === "NO_PRESENCE");
  unmount();
  assert.equal(await one.gone, 1000);
});

test("React had nothing to complain of", () => assert.deepEqual(complaints, []));
