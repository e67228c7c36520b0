/** What a service is told about its registration, and when: word for word what the SDK for Python says. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const { Service } = await import("kraftek-service");
const { compare, Comparison } = await import(`${process.env.KIT}/comparison.js`);
const { Away, Rejected } = await import(`${process.env.KIT}/errors.js`);

/** The same for both SDKs. */
const cases = JSON.parse(readFileSync(process.env.COMPARISONS, "utf8"));

const buffers = (texts) => texts.map((text) => Buffer.from(typeof text === "string" ? text : JSON.stringify(text)));

for (const { name, given, published, channels, ...finding } of cases) {
  test(name, async () => {
    const call = async (command, key) => {
      if (command !== "HVALS") return buffers(channels);
      assert.equal(key, `${given.prefix}gateways:registrations`);
      return buffers(published);
    };
    assert.deepEqual(await compare(call, given), finding);
  });
}

function watched(options = {}) {
  const said = [];
  const log = { info: (text) => said.push(["info", text]), warn: (text) => said.push(["warn", text]), error() {} };
  const place = { answer: [], said, looks: async (times) => {
    said.length = 0;
    for (let look = 0; look < times; look += 1) await place.comparison.look();
    return said.map(([level]) => level);
  } };
  place.service = new Service("chat", { log, ...options });
  const call = async () => {
    if (place.answer instanceof Error) throw place.answer;
    return buffers(place.answer);
  };
  place.comparison = new Comparison(place.service, call, (timeout) => place.service.registered(timeout));
  return place;
}

const gateway = (service) => ({ version: 1, broadcast: "events:broadcast", services: { chat: service } });
const same = gateway({ channel: "events:chat" });
const other = gateway({ channel: "events:chat", transport: "stream" });

test("a difference is told once, and again when it has changed", async () => {
  const place = watched();
  place.answer = [same];
  assert.deepEqual(await place.looks(2), []);
  place.answer = [other];
  assert.deepEqual(await place.looks(3), ["warn"]);
  place.answer = [gateway({ channel: "x" })];
  assert.deepEqual(await place.looks(2), ["warn"]);
  place.answer = [same];
  assert.deepEqual(await place.looks(2), ["info"]);
  assert.equal(place.said[0][1], "Service chat agrees with its registration at the gateways");
});

test("its handlers may take as long as gateways wait", async () => {
  const [place, own] = [watched(), watched({ timeout: 2_000 })];
  for (const here of [place, own]) {
    here.answer = [gateway({ channel: "events:chat", timeout: 30 })];
    assert.deepEqual(await here.looks(2), []);
  }
  assert.deepEqual([place.service.timeout, own.service.timeout], [30_000, 2_000]);
  place.answer = [];
  await place.looks(1);
  assert.equal(place.service.timeout, 30_000, "as long as nobody says otherwise");
});

test("gateways that differ for a moment are not mentioned", async () => {
  const place = watched();
  place.answer = [same, other];
  assert.deepEqual(await place.looks(1), []);
  place.answer = [same, same];
  assert.deepEqual(await place.looks(2), []);
  place.answer = [same, other];
  assert.deepEqual(await place.looks(3), ["warn"]);
});

test("what Redis refuses stops nothing", async () => {
  const place = watched();
  place.answer = new Away("gone");
  assert.deepEqual(await place.looks(2), []);
  place.answer = new Rejected("NOPERM x");
  assert.deepEqual(await place.looks(2), ["info"]);
  assert.match(place.said[0][1], /Redis refuses that: NOPERM x$/);
  place.answer = [same];
  assert.deepEqual(await place.looks(1), ["info"]);
  place.answer = new TypeError("a bug");
  await assert.rejects(place.looks(1), TypeError);
});

test("its own settings are compared without the prefix", async () => {
  const place = watched({ channel: "talk", prefix: "k:", broadcast: "all", reply: false });
  place.answer = [{ ...gateway({ channel: "talk", reply: true }), broadcast: "all" }];
  assert.deepEqual(await place.looks(1), ["warn"]);
  assert.match(place.said[0][1], /reply is false here, and true at the gateways/);
});

test("it looks until it is stopped", async () => {
  const place = watched();
  place.comparison.start();
  await place.comparison.look();
  place.comparison.stop();
  place.answer = [other];
  assert.deepEqual(await place.looks(2), []);
});
