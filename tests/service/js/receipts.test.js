/** Who has got a message, by what gateways say of it: the same cases as of the SDK for Python. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const { Collector } = await import(`${process.env.KIT}/receipts.js`);
const CASES = JSON.parse(readFileSync(process.env.RECEIPTS, "utf8"));
const EMPTY = { acknowledged: [], slow: [], offline: [], owed: [], complete: false };

for (const { name, gateways, users, here = {}, but_for: butFor, steps } of CASES) {
  test(name, () => {
    const collector = new Collector(gateways, users, Object.entries(here), butFor);
    for (const { says, is, done = false } of steps) {
      if (says) collector.heard(says);
      else assert.deepEqual([collector.receipt(), collector.done], [{ ...EMPTY, ...is }, done]);
    }
  });
}

test("what is no part of a receipt changes nothing", () => {
  const collector = new Collector(["a"], ["ann"], []);
  for (const odd of [null, 7, "a", {}, { gatewayId: 7 }]) collector.heard(odd);
  assert.deepEqual(collector.receipt(), { ...EMPTY, owed: ["ann"] });
  collector.heard({ gatewayId: "a", acknowledged: "ann", waiting: [7, "ann"] });
  assert.deepEqual(collector.receipt(), { ...EMPTY, owed: ["ann"] });
});
