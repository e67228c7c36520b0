// A client of the demo, in a project that has the npm package alone. Node 20 has no WebSocket of its own: that of ws does.
import { connect } from "kraftek";

const [url, ws] = process.argv.slice(2);
const WebSocket = globalThis.WebSocket ?? (await import(ws)).WebSocket;
const gateway = connect(url, { token: () => "ada", roomId: "kitchen", WebSocket });

const tooLate = setTimeout(() => process.exit(1), 30_000);
gateway.on("stickyNotes:board:opened", ({ roomId, notes }) => {
  if (roomId !== "kitchen" || notes.length) process.exit(1);
  clearTimeout(tooLate);
  gateway.close();
});
gateway.emit("stickyNotes:board:open", {});
