/** What a service knows of requests that their clients have cancelled: as tests/service/test_cancels.py. */

import assert from "node:assert/strict";
import { test } from "node:test";

const { Cancels } = await import(`${process.env.KIT}/cancels.js`);

const [MOST, OF_USER] = [10_000, 1_000];

/** A service, and what says that a request is cancelled. */
function listening() {
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
  const { cancels, hear, named } = listening();
  hear("eve", 1);
  for (let id = 0; id < MOST; id++) hear("ada", id);
  hear("ada", MOST - OF_USER);
  assert(cancels.has(named("eve", 1)));
  const first = MOST - OF_USER;
  assert.deepEqual([first - 1, first, first + 1].map((id) => cancels.has(named("ada", id))), [false, true, true]);
});

test("only so many are known", () => {
  const { cancels, hear, named } = listening();
  for (let user = 0; user <= MOST; user++) hear(String(user), 1);
  assert(!cancels.has(named("0", 1)));
  assert(cancels.has(named("1", 1)));
});

test("of those that run the one is cancelled that it names", () => {
  const { cancels, hear, named } = listening();
  const cancelled = [];
  for (const id of [1, "1", 2]) cancels.running.add({ ...named("ada", id), cancel: () => cancelled.push(id) });
  hear("ada", "1");
  assert.deepEqual(cancelled, ["1"]);
});
