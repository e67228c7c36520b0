/** Times are in milliseconds, except for `retryAfter`, which is in seconds as on the wire. */

export type State = "connecting" | "ready" | "waiting" | "closed";

/** Shown to the gateway: the token, and the room to enter first, if there is one. */
export interface Credentials {
  token: string;
  roomId?: string | null;
}

export interface Options {
  /**
   * Asked at every attempt to authenticate. `refused`: the gateway did not take the last token, so it takes another one;
   * when it refuses that, too, the connection is closed. When it throws, the attempt has failed and is made again later.
   */
  token: (why: { refused: boolean }) => string | Credentials | Promise<string | Credentials>;
  /** The room to enter first, where `token` names none. */
  roomId?: string | null;
  /** What others in our rooms see of us beside our `userId`, where the gateway tells who is in a room: any JSON. */
  data?: unknown;
  /**
   * So many messages that the first room was told before come first, in order, unless what was missed since does: if the
   * gateway keeps its history.
   */
  history?: number;
  /**
   * How long a request, `join` and `leave` wait for their answer, time without a connection included. 15 s; the gateway's
   * own, for requests, is 10 s.
   */
  timeout?: number;
  /** How many events may wait, and how many requests besides: 256, the gateway's bound for requests of one socket. */
  queue?: number;
  /** When so long nothing was heard, it is asked whether anybody is there. 60 s; `Infinity` asks only with a reason. */
  heartbeat?: number;
  /** How long an attempt may take, and the answer to another token or whether anybody is there. 10 s. */
  patience?: number;
  /** The first back-off at most: 0.5 s; it doubles with every failure. */
  base?: number;
  /** Any back-off at most: 30 s. */
  cap?: number;
  /** Between 0 and 1, for the back-off: `Math.random`. */
  random?: () => number;
  /** The time: the browser's or Node's own. */
  clock?: Clock;
  /** The class to connect with: the global one. */
  WebSocket?: new (url: string, protocol: string) => WebSocketLike;
}

/** What of a WebSocket is used: browsers, Node and the package `ws` have it. */
export interface WebSocketLike {
  readonly OPEN: number;
  readonly readyState: number;
  readonly bufferedAmount: number;
  onopen: unknown;
  onmessage: unknown;
  onclose: unknown;
  onerror: unknown;
  send(text: string): void;
  close(code: number): void;
}

export interface Clock {
  now(): number;
  setTimeout(call: () => void, wait: number): unknown;
  clearTimeout(timer: unknown): void;
}

export interface EmitOptions {
  /** From which of the client's rooms: the first of them unless given. */
  roomId?: string;
}

export interface EventOptions extends EmitOptions {
  /** Sent now or never: not queued while there is no connection, and not reported as "dropped". */
  volatile?: boolean;
}

export interface RequestOptions extends EmitOptions {
  /** For this request alone; `Infinity` waits as long as it takes. */
  timeout?: number;
  /** Stops waiting, and tells the service to do no more about it. What was done by then is done. */
  signal?: AbortSignal;
  /** Called with each part of an answer that comes in parts. One with the number 1 begins anew. */
  onProgress?: (part: any, about: { number: number }) => void;
}

export interface JoinOptions {
  /** What others see of us in this room, in place of the client's own `data`. To change it, join again. */
  data?: unknown;
  /** For this room alone; `Infinity` waits as long as it takes. */
  timeout?: number;
  /** So many messages that it was told before come first, in order, unless what was missed since does. */
  history?: number;
}

/** A place in the history of a room. */
export interface Position {
  epoch: string;
  offset: number;
}

export interface HistoryOptions {
  /** The messages before this position: the last ones, if it is left out. */
  before?: Position;
  /** At most so many, 1 to 1,000: 50, if it is left out. */
  limit?: number;
  /** For this request alone; `Infinity` waits as long as it takes. */
  timeout?: number;
  /** Stops waiting. */
  signal?: AbortSignal;
}

/**
 * A piece of the text `key` of its room. `text`: all of it up to here; undefined if its beginning was not heard. `last`: it ends
 * here. `from`: the payload is no piece, but the text since that offset.
 */
export interface Append {
  key: string;
  text?: string;
  last?: boolean;
  from?: number;
}

/** What a room was told before, in order. */
export interface HistoryPage {
  roomId: string;
  epoch: string;
  messages: { type: string; payload: any; offset: number; append?: Append }[];
  /** Where to go on, if there is more. */
  before?: Position;
}

/** What became of the connection. */
export interface StateChange {
  state: State;
  /** Of "waiting": until the next attempt. */
  wait?: number;
  /** Of "waiting" and "closed": the close code, 1006 when there was none. Absent after `close()`. */
  code?: number;
  reason?: string;
  /** The gateway's error that the connection was closed for, or what the token's callback threw. */
  error?: unknown;
}

export interface Dropped {
  type: string;
  payload?: unknown;
  roomId?: string;
}

/**
 * What comes with a message of a service: `roomId` when it was told to that room, and `offset`, its place in the history of
 * the room, if the gateway keeps one; `userOffset`, its place in that of the user, when it was told to the user.
 */
export interface About {
  roomId?: string;
  offset?: number;
  userOffset?: number;
  /** The payload is a piece of a text. */
  append?: Append;
}

/**
 * A room was entered again, or the gateway had lost something itself. `recovered`: all that was missed follows, and is
 * heard in order; otherwise the state is to be fetched. `reason`: the gateway's `expired`, `epoch`, `too_many` or
 * `unavailable`; none where it keeps no history. `roomId`: `null` of what the user is told, where that has a history.
 */
export interface Recovered {
  roomId: string | null;
  recovered: boolean;
  reason?: string;
}

/** A user who is in a room, with what it shows of itself there. `userId` is certain; `data` is what the user says. */
export interface Present<Data = any> {
  userId: string;
  data?: Data;
}

/** Who is in a room. */
export interface Presence<Data = any> {
  /** All of them, or some where `count` is more. */
  users: Present<Data>[];
  /** How many there are. */
  count: number;
  /** Those who are new since the last time, or show something else. */
  joined: Present<Data>[];
  /** The ids of those who are gone since. */
  left: string[];
}

export interface RoomStateOptions<State> {
  /** Fetches the state. */
  snapshot: () => State | Promise<State>;
  /**
   * By the type of the messages, what they make of the state. A change must be one that may be made twice: of a
   * message that comes while the snapshot is fetched nobody knows whether it is in there already.
   */
  changes?: Record<string, (state: State, payload: any, about: About) => State>;
}

/** The state of a room, kept current by the room's messages; with `null` that of the user, by those outside of rooms. */
export class RoomState<State> {
  constructor(client: Kraftek, roomId: string | null, options: RoomStateOptions<State>);
  /** As far as it is known: `undefined` before the first snapshot. */
  readonly value: State | undefined;
  /** Why the room is not entered, or its state not fetched, if that is so. */
  readonly error: KraftekError | null;
  /** Called with the state, now if there is one, and at each change. Returns a function that ends this. */
  subscribe(listener: (state: State) => void): () => void;
  /** Change no more. The room is not left by this. */
  close(): void;
}

/** What was missed while the page did not read what it is sent: how many messages, by room and by pattern. */
export interface Gap {
  rooms: Record<string, Record<string, number>>;
}

export interface ErrorFields {
  code: string;
  message: string;
  retryAfter?: number;
  eventType?: string;
  roomId?: string;
  limit?: string;
}

/**
 * Act on `code`: one of the protocol's or of a service's own, or `TIMEOUT`, `CLOSED`, `QUEUE_FULL`, `TOO_LARGE`, `LEFT`
 * or `NO_SNAPSHOT`, and of a refresh `NO_TOKEN` or `SAME_TOKEN`, which are said here.
 */
export class KraftekError extends Error {
  constructor(fields: ErrorFields, options?: { cause?: unknown });
  readonly code: string;
  /** Seconds after which it may be tried again. */
  readonly retryAfter?: number;
  readonly eventType?: string;
  /** The room that could not be entered, that access was taken back to, or whose state could not be fetched. */
  readonly roomId?: string;
  /** Of the gateway's `RATE_LIMITED`: what there was too much of. */
  readonly limit?: string;
}

export class Kraftek {
  constructor(url: string, options: Options);
  readonly state: State;
  /** Who the gateway says we are, once it has. */
  readonly userId: string | null;
  /** The gateway's name for the present connection. */
  readonly socketId: string | null;
  /** The rooms that the client is in, or enters as soon as it is connected. */
  readonly rooms: string[];

  /**
   * True unless it is dropped, as "dropped" tells: when closed, and when more events wait than `queue`. What is
   * `volatile` is false when it was not sent at once. Throws a `TypeError` for a type that is not `service:module:name`,
   * and for a room's name that is none.
   */
  emit(type: string, payload?: unknown, options?: EventOptions): boolean;
  /**
   * The payload of the answer; rejects with a `KraftekError` or with the signal's reason, or with a `TypeError` for a type
   * that is not `service:module:name`.
   */
  request<Answer = unknown>(type: string, payload?: unknown, options?: RequestOptions): Promise<Answer>;
  /**
   * Resolves once the room is entered. It is entered again after every reconnection. Rejects with a `KraftekError`, also
   * when it takes too long, and is then not entered later; with a `TypeError` for what is no room's name.
   */
  join(roomId: string, options?: JoinOptions): Promise<void>;
  leave(roomId: string): void;
  /**
   * Messages that a room was told before, if the gateway keeps its history. Listeners may hear some of them, too: compare
   * the offsets. Waits, and rejects, like `request`.
   */
  history(roomId: string, options?: HistoryOptions): Promise<HistoryPage>;
  /**
   * Have `fetch` called when the state of a room must be fetched: once it is entered, and again whenever messages may have
   * been missed. Until its promise has ended the room's messages wait. When it fails that is told as an "error" with
   * `NO_SNAPSHOT`, and it is called again later. Enters no room. Returns a function that ends this.
   */
  snapshot(roomId: string, fetch: () => unknown): () => void;
  /** The same of what the user is told, in whatever room: once connected, and again. The "error" has no `roomId`. */
  userSnapshot(fetch: () => unknown): () => void;
  /**
   * Have `listener` called with who is in a room, once that is known and at each change, also of what changed while there
   * was no connection. Enters no room. Where the gateway does not tell it that is an "error" with the `roomId`. Returns a
   * function that ends this.
   */
  presence<Data = any>(roomId: string, listener: (presence: Presence<Data>) => void): () => void;
  /** Enter a room, fetch its state, and let its messages change it. */
  roomState<State>(roomId: string, options: RoomStateOptions<State>): RoomState<State>;
  /** The same of the user: what it is told outside of rooms changes it, such as its inbox. */
  userState<State>(options: RoomStateOptions<State>): RoomState<State>;
  /**
   * Ask `token` for another one, and show it on the open connection; that is done in time by itself, where the gateway
   * says when access expires. Resolves once it counts; rejects with a `KraftekError`.
   */
  refresh(): Promise<void>;
  /** Connect now, from any state. */
  open(): void;
  /** Leave for good, or until `open()`. */
  close(): void;

  on<Name extends string>(type: Name, listener: Listener<Name>): this;
  once<Name extends string>(type: Name, listener: Listener<Name>): this;
  off<Name extends string>(type: Name, listener: Listener<Name>): this;
}

/** By what it listens to: "state", "error", "dropped", "recovered", "gap", or what services say, whose payload you know. */
export type Listener<Name extends string> = Name extends "state"
  ? (change: StateChange) => void
  : Name extends "error"
    ? (error: KraftekError) => void
    : Name extends "dropped"
      ? (event: Dropped) => void
      : Name extends "recovered"
        ? (recovered: Recovered) => void
        : Name extends "gap"
          ? (gap: Gap) => void
          : (payload: any, about: About) => void;

/** Connect, and stay connected: usable at once, what it is told to send waits for the connection. */
export function connect(url: string, options: Options): Kraftek;
