// The same job on Node: Socket.IO and ioredis. Started by the benchmark as
// `node gateway.js PORT REDIS_PORT PING_SECONDS`.
//
// It authenticates (open: userId = "user_<token>"), keeps rooms in memory and in the Redis hash `room:<id>`,
// publishes `service:module:name` events to the service's channel, and emits what arrives on `events:broadcast`.
// WebSocket transport only; ioredis joins the commands of one turn of the loop into one write (auto-pipelining).
//
// Not done here: an access cache and permissions, duplicate logins, several rooms per socket, limits, compare and
// delete when leaving, requests with answers, metrics, coming back after Redis was away.
"use strict";

const { createServer } = require("node:http");
const Redis = require("ioredis");
const { Server } = require("socket.io");

const [port, redisPort, pingSeconds] = process.argv.slice(2).map(Number);
const services = new Map([["bench", "events:bench"]]);

const options = { host: "127.0.0.1", port: redisPort, enableAutoPipelining: true };
const redis = new Redis(options);
const subscriber = new Redis(options);

const http = createServer();
const io = new Server(http, { transports: ["websocket"], serveClient: false, pingInterval: pingSeconds * 1000 });

io.on("connection", (socket) => {
  socket.on("authenticate", async ({ token, roomId }) => {
    const userId = `user_${token}`;
    socket.data = { userId, roomId };
    await Promise.all([
      redis.hset(`room:${roomId}`, userId, socket.id),
      redis.set(`socket:${userId}:${roomId}`, socket.id),
    ]);
    socket.join(roomId);
    socket.emit("authenticated", { success: true, userId, roomId });
  });

  socket.onAny(async (eventType, payload) => {
    if (eventType === "authenticate") return;
    const { userId, roomId } = socket.data;
    if (userId === undefined) {
      socket.emit("error", { code: "NOT_AUTHENTICATED", message: "Authenticate first", eventType });
      return;
    }
    const parts = eventType.split(":");
    const channel = services.get(parts[0]);
    if (parts.length !== 3 || channel === undefined) {
      const message = "Event type is not valid or service is not registered";
      socket.emit("error", { code: "INVALID_EVENT", message, eventType });
      return;
    }
    const event = { eventType, userId, socketId: socket.id, roomId, payload, timestamp: Date.now() };
    const heard = await redis.publish(channel, JSON.stringify(event));
    if (heard === 0) {
      socket.emit("error", { code: "SERVICE_UNAVAILABLE", message: "Nobody listens", eventType });
    }
  });

  socket.on("disconnect", () => {
    const { userId, roomId } = socket.data;
    if (userId === undefined) return;
    redis.hdel(`room:${roomId}`, userId);
    redis.del(`socket:${userId}:${roomId}`);
  });
});

subscriber.on("pmessage", (_pattern, _channel, text) => {
  const { type, recipients, payload, excludeSocketIds } = JSON.parse(text);
  if (recipients?.length) {
    const excluded = new Set(excludeSocketIds);
    for (const id of recipients) {
      if (!excluded.has(id)) io.sockets.sockets.get(id)?.emit(type, payload);
    }
  } else if (payload?.roomId) {
    io.to(payload.roomId).except(excludeSocketIds ?? []).emit(type, payload);
  }
});

subscriber.psubscribe("events:broadcast").then(() => http.listen(port, "127.0.0.1", 4096));
process.on("SIGTERM", () => process.exit(0));
