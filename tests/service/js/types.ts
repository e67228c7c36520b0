/** What a TypeScript service writes; compiled, not run. Lines that must not compile say so. */

import { type Context, type Handler, Refused, type Running, type Schema, Service, TooLarge } from "kraftek-service";

interface Message {
  text: string;
}

const service: Service = new Service("chat", { channel: "events:chat", transport: "stream", partitions: 4, timeout: 5_000 });

const message = (payload: unknown): Message => {
  if (typeof payload === "object" && payload !== null && "text" in payload && typeof payload.text === "string") {
    return { text: payload.text };
  }
  throw new TypeError("expected a text");
};

/** The shape of what Zod, Valibot and ArkType make. */
declare const standard: {
  "~standard": {
    version: 1;
    vendor: string;
    validate: (value: unknown) => { value: Message; issues?: undefined } | { issues: { message: string }[] };
    types?: { input: Message; output: Message };
  };
};

service
  .on("message:send", message, async (context, { text }) => {
    const length: number = text.length;
    const room: string | undefined = context.roomId;
    context.broadcastToRoom("chat:message:sent", { text }, { exclude: [context.socketId] });
    context.also("HSET", `room:${room}`, "length", length);
    const heard: boolean = await context.progress({ length });
    if (context.cancelled || context.signal.aborted || !heard) throw new Refused("GONE", "nobody waits");
    const users: Map<string, string> = await context.whoIsIn();
    const { offline, complete }: { offline: string[]; complete: boolean } =
      await context.broadcastWithReceipt("chat:message:sent", { text }, { userIds: users.keys(), timeout: 1000 });
    if (!complete && offline.length) context.broadcastToRoom("chat:some:absent", offline);
    const answer: unknown = await context.request("wiki:page:read", { text }, { timeout: 100 });
    return { users: users.size, answer };
  })
  .on("message:read", standard, (_context, { text }) => text.length)
  .on("message:seen", (context, payload) => {
    // @ts-expect-error: nobody has checked it
    payload.text;
    context.signal.throwIfAborted();
    if (typeof context.id === "bigint") throw new Refused("NO_BIGINTS", "not here", { retryAfter: 1 });
  }, { answers: false });

// @ts-expect-error: no such option
new Service("chat", { concurency: 1 });
// @ts-expect-error: the handler takes something else than the schema gives
service.on("message:drop", message, (_context: Context, payload: number) => payload);
// @ts-expect-error: a context is made by the kit
service.on("message:lose", (context) => { context.userId = "me"; });

const handler: Handler<Message> = (context, { text }) => context.reply(text);
const schema: Schema<Message> = message;
service.on("message:last", schema, handler);

const running: Running = service.start();
await running.begun;
const finished: boolean = await running.stop();
const wrong: Error[] = [new Refused("A", "b"), new TooLarge("c")];
console.log(finished, wrong);
