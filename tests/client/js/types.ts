// A program against kraftek.d.ts. It is compiled, never run: what is wrong on purpose must be an error.
import { connect, Kraftek, KraftekError, type Options, type StateChange } from "kraftek";

interface Who {
  users: string[];
}

const options: Options = { token: async ({ refused }) => (refused ? "fresh" : "kept"), roomId: "r1", WebSocket };
const client: Kraftek = connect("wss://gateway.test/", options);
connect("wss://gateway.test/", { token: () => ({ token: "t", roomId: null }), timeout: 5_000, cap: 60_000 });

client
  .on("state", ({ state, wait }: StateChange) => console.log(state, wait?.toFixed(0)))
  .on("error", (error) => console.log(error.code, error.retryAfter, error.roomId))
  .once("dropped", ({ type, payload }) => console.log(type, payload))
  .on("chat:message:sent", (payload: { text: string }, { roomId }) => console.log(payload.text, roomId?.length));

const sent: boolean = client.emit("chat:message:send", { text: "Hi" }, { roomId: "r1" });
const { users } = await client.request<Who>("chat:room:who", null, { timeout: 1_000, signal: AbortSignal.abort() });
console.log(sent, users.join());
await client.join("r2", { timeout: 1_000 });
client.leave("r2");
await client.request("chat:bot:ask", null, { onProgress: (part: { text: string }, { number }) => console.log(part.text, number + 1) });
await client.join("r2", { history: 50 });
const { messages, before } = await client.history("r2", { limit: 10 });
if (before) await client.history("r2", { before, timeout: 1_000 });
console.log(messages.map(({ type, payload, offset }) => [type, payload.text, offset.toFixed()]));

client.on("recovered", ({ roomId, recovered, reason }) => console.log(roomId?.length, recovered === true, reason?.length));
const end: () => void = client.snapshot("r1", async () => console.log(await client.request<Who>("chat:room:who")));
const here = client.roomState("r1", {
  snapshot: async () => (await client.request<Who>("chat:room:who")).users,
  changes: { "chat:room:entered": (users, { user }: { user: string }) => [...users, user] },
});
const away: () => void = client.presence<{ name: string }>("r1", ({ users, count, joined, left }) => {
  console.log(users.map(({ userId, data }) => data?.name ?? userId), count.toFixed(), joined.length, left.join());
});
away();
await client.join("r1", { data: { name: "Ada" } });
const endOfInbox: () => void = client.userSnapshot(() => client.request("inbox:mail:list"));
endOfInbox();
const inbox = client.userState({
  snapshot: () => client.request<string[]>("inbox:mail:list"),
  changes: { "inbox:mail:came": (mails, { id }: { id: string }) => [...mails, id] },
});
console.log(inbox.value?.length);
client.on("inbox:mail:came", (_, { userOffset }) => console.log(userOffset?.toFixed()));
here.subscribe((users) => console.log(users.join(), here.error?.code, here.value?.length));
here.close();
end();
client.close();

try {
  await client.request("chat:room:who");
} catch (error) {
  if (error instanceof KraftekError && error.code === "CLOSED") client.open();
}

// @ts-expect-error a token is needed
connect("wss://gateway.test/", {});
// @ts-expect-error an answer is not known to be anything
(await client.request("chat:room:who")).users;
// @ts-expect-error the state is not for others to change
client.state = "ready";
// @ts-expect-error the state is not there before the first snapshot
here.value.length;
// @ts-expect-error no such state
if (client.state === "live") client.close();
// @ts-expect-error an error is no string
client.on("error", (error: string) => error);
