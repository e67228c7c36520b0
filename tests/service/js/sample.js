/**
 * A service for tests, as a program: `node sample.js REDIS_URL JSON`. The JSON is what the Python kit's EventProcessor is
 * made with, and the handlers are those of tests/service/sample.py. What they did they note in Redis.
 */

import { setTimeout as pause } from "node:timers/promises";

import { Refused, Service } from "kraftek-service";

const [url, json] = process.argv.slice(2);
const IN_MILLISECONDS = new Set(["claim_after", "grace", "timeout"]);
const settings = Object.entries(JSON.parse(json)).map(([name, value]) => [
  name.replace(/_./g, (found) => found[1].toUpperCase()),
  IN_MILLISECONDS.has(name) ? value * 1000 : value,
]);
const sample = new Service("sample", Object.fromEntries(settings));

class RuntimeError extends Error {
  name = "RuntimeError";
}

/** What msgspec says of a wrong payload, as a library of schemas would have it. */
const place = {
  "~standard": {
    version: 1,
    vendor: "sample",
    validate(value) {
      const wrong = (message, ...path) => ({ issues: [{ message, path }] });
      if (value === null || typeof value !== "object") return wrong(`Expected \`object\`, got \`${value}\``);
      if (!("x" in value)) return wrong("Object missing required field `x`");
      if (value.x < 0) return wrong("Expected `int` >= 0", "x");
      const { x, label = "here" } = value;
      return typeof label === "string" ? { value: { x, label } } : wrong("Expected `str`, got `int`", { key: "label" });
    },
  },
};

sample
  .on("say:back", (context, payload) => payload)
  .on("say:later", async (context, payload) => {
    await pause(10);
    return payload;
  })
  .on("say:awaitable", () => pause(10))
  .on("say:nothing", () => {})
  .on("say:silent", () => {}, { answers: false })
  .on("say:afterwards", (context) => context.answerLater())
  .on("say:who", ({ userId, socketId, roomId, eventType, id, source, timestamp }) => ({
    user_id: userId,
    socket_id: socketId,
    room_id: roomId ?? null,
    event_type: eventType,
    id,
    source: source ?? null,
    timestamp,
  }))
  .on("say:explicitly", (context, payload) => context.reply(payload))
  .on("say:twice", (context, payload) => {
    context.reply(payload);
    return payload;
  })
  .on("go:to", place, (context, where) => where)
  .on("tell:heard", (context, { payload, users, timeout = 5 }) =>
    context.broadcastWithReceipt("sample:told:heard", payload, { userIds: users, timeout: 1000 * timeout }))
  .on("tell:all", (context, payload) => {
    context.broadcastToRoom("sample:told:room", payload);
    context.broadcastToRoom("sample:told:others", payload, { exclude: [context.socketId] });
    context.broadcastToRoom("sample:told:there", payload, { roomId: "there" });
    context.broadcastToUser("sample:told:user", payload, "bob");
    context.broadcastToUsers("sample:told:nobody", payload, []);
    context.broadcastToSockets("sample:told:socket", payload, [context.socketId]);
    context.also("SET", "also", JSON.stringify(payload).replace(":", ": "));
  })
  .on("tell:rooms", (context, { rooms = [], users = [], also = [], emit = "" }) => {
    for (const [number, roomId] of rooms.entries()) context.broadcastToRoom("sample:told:rooms", number, { roomId });
    context.broadcastToUsers("sample:told:users", "here", users);
    if (emit) context.emit(emit);
    if (also.length) context.also(...also);
  })
  .on("tell:everybody", (context, payload) => {
    context.broadcastToEverybody("sample:told:everybody", payload, { exclude: [context.socketId] });
    context.disconnect({});
    const whom = { userIds: ["bob", ""], socketIds: context.socketId, roomId: "r" };
    context.disconnect({ ...whom, code: "BANNED", message: "bye" });
    context.disconnect({ userIds: ["eve"] });
    if (payload === "wrong") context.disconnect({ userIds: ["eve"], code: "banned" });
  })
  .on("tell:enter", (context, room) => {
    context.putInRoom(room, { userIds: ["bob", ""], socketIds: context.socketId });
    context.putInRoom(room, { userIds: ["eve"], permissions: [] });
    context.putInRoom(room, {});
    context.removeFromRoom(room, { userIds: ["mallory"] });
  })
  .on("tell:half", async (context, payload) => {
    context.broadcastToRoom("sample:told:room", payload);
    context.also("SET", "also", 1);
    await pause(0);
    throw new Error("secret reason");
  })
  .on("do:refuse", () => {
    throw new Refused("NOT_NOW", "come back", { retryAfter: 2.5 });
  })
  .on("do:fail", () => {
    throw new Error("secret reason");
  })
  .on("do:flaky", async (context, times) => {
    const tried = await context.redis("INCR", `tried:${context.userId}`);
    context.broadcastToSockets("sample:tried:once", tried, [context.socketId]);
    if (tried <= times) throw new RuntimeError("not yet");
    return tried;
  })
  .on("do:sleep", async (context, { seconds, mark = 0 }) => {
    await context.redis("RPUSH", `begun:${context.roomId}`, mark);
    await pause(seconds * 1000);
    context.also("RPUSH", `done:${context.roomId}`, mark);
    context.also("HINCRBY", "by", process.pid, 1);
    return { mark, pid: process.pid };
  })
  .on("do:step", async (context, { seconds, mark }) => {
    const [steps, what] = [`steps:${context.roomId}`, `${mark} ${process.pid}`];
    await context.redis("RPUSH", steps, `begun ${what}`);
    await pause(seconds * 1000);
    context.also("RPUSH", steps, `done ${what}`);
    context.also("HINCRBY", "by", process.pid, 1);
  })
  .on("do:hang", async (context, payload) => {
    await context.redis("RPUSH", `begun:${context.roomId}`, payload);
    await pause(3_600_000);
  })
  .on("do:wait", async (context, payload) => {
    await context.redis("RPUSH", `begun:${context.roomId}`, payload);
    try {
      await pause(3_600_000, undefined, { signal: context.signal });
    } catch (error) {
      context.broadcastToRoom("sample:told:room", context.cancelled ? "cancelled" : "stopped");
      if (payload !== "tidy") throw error;
    }
  })
  .on("say:parts", async (context, texts) => {
    const heard = [];
    for (const text of texts) heard.push(await context.progress(text));
    if (context.userId === "flaky" && (await context.redis("INCR", "flaky")) === 1) throw new RuntimeError("not yet");
    return heard;
  }, { timeout: 1_000 })
  .on("say:slowly", async (context, texts) => {
    for (const text of texts) {
      await pause(400);
      await context.progress(text);
    }
    return texts.join("");
  }, { timeout: 1_500 })
  .on("say:text", async (context, pieces) => {
    const offsets = [];
    for (const [number, piece] of pieces.entries()) {
      await pause(500);
      const ends = { first: number === 0, last: number + 1 === pieces.length, id: `${context.id}-${number}` };
      const { offset } = await context.appendToRoom("sample:told:text", "k", piece, ends);
      offsets.push(offset);
    }
    return offsets;
  }, { timeout: 1_500 })
  .on("do:long", async (context, seconds) => {
    await pause(seconds * 1000);
    return "done";
  }, { timeout: 60_000 })
  .on("do:block", async (context, seconds) => {
    await context.redis("RPUSH", `begun:${context.roomId}`, 0);
    const nobody = new Int32Array(new SharedArrayBuffer(4));
    for (const until = performance.now() + seconds * 1000; performance.now() < until; ) Atomics.wait(nobody, 0, 0, 10);
    await context.redis("PING");
    return { pid: process.pid };
  })
  .on("do:write", async (context, { before = [], also = [], emit = "" }) => {
    if (before.length) await context.redis(...before);
    context.reply("written");
    context.broadcastToRoom("sample:told:room", "written");
    if (emit) context.emit(emit);
    if (also.length) context.also(...also);
  })
  .on("do:die", async (context, times) => {
    const died = await context.redis("INCR", `died:${context.roomId}`);
    if (died <= times) process.kill(process.pid, "SIGKILL");
    return died;
  })
  .on("ask:other", async (context, { event, payload, timeout = 10 }) => ({
    answer: await context.request(event, payload, { timeout: timeout * 1000 }),
  }))
  .on("ask:nobody", (context, { event, payload }) => context.emit(event, payload))
  .on("ask:room", async (context) => Object.fromEntries(await context.whoIsIn()))
  .on("gateway:client:joined", async (context) => {
    context.broadcastToRoom("sample:people:changed", [...(await context.whoIsIn()).keys()].sort());
  })
  .on("gateway:room:reset", async (context) => {
    await pause(100);
    context.broadcastToRoom("sample:rooms:reset", null, { roomId: "all" });
  });

await sample.run(url);
