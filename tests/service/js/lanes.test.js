/** The order in which waiting events are handled, who is refused, and which were cancelled (tests/service/test_cancels.py). */

import assert from "node:assert/strict";
import { test } from "node:test";

const { Cancels } = await import(`${process.env.KIT}/cancels.js`);
const { EVENTS, Hands, Lanes, SIZE } = await import(`${process.env.KIT}/lanes.js`);

/** Have an event wait, if it may. */
function put(lanes, item, user, lane, size) {
  const takes = lanes.takes(lane, user, size);
  if (takes) lanes.put(item, lane, user, size);
  return takes;
}

/** Take what can be taken: names of events, and what says that each was handled. */
function takeAll(lanes) {
  const [items, handled] = [[], []];
  for (let taken = lanes.take(); taken; taken = lanes.take()) {
    items.push(taken[0]);
    handled.push(taken[1]);
  }
  return [items, handled];
}

test("a room's events are handled one after the other, and rooms beside each other", () => {
  const lanes = new Lanes();
  for (const name of ["a1", "a2", "b1", "a3", "b2"]) put(lanes, name, "ada", name[0], 1);
  const [first, handled] = takeAll(lanes);
  assert.deepEqual(first, ["a1", "b1"]);
  handled[1]();
  assert.deepEqual(lanes.take()[0], "b2");
  assert.equal(lanes.take(), undefined);
  handled[0]();
  assert.deepEqual(lanes.take()[0], "a2");
});

test("who is in no place, requests of services and what is unordered wait for nobody", () => {
  for (const [unordered, event] of [
    [false, { userId: "ada", socketId: "" }],
    [false, { userId: "ada", socketId: "1", roomId: "room", source: "other", id: 1 }],
    [true, { userId: "ada", socketId: "1", roomId: "room" }],
  ]) {
    const begun = [];
    const hands = new Hands(2, unordered, (item, ended) => begun.push([item, ended]));
    for (const name of ["1", "2", "3"]) assert.equal(hands.put(name, event, 1), true);
    assert.deepEqual(begun.map(([item]) => item), ["1", "2"]);
    assert.equal(hands.waiting, 1);
    begun[1][1]();
    assert.deepEqual(begun.map(([item]) => item), ["1", "2", "3"]);
  }
});

test("a reset of the rooms is handled alone", () => {
  const [begun, ends] = [[], new Map()];
  const hands = new Hands(9, false, (item, ended) => {
    begun.push(item);
    ends.set(item, ended);
  });
  const event = (item, roomId) => hands.put(item, { eventType: "a:b:c", userId: "ada", socketId: "1", roomId }, 1);
  const reset = (item) => hands.put(item, { eventType: "gateway:room:reset", userId: "", socketId: "" }, 1);
  event("red1", "red");
  event("red2", "red");
  event("blue1", "blue");
  reset("first");
  event("red3", "red");
  event("green1", "green");
  assert.deepEqual(begun.splice(0), ["red1", "blue1"]);
  for (const item of ["blue1", "red1"]) ends.get(item)();
  assert.deepEqual(begun.splice(0), ["red2"]);
  ends.get("red2")();
  assert.deepEqual(begun.splice(0), ["first"]);
  event("blue2", "blue");
  reset("second");
  reset("third");
  event("red4", "red");
  ends.get("first")();
  assert.deepEqual(begun.splice(0), ["red3", "green1", "blue2"]);
  for (const item of ["red3", "green1", "blue2"]) ends.get(item)();
  assert.deepEqual(begun.splice(0), ["second"]);
  ends.get("second")();
  assert.deepEqual(begun.splice(0), ["third"]);
  ends.get("third")();
  assert.deepEqual(begun.splice(0), ["red4"]);
  ends.get("red4")();
  reset("last");
  assert.deepEqual(begun, ["last"]);
  assert.equal(hands.waiting, 0);
});

test("of what can be read again only the first of a room is kept", () => {
  const made = [];
  const hands = new Hands(1, false, () => {});
  const event = { userId: "ada", socketId: "1", roomId: "room" };
  for (let number = 0; number < EVENTS + 1; number += 1) hands.putAll((kept) => made.push(kept), event, 1000);
  assert.equal(made.filter(Boolean).length, 101); // one of them is in hand
  assert.equal(hands.waiting, EVENTS);
});

test("a room that was empty meanwhile begins anew", () => {
  const lanes = new Lanes();
  for (const name of ["first", "second"]) {
    put(lanes, name, "ada", "room", 1);
    const [item, handled] = lanes.take();
    assert.equal(item, name);
    handled();
  }
  assert.equal(lanes.take(), undefined);
});

test("users come in turn, whatever rooms they send from", () => {
  const lanes = new Lanes();
  for (let number = 0; number < 5; number += 1) put(lanes, `ada${number}`, "ada", `room${number}`, 1);
  put(lanes, "bob", "bob", "bobs", 1);
  put(lanes, "cy", "cy", "cys", 1);
  assert.deepEqual(takeAll(lanes)[0], ["ada0", "bob", "cy", "ada1", "ada2", "ada3", "ada4"]);
});

test("a room is its next user's", () => {
  const lanes = new Lanes();
  put(lanes, "ada", "ada", "room", 1);
  put(lanes, "bob", "bob", "room", 1);
  const [item, handled] = lanes.take();
  handled();
  assert.deepEqual([item, lanes.take()[0]], ["ada", "bob"]);
});

test("a user has as many waiting as is still free", () => {
  const lanes = new Lanes();
  let taken = 0;
  while (put(lanes, "flood", "bob", `room${taken}`, 1)) taken += 1;
  assert.equal(taken, EVENTS / 2);
  assert.equal(put(lanes, "word", "ada", "room", 1), true);
  lanes.take();
  lanes.take();
  assert.equal(put(lanes, "flood", "bob", "room", 1), true);
});

test("bytes count as well, and one event may always wait", () => {
  const lanes = new Lanes();
  assert.equal(put(lanes, "large", "ada", "one", SIZE + 1), true);
  assert.equal(put(lanes, "word", "bob", "two", 1), false);
  lanes.take();
  assert.equal(put(lanes, "half", "ada", "three", SIZE / 2), true);
  assert.equal(put(lanes, "more", "ada", "three", 1), false);
  assert.equal(put(lanes, "word", "bob", "two", SIZE / 2), true);
});

test("what was handled is not remembered", () => {
  const lanes = new Lanes();
  for (let round = 0; round < 3; round += 1) {
    let taken = 0;
    while (put(lanes, "event", "ada", "room", 1)) taken += 1;
    assert.equal(taken, EVENTS / 2);
    for (let next = lanes.take(); next; next = lanes.take()) next[1]();
  }
});

const [MOST, OF_USER] = [10_000, 1_000];

/** A service, and what says that a request is cancelled. */
function hearsOfCancels() {
  let hears;
  const connection = { subscribe: (channel, listener) => (hears = listener) };
  const cancels = new Cancels({ name: "chat", prefix: "" }, connection, assert.fail);
  cancels.begin();
  const hear = (userId, id) =>
    hears(Buffer.from(JSON.stringify({ eventType: "chat:a:b", userId, id, timestamp: 1000 })));
  const named = (userId, id) => ({ eventType: "chat:a:b", userId, id, socketId: "g.1", timestamp: 1000 });
  return { cancels, hear, named };
}

test("the flood of a user pushes out its own alone", () => {
  const { cancels, hear, named } = hearsOfCancels();
  hear("eve", 1);
  for (let id = 0; id < MOST; id++) hear("ada", id);
  hear("ada", MOST - OF_USER);
  assert(cancels.has(named("eve", 1)));
  const first = MOST - OF_USER;
  assert.deepEqual([first - 1, first, first + 1].map((id) => cancels.has(named("ada", id))), [false, true, true]);
});

test("only so many are known", () => {
  const { cancels, hear, named } = hearsOfCancels();
  for (let user = 0; user <= MOST; user++) hear(String(user), 1);
  assert(!cancels.has(named("0", 1)));
  assert(cancels.has(named("1", 1)));
});

test("of those that run the one is cancelled that it names", () => {
  const { cancels, hear, named } = hearsOfCancels();
  const cancelled = [];
  for (const id of [1, "1", 2]) cancels.running.add({ ...named("ada", id), cancel: () => cancelled.push(id) });
  hear("ada", "1");
  assert.deepEqual(cancelled, ["1"]);
});
