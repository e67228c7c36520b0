/** What is read from the gateway, and what is written for it. */

import assert from "node:assert/strict";
import { test } from "node:test";

const { encode, open, openAnswer } = await import(`${process.env.KIT}/envelopes.js`);

const event = (fields) => open(Buffer.from(typeof fields === "string" ? fields : JSON.stringify(fields)));
const written = (fields, most = 1e6) => encode("a:b:c", fields, most);

test("an event of the original gateway is enough", () => {
  assert.deepEqual(event({ eventType: "a:b:c" }), {
    eventType: "a:b:c",
    userId: "",
    socketId: "",
    roomId: undefined,
    id: undefined,
    replyTo: "",
    timestamp: 0,
    source: undefined,
    traceparent: undefined,
    payload: null,
    progress: false,
  });
});

for (const [name, text] of Object.entries({
  "no UTF-8": Buffer.from([0x7b, 0xff, 0x7d]),
  "no JSON": "{",
  "no object": "[]",
  null: "null",
  "no name": "{}",
  "another type": '{"eventType": 7}',
  "a user who is a number": '{"eventType": "a:b:c", "userId": 7}',
  "an id that is a fraction": '{"eventType": "a:b:c", "id": 1.5}',
  "an id that is too large and no integer": '{"eventType": "a:b:c", "id": 1e400}',
  "an id that is a list": '{"eventType": "a:b:c", "id": []}',
  "a timestamp that is text": '{"eventType": "a:b:c", "timestamp": "now"}',
  "half of a pair in a name": '{"eventType": "a:b:c", "roomId": "\\ud83d"}',
  "a byte order mark": '\ufeff{"eventType": "a:b:c"}',
})) {
  test(`no event: ${name}`, () => {
    assert.throws(() => open(Buffer.from(text)), { name: "NoEvent" });
  });
}

for (const id of ["0", "-7", "9007199254740991", "9007199254740993", "-9223372036854775809", "18446744073709551616"]) {
  test(`the id ${id} goes back byte for byte`, () => {
    const payload = `{"id": 1, "deep": [{"id": 2}, "\\"id\\": 3, \\\\", {"a": {"id": 4}}]}`;
    const { id: read } = event(`{"id": 5, "payload": ${payload}, "eventType":"a:b:c", "id" : ${id} , "x": "id"}`);
    assert.equal(written({ type: "a:b:c", inReplyTo: read }), `{"type":"a:b:c","inReplyTo":${id}}`);
    assert.equal(openAnswer(Buffer.from(`{"inReplyTo": ${id}}`)).inReplyTo, read);
  });
}

test("an id in a string stays a string", () => {
  assert.equal(event({ eventType: "a:b:c", id: "9007199254740993" }).id, "9007199254740993");
});

test("an escaped name is the same name", () => {
  assert.equal(event('{"eventType":"a:b:c","\\u0069d":9007199254740993}').id, 9007199254740993n);
});

test("a large event with a large id takes no longer than its size", () => {
  const payload = JSON.stringify("\\\"".repeat(2_000_000));
  assert.equal(event(`{"eventType":"a:b:c","payload":${payload},"id":9007199254740993}`).id, 9007199254740993n);
});

test("half of a surrogate pair in a payload becomes U+FFFD", () => {
  assert.equal(written({ type: "t", payload: ["\ud83d", "\\ud83d", "🎉", "\\\udc00"] }),
    '{"type":"t","payload":["\\ufffd","\\\\ud83d","🎉","\\\\\\ufffd"]}');
});

test("half of a surrogate pair in a name is an error", () => {
  assert.throws(() => written({ type: "t", roomId: "\ud83d" }), TypeError);
  assert.throws(() => written({ type: "t", recipients: ["\ud83d"] }), TypeError);
  assert.equal(written({ type: "\\ud83d" }), '{"type":"\\\\ud83d"}');
});

test("nothing is null, and what has no value is left out", () => {
  assert.equal(written({ type: "t", payload: undefined, roomId: undefined }), '{"type":"t","payload":null}');
});

test("what is too large says by how much", () => {
  assert.equal(written({ payload: "é" }, 16).length, 15);
  assert.throws(() => written({ payload: "éé" }, 16), { name: "TooLarge", message: /^a:b:c: a message of 18 bytes; at most 16/ });
});
