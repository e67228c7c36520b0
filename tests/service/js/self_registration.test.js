/** A service that registers itself: what it says to Redis, and what of the answers it tells. */

import assert from "node:assert/strict";
import { test } from "node:test";

const { Service } = await import("kraftek-service");
const { SelfRegistration } = await import(`${process.env.KIT}/self_registration.js`);
const { Away, Rejected } = await import(`${process.env.KIT}/errors.js`);

/** As the SDK for Python writes it. */
const OWN = '{"channel":"events:chat-1","transport":"pubsub","partitions":0,"reply":true,"timeout":10}';

function instance(options = {}) {
  const place = { asked: [], said: [], answer: OWN };
  const log = { info: (text) => place.said.push(["info", text]), warn: (text) => place.said.push(["warn", text]), error() {} };
  const service = new Service("chat-1", { prefix: "k:", register: true, reply: true, log, ...options });
  place.registration = new SelfRegistration(service, async (...words) => {
    place.asked.push(words);
    if (place.answer instanceof Error) throw place.answer;
    return Buffer.from(place.answer);
  });
  place.registers = async (times = 1) => {
    place.said.length = 0;
    for (let time = 0; time < times; time += 1) await place.registration.register();
    return place.said.map(([level]) => level);
  };
  return place;
}

test("it registers as the SDK for Python does", async () => {
  const place = instance();
  assert.deepEqual(await place.registers(2), []);
  const [command, source, ...words] = place.asked[0];
  assert.equal(command, "EVAL");
  assert.match(source, /redis.call\('PUBLISH', KEYS\[1\], ''\)/);
  assert.deepEqual(words, [2, "k:gateways:registered", "k:gateways:registered:leases", "chat-1", OWN, 15_000, 256]);
});

test("what it is registered as is what it was given", async () => {
  const place = instance({ transport: "stream", partitions: 2, channel: "x", timeout: 2_500, reply: undefined, claimAfter: 60_000 });
  await place.registers();
  const [words, lifetime] = place.asked[0].slice(6);
  assert.equal(words, '{"channel":"x","transport":"stream","partitions":2,"reply":false,"timeout":2.5}');
  assert.equal(lifetime, 60_000);
});

test("another registration is mentioned once, and so is its end", async () => {
  const place = instance();
  place.answer = "theirs";
  assert.deepEqual(await place.registers(3), ["warn"]);
  assert.equal(place.said[0][1], `Service chat-1 is registered by other instances as theirs, and by this one as ${OWN}. ` +
    "Give all the same; this one counts when the others have ended");
  place.answer = OWN;
  assert.deepEqual(await place.registers(2), ["info"]);
});

test("too many services are too many", async () => {
  const place = instance();
  place.answer = "";
  assert.deepEqual(await place.registers(2), ["warn"]);
  assert.equal(place.said[0][1], "Service chat-1 cannot register itself: 256 services have done so");
});

test("a Redis that is away is nothing to say", async () => {
  const place = instance();
  place.answer = new Away("gone");
  assert.deepEqual(await place.registers(2), []);
});

test("what Redis refuses stops nothing", async () => {
  const place = instance();
  place.answer = new Rejected("NOPERM x");
  assert.deepEqual(await place.registers(2), ["warn"]);
  assert.match(place.said[0][1], /Redis refuses that: NOPERM x$/);
});

test("a bug is no refusal", async () => {
  const place = instance();
  place.answer = new TypeError("a bug");
  await assert.rejects(place.registers(), TypeError);
});

test("it goes on until it is stopped", async () => {
  const place = instance();
  place.registration.start();
  await place.registration.register();
  place.registration.stop();
  assert.equal(place.asked.length, 2);
});
