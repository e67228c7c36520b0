// The official client, driven by lines of JSON: commands on standard input, what happened on standard output.
// A buffer is {"$": "<base64>"} in both.
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const report = (...what) => console.log(JSON.stringify(what));
const outward = (value) => {
  if (Buffer.isBuffer(value)) return { $: value.toString("base64") };
  if (Array.isArray(value)) return value.map(outward);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, outward(inner)]));
};
const inward = (value) => {
  if (Array.isArray(value)) return value.map(inward);
  if (value === null || typeof value !== "object") return value;
  if ("$" in value) return Buffer.from(value.$, "base64");
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, inward(inner)]));
};

let socket;
const commands = {
  started() {
    report("started");
  },
  connect(url, { tokens, ...options }) {
    // As docs/socketio.rst has it: asked at each connection.
    if (tokens) options.auth = (answer) => (report("asked"), answer({ token: tokens.shift(), roomId: "kitchen" }));
    socket = io(url, options);
    socket.on("connect", () => report("connect", socket.id));
    socket.on("connect_error", (error) => report("connect_error", error.message));
    socket.on("disconnect", (reason) => report("disconnect", reason));
    socket.onAny((name, ...args) => report("event", name, ...args.map(outward)));
  },
  emit(...args) {
    socket.emit(...args.map(inward));
  },
  request(...args) {
    socket.emit(...args.map(inward), (...answer) => report("ack", ...answer.map(outward)));
  },
  transport() {
    report("transport", socket.io.engine.transport.name);
  },
  disconnect() {
    socket.disconnect();
  },
  drop() {
    socket.io.engine.close();
  },
  recovered() {
    report("recovered", Boolean(socket.recovered), socket.id);
  },
  reconnect() {
    socket.connect();
  },
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const [command, ...args] = JSON.parse(line);
    commands[command](...args);
  })
  .on("close", () => process.exit());
