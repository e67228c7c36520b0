// The server of Socket.IO's own, for tests that compare. Says its port; what clients emit as "burst" it answers by so
// many events of so many bytes, and what they emit as "count" by how many events it got before.
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const { pingInterval, pingTimeout } = JSON.parse(process.argv[2] ?? "{}");
const io = new Server(http, { pingInterval, pingTimeout });

io.on("connection", (socket) => {
  let events = 0;
  socket.onAny((name, ...args) => {
    if (name === "test:all:count") socket.emit("counted", events);
    else if (name === "test:all:burst") for (let n = 0; n < args[0].number; n += 1) socket.emit("said", "x".repeat(args[0].size));
    else events += 1;
  });
});

http.listen(0, "127.0.0.1", () => console.log(http.address().port));
process.stdin.resume().on("close", () => process.exit());
