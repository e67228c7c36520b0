/** Times are in milliseconds, except for `retryAfter`, which is in seconds as on the wire. */

/** The sender's name for a request. Integers that JavaScript's numbers cannot hold are bigints, and go back as they came. */
export type RequestId = string | number | bigint;

export interface ServiceOptions {
  /** As registered with the gateway: `events:<name>` unless given. */
  channel?: string;
  /** As registered. `pubsub` unless given. */
  transport?: "pubsub" | "stream";
  /** As registered, for streams. */
  partitions?: number;
  /** As registered. Unless given, it is only noticed when a client's request was answered that the gateway had answered. */
  reply?: boolean;
  /** Register it, where `auto_register` of the gateways permits that. Clients reach it where a permission names it. */
  register?: boolean;
  /** How many events are handled at the same time: 64, each of another room. */
  concurrency?: number;
  /** Events of one room may be handled at the same time, too, and a stream is read by all instances. */
  unordered?: boolean;
  /** How long a handler may take until it counts as failed: as long as gateways wait for an answer, by what they publish. */
  timeout?: number;
  /** Over streams: how often a handler may fail on an event, or an instance crash, before it is dead-lettered. 3. */
  attempts?: number;
  /** Over streams: after how long another instance takes over what a dead one had in hand. 5 s. */
  claimAfter?: number;
  /** How long a stop waits for handlers. 10 s. */
  grace?: number;
  /** The bytes of one message or event that is sent, as JSON: 1 MiB. */
  messageBytes?: number;
  /** `redis.prefix` of the gateway. */
  prefix?: string;
  /** `redis.broadcast` of the gateway. */
  broadcast?: string;
  /** Where lines for people go: standard error. */
  log?: Log;
}

export interface Log {
  info(text: string): void;
  warn(text: string): void;
  error(text: string, error: unknown): void;
}

export interface HandlerOptions {
  /** False: a request is answered only when the handler replies, or returns something else than `undefined`. */
  answers?: boolean;
  /** How long it may take, if not as long as the service's `timeout`. */
  timeout?: number;
}

/** What it returns, or its promise settles with, is the answer to a request: `null` for nothing. */
export type Handler<Payload> = (context: Context, payload: Payload) => unknown;

/** What libraries of schemas have in common: https://standardschema.dev. */
export interface StandardSchema<Output> {
  readonly "~standard": {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => SchemaResult<Output> | Promise<SchemaResult<Output>>;
    readonly types?: { readonly input: unknown; readonly output: Output } | undefined;
  };
}

export type SchemaResult<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | { readonly issues: readonly SchemaIssue[] };

export interface SchemaIssue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
}

/** A schema, or a function that returns the payload and throws for a wrong one. The sender gets `INVALID_PAYLOAD`. */
export type Schema<Output> = StandardSchema<Output> | ((payload: unknown) => Output | Promise<Output>);

export class Service {
  /** Throws a `TypeError` for options that cannot be. `name` is as registered with the gateway. */
  constructor(name: string, options?: ServiceOptions);
  readonly name: string;
  /**
   * The handler of an event, `module:name` or `service:module:name`; of presence events, `gateway:client:joined` and the
   * like. Throws a `TypeError` for a name that is none, or has a handler already.
   */
  on(event: string, handler: Handler<unknown>, options?: HandlerOptions): this;
  on<Payload>(event: string, schema: Schema<Payload>, handler: Handler<Payload>, options?: HandlerOptions): this;
  /** Serve until SIGTERM or SIGINT, then finish what is in hand. The Redis is that of `REDIS_URL`, or the local one. */
  run(url?: string): Promise<void>;
  /** Serve beside what else the program does. Redis may be unavailable. */
  start(url?: string): Running;
}

/** An instance of a service. */
export interface Running {
  /** Its name among the consumers of the group. */
  readonly name: string;
  /** Settles when it receives events. */
  readonly begun: Promise<void>;
  /** Accept no more events, finish those in hand within `grace`, and disconnect. False: some were not, and are given up. */
  stop(): Promise<boolean>;
}

/**
 * An event, and what can be done about it. What a handler sends is committed together when it has returned: one that throws
 * has sent nothing. Only what is awaited happens at once. After its handler has ended a context throws.
 */
export interface Context {
  /** The whole name, `service:module:name`. */
  readonly eventType: string;
  /** Who sent it. From a service it is not verified, and may be empty. */
  readonly userId: string;
  /** The socket that sent it; empty when a service did. */
  readonly socketId: string;
  /** The room that it belongs to, if any. */
  readonly roomId: string | undefined;
  /** The sender's name for this request; `undefined` when it wants no answer. */
  readonly id: RequestId | undefined;
  /** Where an answer goes. */
  readonly replyTo: string;
  /** The service that sent it; `undefined` when a client did. */
  readonly source: string | undefined;
  /** When the gateway got it, in Unix milliseconds. */
  readonly timestamp: number;
  /** Aborted when the client has cancelled the request, and when the handler has ended, or is given up by its time limit or a stop. */
  readonly signal: AbortSignal;
  /**
   * The client has cancelled the request. A handler that throws then is not tried again; what one returns, or has sent, still
   * counts. A lost connection cancels nothing.
   */
  readonly cancelled: boolean;
  /** Answer the request, once. Does nothing when the sender wants no answer. */
  reply(payload: unknown): void;
  /**
   * Send the client a part of the answer, at once. The answer itself is still to be given: it says what counts. Does nothing
   * where the client did not ask for parts, or another instance sends them: then false. Each part gives the request and its
   * handler their time limit anew, for an hour at most.
   */
  progress(payload: unknown): Promise<boolean>;
  /** Leave the request open when the handler returns nothing: something else answers it, within the gateway's `timeout`. */
  answerLater(): void;
  /** Send to everybody in the event's room, or another; if that has a history, who is away now gets it later. */
  broadcastToRoom(type: string, payload: unknown, options?: { roomId?: string; exclude?: Iterable<string> }): void;
  /**
   * Tell everybody in the event's room, or another, a piece of the text `key`, at once. If the room has a history, one message
   * with the whole text is kept in it. `first`: the text begins anew, also if an attempt before this one has told some of it.
   * `last`: it ends. With an `id` a piece is told once, however often it is sent. Each gives the handler its time limit anew.
   * Rejects with `TooLarge` when the text would be larger than what is kept of one: 256 KiB, or the room's `history_bytes`.
   */
  appendToRoom(
    type: string,
    key: string,
    text: string,
    options?: { roomId?: string; first?: boolean; last?: boolean; id?: string },
  ): Promise<Told>;
  /** Send to every socket of a user. Where users have a history it is part of that: a device that is away gets it later. */
  broadcastToUser(type: string, payload: unknown, userId: string): void;
  /** Send to every socket of these users, likewise; to nobody without users. */
  broadcastToUsers(type: string, payload: unknown, userIds: Iterable<string>): void;
  /** Send to these sockets; to nobody without sockets. */
  broadcastToSockets(type: string, payload: unknown, socketIds: Iterable<string>): void;
  /** Send to everybody who has authenticated. */
  broadcastToEverybody(type: string, payload: unknown, options?: { exclude?: Iterable<string> }): void;
  /**
   * Close every socket of these users, and these sockets; with `roomId` those of them that are in that room. `code` and
   * `message` are what their clients are told: `ACCESS_REVOKED` unless given. Throws a `TypeError` for a code that is none.
   */
  disconnect(whom: {
    userIds?: Iterable<string>;
    socketIds?: Iterable<string>;
    roomId?: string;
    code?: string;
    message?: string;
  }): void;
  /**
   * Send to every socket of these users, or else to everybody in the event's room or another, except for the sockets in
   * `exclude`; at once. Resolves with who has acknowledged it within `timeout`, 5 s, at most 30 s, and who is offline.
   * Rejects with a `TypeError` for more than 1,000 users, with `TooLarge` for a room with more, and as long as a gateway
   * does not know this.
   */
  broadcastWithReceipt(
    type: string,
    payload: unknown,
    options?: { roomId?: string; userIds?: Iterable<string>; exclude?: Iterable<string>; timeout?: number },
  ): Promise<Receipt>;
  /**
   * Put every socket of these users, and these sockets, into a room, until they are gone or taken out. The auth service is
   * not asked. `permissions`: patterns over the events that they may send from there; all of this service's unless given.
   */
  putInRoom(
    roomId: string,
    whom: { userIds?: Iterable<string>; socketIds?: Iterable<string>; permissions?: Iterable<string> },
  ): void;
  /** Take every socket of these users, and these sockets, out of a room, however they came in. */
  removeFromRoom(roomId: string, whom: { userIds?: Iterable<string>; socketIds?: Iterable<string> }): void;
  /** Send an event to another service, by its whole name; for the same user, and the same room or another. */
  emit(event: string, payload?: unknown, options?: { roomId?: string }): void;
  /** The same, at once, with an answer. Rejects with `Refused`; `timeout` is 10 s. */
  request(event: string, payload?: unknown, options?: { roomId?: string; timeout?: number }): Promise<unknown>;
  /** Any Redis command that does not block, at once: its answer as strings, numbers, arrays and null. */
  redis(...command: (string | number | Buffer)[]): Promise<unknown>;
  /** Who is in the event's room, or another: user ids, with the socket of each. */
  whoIsIn(roomId?: string): Promise<Map<string, string>>;
  /** Any Redis command, when the handler has finished: in the same transaction. Keys are used as they are. */
  also(...command: (string | number | Buffer)[]): void;
}

/** What became of a message to a room or to users: everybody to whom it was addressed is in one of the four. */
export interface Receipt {
  /** A client of theirs has handled it. */
  acknowledged: string[];
  /** Connected, and no client of theirs has acknowledged it in time: they may have got it all the same. */
  slow: string[];
  /** Not connected at all; only of users that were named. */
  offline: string[];
  /** A gateway did not say in time whether they have: it died, was paused, or had too many others to wait for. */
  owed: string[];
  /** No gateway owes anything. */
  complete: boolean;
}

/**
 * What became of a message. `taken`: how many took it, the gateways and whoever else subscribes to the channel. `offset` and
 * `epoch`: where it is in the history of its room; 0 and empty if that has none.
 */
export interface Told {
  taken: number;
  offset: number;
  epoch: string;
}

/** Thrown by a handler to refuse an event: the sender gets it as an `error`, and nothing is tried again. */
export class Refused extends Error {
  constructor(code: string, message: string, options?: { retryAfter?: number | undefined });
  readonly code: string;
  /** Seconds after which it may be tried again. */
  readonly retryAfter: number | undefined;
}

/** A message is larger than `messageBytes`, its room than a receipt takes, or a text than what is kept of one. Nothing was sent. */
export class TooLarge extends RangeError {}
