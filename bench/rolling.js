/** The clients of `bench.rolling` that use kraftek.js: `node bench/rolling.js URL CLIENTS REQUESTS_A_SECOND`. */

import net from "node:net";
import { createRequire } from "node:module";
import { connect } from "../kraftek/client/js/kraftek.js";

const { WebSocket } = createRequire(new URL("../tests/client/js/package.json", import.meta.url))("ws");
const [url, clients, rate] = process.argv.slice(2);

/** Each connection comes from another address: the proxies choose the gateway by that. */
let connections = 0;
class FromAnotherAddress extends WebSocket {
  constructor(address, protocols) {
    connections += 1;
    const localAddress = `127.250.${1 + (Math.floor(connections / 254) % 254)}.${1 + (connections % 254)}`;
    super(address, protocols, { createConnection: (options) => net.connect({ ...options, localAddress }) });
  }
}

const seen = { asked: 0, latencies: [], refused: {}, codes: {} };
const add = (table, key) => (table[key] = (table[key] ?? 0) + 1);

const members = [];
for (let who = 0; who < Number(clients); who++) {
  const token = `js${who}`;
  const gateway = connect(url, { token: () => token, roomId: `j${who >> 2}`, WebSocket: FromAnotherAddress });
  members.push({ gateway, token });
  await new Promise((ready) => {
    gateway.on("state", ({ state, code }) => {
      if (state === "ready") ready();
      if (state === "waiting" || state === "closed") add(seen.codes, code);
    });
  });
}

let number = 0;
let asks = true;
const underWay = new Set();
async function ask({ gateway, token }, text) {
  seen.asked += 1;
  const began = performance.now();
  try {
    const answer = await gateway.request("chat:say:back", text);
    if (answer !== text) throw new Error(`${answer} instead of ${text}`);
    seen.latencies.push(Math.round(performance.now() - began));
  } catch (error) {
    add(seen.refused, error.code ?? String(error));
  }
}
const began = performance.now();
setInterval(() => {
  while (asks && number < ((performance.now() - began) * Number(rate)) / 1000) {
    const member = members[number % members.length];
    const asking = ask(member, `${member.token}:${number++}`);
    underWay.add(asking);
    asking.finally(() => underWay.delete(asking));
  }
}, 10);
console.log("ready");

process.stdin.once("data", async () => {
  asks = false;
  await Promise.all(underWay);
  console.log(JSON.stringify(seen));
  process.exit(0);
});
