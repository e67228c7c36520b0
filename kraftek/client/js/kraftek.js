/**
 * A client of the Kraftek Socket Gateway, for browsers and for Node: it stays connected.
 *
 * It speaks the subprotocol kraftek.v1.json, which docs/client-protocol.rst has in full. Times are in milliseconds,
 * except for `retryAfter`, which is in seconds as on the wire.
 */

const SUBPROTOCOL = "kraftek.v1.json";
/** Close codes of 4400 to 4499 say "do not come back like this", except for these: "not so soon". */
const NOT_SO_SOON = new Set([4408, 4413, 4429]);
/** Sent to everybody at once by what is restarted or full: all of them shall not come back at once. */
const RESTARTED = new Set([1012, 1013]);
const REFUSED = 4401;
/** The code of an error about a token that was good, and is replaced by another one. */
const EXPIRED = "TOKEN_EXPIRED";
/** Errors after which the gateway is asked again who is in a room. */
const NOT_KNOWN_YET = new Set(["SERVICE_UNAVAILABLE", "AUTH_UNAVAILABLE", EXPIRED]);
/** What the socket would be closed with if the gateway closed it for credentials that it cannot read. */
const UNREADABLE = 4400;
const TOO_BIG = 1009;
/** Somebody else than a gateway is there. */
const NO_GATEWAY = 1002;
/** What no socket reported: it was given up here, like one that is lost without a close frame. */
const LOST = 1006;
/** `WebSocket.OPEN`, which a class that was given need not have. */
const OPEN = 1;
/** After those codes the back-off is that of so many failures at least. */
const FAILURES_AT_LEAST = 3;
/** The longest time that a gateway which stops may ask for: the word comes from the network. */
const LONGEST_ABSENCE = 60_000;
/** A connection that was ready for so long was a good one: the next back-off begins from the bottom. */
const STEADY = 5_000;
/** Bytes that may wait in the socket itself; an `emit` beyond them is dropped. The gateway bounds its side alike. */
const UNSENT = 1_048_576;
/** The same for what is `volatile`: some cursors and the like, so that they are not old when they arrive. */
const UNSENT_VOLATILE = 16_384;
/** In the place of a room's name: what the user is told outside of rooms. */
const USER = null;
/** The code of the error that a state could not be fetched. */
const NO_SNAPSHOT = "NO_SNAPSHOT";
/** Characters of a room's messages that may wait until its state is fetched. */
const HELD = 1_048_576;
/** Texts of a room that go on at a time: of more, those are forgotten that have got no piece for longest. */
const TEXTS = 100;
/** A message that excludes one of so many sockets that were ours before is not for us; the gateway takes no more. */
const FORMER_SOCKETS = 8;
/** The longest time that timers can count, 24 days. */
const LONGEST_TIMER = 2 ** 31 - 1;
/** Of an event's name: `service:module:name`. A name without colons is the gateway's own, such as "join". */
const NAME = /^[^:\p{White_Space}\p{Cc}\p{Cs}]+(?::[^:\p{White_Space}\p{Cc}\p{Cs}]+){2}$/u;
const NAME_LENGTH = 128;
const HALF_A_PAIR = /\p{Cs}/u;
const ROOM_LENGTH = 256;
/** What listeners are told under these names is our own word; no service can say it. */
const OWN = new Set(["state", "dropped", "error", "recovered"]);

const DEFAULTS = {
  history: 0,
  timeout: 15_000,
  queue: 256,
  heartbeat: 60_000,
  patience: 10_000,
  base: 500,
  cap: 30_000,
  random: Math.random,
  clock: {
    now: () => performance.now(),
    setTimeout: (call, wait) => setTimeout(call, wait),
    clearTimeout: (timer) => clearTimeout(timer),
  },
  WebSocket: globalThis.WebSocket,
};

const utf8 = new TextEncoder();

/** The close that follows says more; without a listener, an error of some classes would end the program. */
const ignore = () => {};

/**
 * What the gateway or a service refused, or what could not be done here: act on `code`; `message` is for people.
 *
 * The codes are the protocol's, and of our own: `TIMEOUT` when no answer came in time, `CLOSED` when there will be
 * none, `QUEUE_FULL`, `TOO_LARGE`, `LEFT` when a room was left before it was entered, `NO_SNAPSHOT` when a room's state
 * could not be fetched, and of a refresh `NO_TOKEN` and `SAME_TOKEN`.
 */
export class KraftekError extends Error {
  name = "KraftekError";

  constructor({ code, message, retryAfter, eventType, roomId, limit }, options) {
    super(message, options);
    this.code = code;
    /** Seconds after which it may be tried again. */
    this.retryAfter = retryAfter;
    this.eventType = eventType;
    this.roomId = roomId;
    /** Of the gateway's RATE_LIMITED: what there was too much of. */
    this.limit = limit;
  }
}

/** Connect, and stay connected: the client is usable at once, what it is told to send waits for the connection. */
export function connect(url, options) {
  return new Kraftek(url, options);
}

/**
 * `state` is "connecting", "ready" (authenticated, and in its rooms), "waiting" for the next attempt, or "closed",
 * which it stays until `open()`.
 *
 * Listeners hear what services say under its own type; "state" with `{state, wait, code, reason, error}`; "error" with
 * what went wrong and belongs to no request; "dropped" with an `emit` that was not sent and will not be; "recovered" with
 * `{roomId, recovered, reason}`, after a room was entered again: whether all that was missed there follows. Where users have
 * a history it is told of that, too, with `null` for the room.
 */
export class Kraftek {
  #url;
  #options;
  #listeners = new Map();
  #state = "closed";
  #socket = null;
  #socketId = null;
  #userId = null;
  /** Of the present state: the end of patience with an attempt, the next attempt, or the next look at the connection. */
  #timer;
  /** What is tried again on this socket, later. */
  #retries = new Set();
  #failures = 0;
  #readySince = 0;
  #heardAt = 0;
  #probing = false;
  /** This socket is authenticated. */
  #admitted = false;
  /** The last token was refused: ask for another one, once. */
  #refused = false;
  /** The last error that belonged to no request: when the socket is closed for it, that is why. */
  #complaint = null;
  /** The gateway stops, and this is how long it wants us to be away. */
  #absence = null;

  #ids = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  #count = 0;
  /** What the client itself asked the gateway on this socket: what to do with the answer, by id. */
  #commands = new Map();
  /** In the order of their sending: requests until they are answered, and events while they cannot be sent. */
  #outbox = new Map();
  /** How many of them are events. */
  #events = 0;
  /**
   * By id, requests that were sent and given up, until the gateway has answered that. What it was told just before a
   * socket was lost it may not have read: it is told on the next one, too.
   */
  #cancels = new Map();
  /** The longest message sent on this socket: the one that was too big, if one was. `text` of an event alone. */
  #longest = { size: 0 };
  /** The rooms to be in: who waits to have entered. The first is shown with the token. */
  #rooms = new Map();
  /** Those of them that this socket is in. */
  #entered = new Set();
  /** Those of them that could not be asked about on this socket yet: what is for them waits. */
  #unknown = new Set();
  /** Those of them that are there for `join` alone, which has yet to enter them. */
  #asked = new Set();
  /** How many messages of a room's history are wanted where what was missed cannot be had. */
  #last = new Map();
  /** What was heard of the rooms that were entered, and of the user; and who fetches the state of which. */
  #feeds = new Map();
  /** The rooms of which somebody wants to know who is there. */
  #watched = new Map();
  /** What we show of ourselves in rooms for which `join` was told something else than the options. */
  #data = new Map();
  /** The names of the sockets before this one. */
  #formerSockets = [];
  /** The room that the options or the token's callback named last. */
  #named;
  /** The room that was shown with the token. */
  #first;
  /** Until when neither events nor requests are sent, because the gateway takes no more. It outlasts the socket. */
  #heldUntil = 0;
  #holding;
  /** When access to each room expires, by the clock; that of all rooms without a name. */
  #ends = new Map();
  /** The token that was shown last; the socket on which it is being replaced; how often that was of no use. */
  #shown;
  #replacing = null;
  #refreshes = 0;
  /** Who waits for that. */
  #wanted = [];
  #refreshTimer;

  constructor(url, options = {}) {
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    this.#url = url;
    this.#options = { ...DEFAULTS, ...Object.fromEntries(given) };
    if (typeof this.#options.token !== "function") throw new TypeError("expected a function in options.token");
    if (!this.#options.WebSocket) throw new TypeError("there is no global WebSocket: give a class in options.WebSocket");
    checkRoom(this.#options.roomId);
    this.#name(this.#options.roomId);
    this.open();
  }

  get state() {
    return this.#state;
  }

  /** Who the gateway says we are, since we were ready for the first time. */
  get userId() {
    return this.#userId;
  }

  /** The gateway's name for the present connection; services know it. */
  get socketId() {
    return this.#socketId;
  }

  /** The rooms that it is in, or enters as soon as it is connected; events are from the first unless they say. */
  get rooms() {
    return [...this.#rooms.keys()];
  }

  on(type, listener) {
    return this.#listen(type, { listener, once: false });
  }

  once(type, listener) {
    return this.#listen(type, { listener, once: true });
  }

  off(type, listener) {
    this.#forget(type, (each) => each.listener === listener);
    return this;
  }

  /**
   * Send an event. While not ready, or as long as the gateway takes no more, it waits, behind what waits already. True
   * unless it is dropped, as "dropped" tells: when closed, and when more events wait than `queue`. What is `volatile` is
   * sent now or never: false when it was not, and nobody else is told. Throws a `TypeError` for a name that is not
   * `service:module:name`, for a room's name that is none, and for a payload that is not JSON.
   */
  emit(type, payload, { roomId, volatile = false } = {}) {
    checkName(type);
    checkRoom(roomId);
    const text = JSON.stringify({ type, payload, roomId });
    const sends = this.#takes({ roomId });
    if (sends && this.#socket.bufferedAmount < (volatile ? UNSENT_VOLATILE : UNSENT)) {
      this.#send(text, { text });
    } else if (volatile) {
      return false;
    } else if (this.#state === "closed" || sends || this.#events >= this.#options.queue) {
      this.#tell("dropped", { type, payload, roomId });
      return false;
    } else {
      this.#events += 1;
      this.#outbox.set(this.#newId(), { text, roomId });
    }
    return true;
  }

  /**
   * Send an event and get the answer's payload. While there is no connection it waits, and when the connection is lost
   * before the answer it is sent again with the same id, which the gateway does not have done twice; so it is after
   * `retryAfter` when the gateway has refused it with `RATE_LIMITED`, if there is time for that. Without a `roomId` it
   * is for the room that is the first of `rooms` when it is sent for the first time. Rejects with the
   * `KraftekError` that it is answered with, with our own `TIMEOUT`, `CLOSED`, `QUEUE_FULL` (as many requests as that
   * are unanswered) or `TOO_LARGE`, or with the signal's reason; with a `TypeError` where `emit` throws it. When the signal
   * is aborted the service is told to do no more about it, at once or after reconnecting. `onProgress` is called with each
   * part of an answer that comes in parts, and its `number`: one of 1 begins anew. Each gives the request its time anew.
   */
  request(type, payload, options = {}) {
    return this.#request(type, payload, options, () => checkName(type));
  }

  /**
   * Get messages that a room was told before, if the gateway keeps its history: the last ones, or those `before` a
   * position. Resolves with `{roomId, epoch, messages, before}`: each of the messages has `type`, `payload` and `offset`,
   * and the next older ones come with that `before`, until there is none. At most `limit` messages, 1 to 1,000; 50 if it is
   * left out. Listeners may hear some of them, too: compare the offsets. Waits, and rejects, like `request`.
   */
  async history(roomId, { before, limit, timeout, signal } = {}) {
    const socketIds = this.#formerSockets.length ? this.#formerSockets : undefined;
    const options = { timeout, signal, roomId, beside: false };
    const asked = { roomId, before, limit, socketIds };
    const page = await this.#request("history", asked, options, () => checkRoom(roomId ?? ""));
    for (const { payload, append } of page?.messages ?? []) if (append) append.text = payload;
    return page;
  }

  /** `beside`: the room is named beside the payload, as it is an event for a service. */
  #request(type, payload, { timeout = this.#options.timeout, signal, roomId, onProgress, beside = true }, check) {
    return new Promise((resolve, reject) => {
      check();
      checkRoom(roomId);
      signal?.throwIfAborted();
      if (this.#state === "closed") throw refusal("CLOSED", "the connection is closed", type);
      if (this.#outbox.size - this.#events >= this.#options.queue) throw refusal("QUEUE_FULL", "too much waits already", type);
      const id = this.#newId();
      const text = JSON.stringify({ type, payload, id, roomId: beside ? roomId : undefined });
      const settle = (how, value) => {
        this.#outbox.delete(id);
        stop();
        signal?.removeEventListener("abort", abort);
        how(value);
      };
      const abort = () => {
        settle(reject, signal.reason);
        if (request.socket && beside) this.#cancel(id, type);
      };
      signal?.addEventListener("abort", abort);
      const limit = () => this.#within(timeout, () => settle(reject, tooLate(timeout, type)));
      let stop = limit();
      const answer = (error, value) => (error ? settle(reject, error) : settle(resolve, value));
      const due = () => this.#options.clock.now() + timeout;
      const request = { text, answer, type, due: due(), roomId, roomless: roomId === undefined };
      if (onProgress) {
        request.place = true;
        request.hear = (part, place) => {
          if (place.run === request.place.run && place.number <= request.place.number) return;
          request.place = place;
          stop();
          stop = limit();
          request.due = due();
          call(onProgress, part, { number: place.number });
        };
      }
      this.#outbox.set(id, request);
      if (this.#takes(request)) this.#ask(id);
    });
  }

  #cancel(id, eventType) {
    if (this.#cancels.size >= this.#options.queue) {
      const [told] = [...this.#cancels].find(([, { socket }]) => socket) ?? [];
      if (!this.#cancels.delete(told)) return;
    }
    this.#cancels.set(id, { text: JSON.stringify({ type: "cancel", id, payload: { eventType } }), socket: undefined });
    this.#flush();
  }

  /**
   * Enter a room more, and again after every reconnection. Resolves once it is entered; rejects with what the gateway
   * says, with `LEFT`, `CLOSED` or `TIMEOUT`, and then it is not entered later; with a `TypeError` for what is no room's
   * name. A room that cannot be entered again after a reconnection is told as an "error" with its `roomId`. `data` is
   * what others see of us there, in place of what the options say; to change it, join again. `history`: so many messages
   * that it was told before come first, in order, unless what was missed since does.
   */
  join(roomId, { timeout = this.#options.timeout, data, history } = {}) {
    return new Promise((resolve, reject) => {
      checkRoom(roomId ?? "");
      if (this.#state === "closed") throw refusal("CLOSED", "the connection is closed");
      if (data !== undefined) this.#data.set(roomId, data);
      if (history) this.#last.set(roomId, history);
      if (this.#entered.has(roomId) && data === undefined) {
        resolve();
        return;
      }
      const known = this.#rooms.get(roomId);
      const waiting = known ?? [];
      const underWay = known && (waiting.length > 0 || this.#state !== "ready");
      this.#rooms.set(roomId, waiting);
      if (!known) this.#asked.add(roomId);
      const stop = this.#within(timeout, () => this.#giveUp(roomId, waiter, timeout));
      const waiter = {
        resolve: () => (stop(), resolve()),
        reject: (error) => (stop(), reject(error)),
      };
      waiting.push(waiter);
      if (this.#admitted && !underWay) this.#enter(roomId);
    });
  }

  /** Leave a room, and do not come back to it. */
  leave(roomId) {
    const waiting = this.#rooms.get(roomId);
    if (!waiting) return;
    this.#forgetRoom(roomId);
    leftAlready(waiting);
    this.#tellLeft(roomId);
  }

  /**
   * Have `fetch` called when the state of a room must be fetched: once it is entered, and again whenever messages may have
   * been missed. Until its promise has ended the room's messages wait. When it fails that is told as an "error" with the
   * `roomId`, and it is called again later. Enters no room. Returns a function that ends this.
   */
  snapshot(roomId, fetch) {
    checkRoom(roomId ?? "");
    return this.#snapshot(roomId, fetch);
  }

  /**
   * The same of what the user is told, in whatever room: once connected, and again whenever messages may have been missed.
   * The "error" has no `roomId`.
   */
  userSnapshot(fetch) {
    return this.#snapshot(USER, fetch);
  }

  #snapshot(roomId, fetch) {
    if (typeof fetch !== "function") throw new TypeError("expected a function that fetches the state");
    const feed = this.#feed(roomId);
    const snapshot = { fetch, due: true, busy: false, failures: 0 };
    feed.snapshots.add(snapshot);
    this.#fetchDue(roomId, feed);
    return () => {
      feed.snapshots.delete(snapshot);
      this.#tellHeld(feed);
      this.#forgetIfUnused(roomId, feed);
    };
  }

  /**
   * Have `listener` called with who is in a room, `{users, count, joined, left}`, once that is known, and at each change,
   * also of what changed while there was no connection. Each of `users` is `{userId, data}`, with what the user shows of
   * itself; `count` is how many there are, which may be more. `joined` are those who are new or show something else, `left`
   * the ids of those who are gone since the last call. Enters no room. Where the gateway does not tell it that is an
   * "error" with the `roomId`. Returns a function that ends this.
   */
  presence(roomId, listener) {
    checkRoom(roomId ?? "");
    if (typeof listener !== "function") throw new TypeError("expected a function that is told who is in the room");
    const entry = { listener };
    let watched = this.#watched.get(roomId);
    if (watched) {
      if (watched.known) listener({ ...watched.present, joined: watched.present.users, left: [] });
    } else {
      watched = new Watched();
      this.#watched.set(roomId, watched);
      this.#askPresence(roomId);
    }
    watched.listeners.add(entry);
    return () => {
      if (!watched.listeners.delete(entry) || watched.listeners.size) return;
      this.#watched.delete(roomId);
      const { version } = watched;
      if (this.#entered.has(roomId)) this.#command("presence", { roomId, changes: false, version }, () => {});
    };
  }

  /** Enter a room, fetch its state, and let its messages change it: see `RoomState`. */
  roomState(roomId, options) {
    return new RoomState(this, roomId, options);
  }

  /** The same of the user: what it is told outside of rooms changes it, such as its inbox. */
  userState(options) {
    return new RoomState(this, USER, options);
  }

  /**
   * Ask the token's callback for another token, and show it on the open socket. That is done in time by itself, where
   * the gateway says when access expires. Resolves once it counts, on this socket or the next; rejects with `NO_TOKEN`
   * if the callback fails, with `SAME_TOKEN` if it has no other one, with `CLOSED`, or with what the gateway says.
   */
  refresh() {
    return new Promise((resolve, reject) => {
      if (this.#state === "closed") throw refusal("CLOSED", "the connection is closed");
      this.#wanted.push({ resolve, reject });
      this.#replaceToken();
    });
  }

  /** Connect now, from any state, with what the token's callback says now. */
  open() {
    this.#drop();
    this.#complaint = this.#absence = null;
    const socket = new this.#options.WebSocket(this.#url, SUBPROTOCOL);
    this.#socket = socket;
    socket.onopen = () => {
      socket.onerror = ignore;
      this.#authenticate();
    };
    socket.onmessage = ({ data }) => this.#read(data);
    socket.onclose = ({ code, reason }) => this.#ended(code, reason);
    // Of a connection that was refused, Node 20 fires no close.
    socket.onerror = () => this.#ended(LOST, "");
    this.#after(this.#options.patience, () => this.#ended(LOST, ""));
    globalThis.addEventListener?.("online", this.#online);
    globalThis.document?.addEventListener("visibilitychange", this.#seen);
    this.#become("connecting");
  }

  /** Leave for good, or until `open()`. Requests that are not answered, and rooms not entered, are rejected. */
  close() {
    if (this.#state === "closed") return;
    this.#drop();
    this.#finish({});
  }

  // Coming and going

  async #authenticate() {
    const socket = this.#socket;
    let shown;
    try {
      shown = credentials(await this.#options.token({ refused: this.#refused }));
    } catch (error) {
      if (this.#socket === socket) this.#ended(LOST, "", error);
      return;
    }
    if (this.#socket !== socket || socket.readyState !== OPEN) return;
    const { token, roomId } = shown;
    this.#shown = token;
    this.#name(roomId);
    const [first] = this.#fromNowhere().length ? [] : this.#rooms.keys();
    this.#first = first;
    const shownWith = { token, ...this.#shownIn(first), userSince: this.#place(USER) };
    this.#command("authenticate", shownWith, (error, payload) => {
      if (!error) this.#admit(first, payload);
      else if (isForLater(error)) this.#askLater(error);
      else if (error.code === "INVALID_MESSAGE") this.#ended(UNREADABLE, error.code, error);
      else this.#complaint = error;
    });
  }

  /** Be patient for as much longer. */
  #askLater(error) {
    const wait = this.#retry(error, () => this.#authenticate());
    this.#after(wait + this.#options.patience, () => this.#ended(LOST, ""));
    this.#tell("error", error);
  }

  #admit(roomId, payload) {
    this.#admitted = true;
    this.#refused = false;
    const another = (this.#userId ?? payload?.userId) !== payload?.userId;
    if (another) this.#forgetPositions();
    this.#userId = payload?.userId;
    this.#replaced(payload);
    this.#isAt(USER, payload?.userPosition);
    if (this.#rooms.has(roomId)) this.#isIn(roomId, another ? { ...payload, recovered: false } : payload);
    else if (roomId !== undefined) this.#command("leave", { roomId }, () => {});
    for (const id of this.#fromNowhere()) this.#ask(id);
    for (const each of this.#rooms.keys()) {
      if (each !== roomId) this.#enter(each);
    }
    this.#readyIfEntered();
  }

  async #replaceToken() {
    const socket = this.#socket;
    if (!this.#admitted || this.#replacing === socket) return;
    this.#replacing = socket;
    this.#options.clock.clearTimeout(this.#refreshTimer);
    let shown;
    try {
      shown = credentials(await this.#options.token({ refused: false }));
    } catch (cause) {
      if (this.#socket === socket) this.#notReplaced(refusal("NO_TOKEN", `the token's callback failed: ${cause}`));
      return;
    }
    if (this.#socket !== socket) return;
    if (shown.token === this.#shown) {
      this.#notReplaced(refusal("SAME_TOKEN", "the token is the one that was shown before"));
      return;
    }
    this.#shown = shown.token;
    const { patience } = this.#options;
    const refused = (error) => {
      // The same may be good later. When the socket is closed for it, that is why.
      this.#shown = undefined;
      this.#complaint = error;
      this.#notReplaced(error);
    };
    const answer = (error, payload) => {
      if (error) refused(error);
      else {
        this.#replaced(payload);
        this.#release();
      }
    };
    this.#command("authenticate", { token: shown.token }, answer, patience, () => refused(tooLate(patience)));
  }

  #replaced(payload) {
    this.#refreshes = 0;
    this.#replacing = null;
    this.#ends.clear();
    this.#expires(undefined, payload);
    for (const { resolve } of this.#wanted.splice(0)) resolve();
  }

  #notReplaced(error) {
    const { base, cap, random } = this.#options;
    const wait = Math.min(cap, 2 * base * 2 ** this.#refreshes);
    this.#refreshes += 1;
    this.#replacing = null;
    this.#refreshIn(Math.max(wait, 1000 * (error.retryAfter ?? 0)) * (1 + random()));
    for (const { reject } of this.#wanted.splice(0)) reject(error);
  }

  /** Show another token at 70 to 90 % of the shortest time. */
  #expires(roomId, payload) {
    const { clock, random } = this.#options;
    const now = clock.now();
    this.#ends.delete(roomId);
    if (Number.isFinite(payload?.expiresIn)) this.#ends.set(roomId, now + 1000 * Math.max(0, payload.expiresIn));
    if (this.#ends.size && !this.#replacing) this.#refreshIn((Math.min(...this.#ends.values()) - now) * (0.7 + 0.2 * random()));
  }

  /** Timers count no longer than that; what expires later is told by `TOKEN_EXPIRED`. */
  #refreshIn(wait) {
    const { clock } = this.#options;
    clock.clearTimeout(this.#refreshTimer);
    if (wait <= LONGEST_TIMER) this.#refreshTimer = clock.setTimeout(() => this.#replaceToken(), wait);
  }

  #enter(roomId) {
    this.#command("join", this.#shownIn(roomId), (error, payload) => {
      const waiting = this.#rooms.get(roomId);
      if (!waiting) return;
      if (!error) {
        this.#isIn(roomId, payload);
        this.#expires(roomId, payload);
      } else if (isForLater(error)) {
        this.#unknown.add(roomId);
        this.#retry(error, () => this.#rooms.has(roomId) && this.#enter(roomId));
      } else {
        error.roomId = roomId;
        this.#forgetRoom(roomId);
        for (const { reject } of waiting) reject(error);
        if (!waiting.length) this.#tell("error", error);
      }
      this.#readyIfEntered();
    });
  }

  /** A room that `join` alone has named was refused. */
  #isNotFor(roomId, error) {
    const waiting = this.#rooms.get(roomId);
    this.#forgetRoom(roomId);
    error.roomId = roomId;
    for (const { reject } of waiting) reject(error);
  }

  #giveUp(roomId, waiter, timeout) {
    const others = this.#rooms.get(roomId).filter((each) => each !== waiter);
    this.#rooms.set(roomId, others);
    waiter.reject(tooLate(timeout));
    if (others.length || !this.#asked.has(roomId)) return;
    this.#forgetRoom(roomId);
    // It may be entered yet, and nobody would know.
    this.#tellLeft(roomId);
  }

  #forgetRoom(roomId) {
    this.#watched.get(roomId)?.forget();
    this.#data.delete(roomId);
    this.#rooms.delete(roomId);
    this.#last.delete(roomId);
    this.#asked.delete(roomId);
    this.#isKnown(roomId);
    const feed = this.#feeds.get(roomId);
    if (!feed) return;
    feed.forget();
    this.#forgetIfUnused(roomId, feed);
  }

  /** What is for it waits no longer: the gateway has let it in, or will say what else is the matter. */
  #isKnown(roomId) {
    if (this.#unknown.delete(roomId)) this.#flush();
  }

  #tellLeft(roomId) {
    if (!this.#admitted) return;
    this.#entered.delete(roomId);
    this.#command("leave", { roomId }, () => {}, this.#options.timeout);
    this.#readyIfEntered();
  }

  #isIn(roomId, payload) {
    const again = this.#entered.has(roomId);
    this.#entered.add(roomId);
    this.#asked.delete(roomId);
    this.#isKnown(roomId);
    for (const { resolve } of this.#rooms.get(roomId)?.splice(0) ?? []) resolve();
    if (again) return;
    this.#isAt(roomId, payload);
    this.#askPresence(roomId);
  }

  /**
   * Access was taken back. The last room is kept in mind: the socket is closed with it, and `open()` asks again. For the
   * gateway it was not the last one while a room is still to be left.
   */
  #isOut(roomId) {
    const leaves = [...this.#commands.values()].some(({ type }) => type === "leave");
    if (this.#entered.delete(roomId) && (this.#rooms.size > 1 || leaves)) this.#forgetRoom(roomId);
  }

  /** When the gateway has answered for each room, also that it cannot ask about one. */
  #readyIfEntered() {
    if (this.#state !== "connecting" || !this.#admitted) return;
    for (const roomId of this.#rooms.keys()) if (!this.#entered.has(roomId) && !this.#unknown.has(roomId)) return;
    this.#readySince = this.#options.clock.now();
    this.#state = "ready";
    this.#flush();
    this.#look();
    this.#tell("state", { state: "ready" });
  }

  /** Whether this event or request can be sent now. A socket loses what it is given once either side has closed it. */
  #takes({ roomId, nowhere }) {
    if (this.#state !== "ready" || this.#holding || this.#socket.readyState !== OPEN) return false;
    const [first] = this.#rooms.keys();
    return nowhere || !this.#unknown.has(roomId ?? first);
  }

  #flush() {
    for (const [id, message] of this.#outbox) {
      if (message.socket === this.#socket || !this.#takes(message)) continue;
      if (message.answer) {
        this.#ask(id);
      } else {
        this.#outbox.delete(id);
        this.#events -= 1;
        this.#send(message.text, message);
      }
    }
    for (const [id, cancel] of this.#cancels) {
      if (cancel.socket === this.#socket || !this.#takes({ nowhere: true })) continue;
      if (cancel.socket) this.#cancels.delete(id);
      cancel.socket = this.#socket;
      this.#send(cancel.text, {});
    }
  }

  /** The gateway takes no more for a while, or until it has another token. Returns how soon it may do so again. */
  #hold(error) {
    const { clock, random, patience } = this.#options;
    const now = clock.now();
    const expired = error.code === EXPIRED;
    if (expired) this.#replaceToken();
    const wait = expired ? patience : 1000 * (error.retryAfter ?? 1) * (1 + random());
    this.#heldUntil = Math.max(this.#heldUntil, now + wait);
    clock.clearTimeout(this.#holding);
    this.#holding = clock.setTimeout(() => this.#release(), Math.min(this.#heldUntil - now, LONGEST_TIMER));
    return expired ? now : this.#heldUntil;
  }

  #release() {
    this.#options.clock.clearTimeout(this.#holding);
    this.#holding = undefined;
    this.#heldUntil = 0;
    this.#flush();
  }

  /** Whether the request is sent again when the gateway takes more: in its place, as if it had not been sent. */
  #isHeld(request, error) {
    if (request.due <= this.#hold(error)) return false;
    request.roomless &&= request.nowhere;
    request.socket = undefined;
    return true;
  }

  #ended(code, reason, error = this.#complaint?.code === reason ? this.#complaint : undefined) {
    if (this.#state === "ready" && this.#options.clock.now() - this.#readySince >= STEADY) this.#failures = 0;
    const longest = code === TOO_BIG ? this.#longest : {};
    // The room may be what was refused, and not the token.
    const onlyAsked = code === REFUSED && this.#refused && this.#asked.has(this.#first);
    this.#drop();
    this.#tooLong(longest);
    const askAgain = code === REFUSED && (onlyAsked || !this.#refused);
    if (code >= 4400 && code <= 4499 && !NOT_SO_SOON.has(code) && !askAgain) {
      this.#finish({ code, reason, error });
      return;
    }
    if (onlyAsked) this.#isNotFor(this.#first, error ?? refusal(reason, "the room was refused"));
    if (askAgain) this.#refused = true;
    const wait = this.#absence ?? this.#backOff(code, error);
    this.#after(wait, () => this.open());
    this.#become("waiting", { wait, code, reason, error });
  }

  /** The gateway closed the socket because of a message: it would close the next one, too. */
  #tooLong({ id, text }) {
    const event = text && JSON.parse(text);
    const type = event ? event.type : this.#outbox.get(id)?.type;
    if (!type) return;
    const error = refusal("TOO_LARGE", "the gateway takes no message so long", type);
    if (!event) {
      this.#outbox.get(id).answer(error);
      return;
    }
    this.#tell("error", error);
    this.#tell("dropped", event);
  }

  /** Full jitter: a gateway that is restarted does not meet all its clients at once. */
  #backOff(code, error) {
    const { base, cap, random } = this.#options;
    const later = NOT_SO_SOON.has(code);
    if (later || RESTARTED.has(code)) this.#failures = Math.max(this.#failures, FAILURES_AT_LEAST);
    const most = Math.min(cap, base * 2 ** this.#failures);
    this.#failures += 1;
    return (later ? 1000 * Math.max(1, error?.retryAfter ?? 0) : 0) + random() * most;
  }

  /** Be without a socket and without a timer. */
  #drop() {
    const { clock } = this.#options;
    const socket = this.#socket;
    if (this.#admitted && this.#socketId) this.#formerSockets = [...this.#formerSockets, this.#socketId].slice(-FORMER_SOCKETS);
    this.#socket = this.#socketId = null;
    this.#admitted = this.#probing = false;
    this.#longest = { size: 0 };
    this.#unknown.clear();
    for (const { stop } of this.#commands.values()) stop();
    this.#commands.clear();
    this.#entered.clear();
    for (const watched of this.#watched.values()) watched.asked = false;
    clock.clearTimeout(this.#timer);
    clock.clearTimeout(this.#refreshTimer);
    this.#replacing = null;
    for (const timer of this.#retries) clock.clearTimeout(timer);
    this.#retries.clear();
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.onerror = ignore;
    socket.close(1000);
  }

  #finish(why) {
    this.#failures = 0;
    globalThis.removeEventListener?.("online", this.#online);
    globalThis.document?.removeEventListener("visibilitychange", this.#seen);
    for (const [roomId, waiting] of this.#rooms) {
      if (!waiting.length) continue;
      this.#forgetRoom(roomId);
      for (const { reject } of waiting) reject(why.error ?? refusal("CLOSED", "the connection is closed"));
    }
    for (const { reject } of this.#wanted.splice(0)) reject(refusal("CLOSED", "the connection is closed"));
    const unsent = [...this.#outbox.values()];
    this.#outbox.clear();
    this.#events = 0;
    this.#cancels.clear();
    this.#become("closed", why);
    this.#options.clock.clearTimeout(this.#holding);
    this.#holding = undefined;
    for (const { text, answer, type } of unsent) {
      if (answer) answer(refusal("CLOSED", "the connection is closed", type));
      else this.#tell("dropped", JSON.parse(text));
    }
  }

  #become(state, details = {}) {
    this.#state = state;
    this.#tell("state", { state, ...details });
  }

  // What was heard of each room and of the user, and what was missed

  #feed(roomId) {
    if (!this.#feeds.has(roomId)) this.#feeds.set(roomId, new Feed());
    return this.#feeds.get(roomId);
  }

  #forgetIfUnused(roomId, feed) {
    if (!feed.known && !feed.snapshots.size && this.#feeds.get(roomId) === feed) this.#feeds.delete(roomId);
  }

  /** Of what a room was told, another user has heard nothing, and what excluded our sockets did not exclude theirs. */
  #forgetPositions() {
    this.#formerSockets = [];
    for (const feed of this.#feeds.values()) feed.position = undefined;
  }

  /** What the gateway is told of a room to enter, and of us there. */
  #shownIn(roomId) {
    const data = roomId === undefined ? undefined : (this.#data.get(roomId) ?? this.#options.data);
    const history = this.#entered.has(roomId) ? undefined : this.#last.get(roomId) || undefined;
    return { roomId, since: this.#since(roomId), data, history };
  }

  /** What the gateway is told of what was heard before; nothing to one that keeps no history of the room. */
  #since(roomId) {
    return this.#entered.has(roomId) ? undefined : this.#place(roomId);
  }

  #place(roomId) {
    const position = this.#feeds.get(roomId)?.position;
    return position && { ...position, socketIds: this.#formerSockets };
  }

  /** Whether the gateway tells this socket what that is told. */
  #isThere(roomId) {
    return roomId === USER ? this.#admitted : this.#entered.has(roomId);
  }

  /** What the gateway says of a topic: from where it goes on, and whether nothing, or all that follows, was missed. */
  #isAt(roomId, payload) {
    const feed = this.#feed(roomId);
    // Where users have no history nothing is said of theirs: each connection would be news.
    const news = feed.known && (roomId !== USER || feed.position || payload);
    const recovered = payload?.recovered === true;
    feed.known = true;
    feed.position = positionOf(payload);
    if (news) this.#tell("recovered", { roomId, recovered, reason: payload?.reason });
    // The gateway cannot know yet: a "position" follows.
    if (payload?.reason === "unavailable" && !feed.position) return;
    if (!recovered) {
      feed.texts.clear();
      feed.isStale();
    }
    this.#fetchDue(roomId, feed);
  }

  /** Tell of a message, once, and not before the state of its room, or of the user, which may be from before the message. */
  #hear(message) {
    const [type, , { roomId = USER, offset, userOffset }] = message.what;
    const feed = this.#feeds.get(roomId);
    if (feed?.hasHeard(roomId === USER ? userOffset : offset)) return;
    feed?.addPiece(message);
    // What the gateway itself says outside of rooms is about the connection.
    if (!feed?.busy || (roomId === USER && !type.includes(":"))) {
      this.#tellMessage(message);
    } else if (!feed.hold(message)) {
      feed.isStale();
      this.#tell("recovered", { roomId, recovered: false, reason: "too_many" });
    }
  }

  #tellHeld(feed) {
    for (let message; !feed.busy && (message = feed.next()); ) this.#tellMessage(message);
  }

  #fetchDue(roomId, feed, snapshots = feed.snapshots) {
    if (!this.#isThere(roomId)) return;
    for (const snapshot of snapshots) if (snapshot.due && !snapshot.busy) this.#fetch(roomId, feed, snapshot);
  }

  async #fetch(roomId, feed, snapshot) {
    snapshot.due = false;
    snapshot.busy = true;
    let failed;
    try {
      // Later, so that who has just ended this asks nobody, such as an effect of React's StrictMode.
      await null;
      if (feed.snapshots.has(snapshot)) await snapshot.fetch();
    } catch (cause) {
      failed = { cause };
    }
    snapshot.busy = false;
    if (!feed.snapshots.has(snapshot)) return;
    snapshot.failures = failed ? snapshot.failures + 1 : 0;
    if (failed) this.#notFetched(roomId, feed, snapshot, failed.cause);
    this.#tellHeld(feed);
    if (!failed) this.#fetchDue(roomId, feed, [snapshot]);
  }

  /** It is tried again when the room is entered again, and on this socket after a while. */
  #notFetched(roomId, feed, snapshot, cause) {
    const { base, cap } = this.#options;
    snapshot.due = true;
    if (!this.#isThere(roomId)) return;
    const wait = Math.min(cap, 2 * base * 2 ** (snapshot.failures - 1));
    this.#retry({ retryAfter: Math.max(wait / 1000, cause?.retryAfter ?? 0) }, () => this.#fetchDue(roomId, feed, [snapshot]));
    const message = `the state of the ${roomId === USER ? "user" : "room"} could not be fetched: ${cause}`;
    this.#tell("error", new KraftekError({ code: NO_SNAPSHOT, message, roomId: roomId ?? undefined }, { cause }));
  }

  // Who is in a room

  /** Also after a reconnect: what changed meanwhile is told then, or that nothing has. */
  #askPresence(roomId) {
    const watched = this.#watched.get(roomId);
    if (!watched || watched.asked || !this.#entered.has(roomId)) return;
    watched.asked = true;
    this.#command("presence", { roomId, version: watched.version }, (error, payload) => {
      if (this.#watched.get(roomId) !== watched) return;
      watched.asked = false;
      if (!error) {
        watched.tell(payload);
      } else if (NOT_KNOWN_YET.has(error.code) || isLimited(error)) {
        this.#retry(error, () => this.#askPresence(roomId));
      } else {
        error.roomId = roomId;
        this.#tell("error", error);
      }
    });
  }

  // Whether anybody is still there. Scripts of a browser do not see the gateway's pings, nor that they stopped.

  #online = () => {
    if (this.#state === "waiting") this.open();
    else this.#probe();
  };

  #seen = () => {
    if (!globalThis.document.hidden) this.#probe();
  };

  #look() {
    const { clock, heartbeat } = this.#options;
    const silent = clock.now() - this.#heardAt;
    clock.clearTimeout(this.#timer);
    if (silent >= heartbeat) this.#probe();
    else if (heartbeat <= LONGEST_TIMER) this.#after(heartbeat - silent, () => this.#look());
  }

  /** Ask for a sign of life: a browser does not show its pages the WebSocket's own pings. */
  #probe() {
    if (this.#state !== "ready" || this.#probing) return;
    this.#probing = true;
    this.#after(this.#options.patience, () => this.#ended(LOST, ""));
    this.#command("ping", undefined, () => {});
  }

  // Messages

  #read(data) {
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      message = null;
    }
    if (typeof message?.type === "string") this.#received(message, data.length);
    else this.#ended(NO_GATEWAY, `not ${SUBPROTOCOL}`);
  }

  #received({ type, payload, id, roomId, offset, userOffset, run, number, receipt, append }, size) {
    this.#heardAt = this.#options.clock.now();
    if (this.#probing) {
      this.#probing = false;
      this.#look();
    }
    const error = type === "error" ? new KraftekError({ ...payload, roomId }) : null;
    if (id !== undefined) {
      const asked = this.#commands.get(id) ?? this.#outbox.get(id);
      if (type === "progress") {
        asked?.hear?.(payload, { run, number });
        return;
      }
      if (error && isRefusedFor(error) && this.#outbox.has(id) && this.#isHeld(asked, error)) return;
      this.#commands.delete(id);
      this.#cancels.delete(id);
      // Who asked may have stopped waiting.
      asked?.stop?.();
      asked?.answer?.(error, payload);
    } else if (error) {
      this.#complaint = error;
      if (isLimited(error) || (error.code === EXPIRED && this.#admitted)) this.#hold(error);
      if (error.code === "ACCESS_REVOKED") this.#isOut(roomId);
      this.#tell("error", error);
    } else {
      if (type === "drain" && Number.isFinite(payload?.reconnectAfter)) {
        this.#absence = Math.min(LONGEST_ABSENCE, Math.max(0, 1000 * payload.reconnectAfter));
      }
      if (type === "connected" && !this.#admitted) this.#socketId = payload?.socketId ?? null;
      if (type === "presence") this.#watched.get(roomId)?.tell(payload);
      const topic = roomId ?? USER;
      if (type === "position" && this.#isThere(topic) && positionOf(payload)) this.#isAt(topic, payload);
      if (OWN.has(type)) return;
      const about = { roomId, ...(offset !== undefined && { offset }), ...(userOffset !== undefined && { userOffset }) };
      if (append) about.append = append;
      this.#hear({ what: [type, payload, about], size, receipt });
    }
  }

  /** `limit`: after so long nobody waits for the answer any more. */
  #command(type, payload, answer, limit = Infinity, late = () => {}) {
    const id = this.#newId();
    const stop = this.#within(limit, () => {
      this.#commands.delete(id);
      late();
    });
    this.#commands.set(id, { type, answer, stop });
    this.#send(JSON.stringify({ type, payload, id }), {});
  }

  /** Requests that were sent from no room are sent again from none: before any is entered, and not for the first one. */
  #fromNowhere() {
    return [...this.#outbox].filter(([, request]) => request.nowhere).map(([id]) => id);
  }

  /** Send a request. For another room than the first time it would be another one to the gateway, and be done twice. */
  #ask(id) {
    const request = this.#outbox.get(id);
    if (!request.socket) {
      const [roomId] = this.#rooms.keys();
      if (request.roomless && roomId !== undefined) {
        request.text = withMember(request.text, "roomId", roomId);
        request.roomId = roomId;
      }
      request.nowhere = request.roomless && roomId === undefined;
    } else if (!request.resent) {
      request.text = withMember(request.text, "resent", true);
      request.resent = true;
    }
    request.socket = this.#socket;
    this.#send(request.place ? withMember(request.text, "progress", request.place) : request.text, { id });
  }

  /** `what`: the `id` of a request, or the `text` of an event. */
  #send(text, what) {
    const size = utf8.encode(text).length;
    if (size > this.#longest.size) this.#longest = { size, id: what.id, text: what.id ? undefined : what.text };
    this.#socket.send(text);
  }

  #newId() {
    this.#count += 1;
    return `${this.#ids}-${this.#count}`;
  }

  /** Put a room before the others, in the place of the one that was named before. */
  #name(roomId) {
    if ((roomId ?? this.#named) === this.#named) return;
    leftAlready(this.#rooms.get(this.#named) ?? []);
    const waiting = this.#rooms.get(roomId) ?? [];
    this.#forgetRoom(this.#named);
    this.#rooms.delete(roomId);
    this.#named = roomId;
    this.#asked.delete(roomId);
    this.#rooms = new Map([[roomId, waiting], ...this.#rooms]);
    if (!this.#last.has(roomId)) this.#last.set(roomId, this.#options.history);
  }

  // Times and listeners

  #after(wait, call) {
    const { clock } = this.#options;
    clock.clearTimeout(this.#timer);
    this.#timer = clock.setTimeout(call, wait);
  }

  /** When no answer came in time: do this, and ask whether anybody is there. What is returned calls that off. */
  #within(timeout, call) {
    if (timeout > LONGEST_TIMER) return () => {};
    const { clock } = this.#options;
    const timer = clock.setTimeout(() => {
      call();
      this.#probe();
    }, timeout);
    return () => clock.clearTimeout(timer);
  }

  /** Do it again on this socket when the gateway says so. Returns when that is. */
  #retry({ retryAfter = 1 }, call) {
    const { clock, random } = this.#options;
    const wait = 1000 * retryAfter * (1 + random());
    const timer = clock.setTimeout(() => {
      this.#retries.delete(timer);
      call();
    }, wait);
    this.#retries.add(timer);
    return wait;
  }

  #listen(type, entry) {
    this.#listeners.set(type, [...(this.#listeners.get(type) ?? []), entry]);
    return this;
  }

  #forget(type, which) {
    this.#listeners.set(type, (this.#listeners.get(type) ?? []).filter((each) => !which(each)));
  }

  /** Who has sent it may want to know that it was handled. On another socket the word would count for nothing. */
  #tellMessage({ what, receipt }) {
    const handled = this.#tell(...what);
    if (!handled || !Number.isSafeInteger(receipt) || !this.#admitted || this.#socket.readyState !== OPEN) return;
    this.#send(JSON.stringify({ type: "receipt", id: receipt }), {});
  }

  /** Whether anybody has heard it, and nobody failed. */
  #tell(type, ...what) {
    let [heard, failed] = [false, false];
    for (const entry of this.#listeners.get(type) ?? []) {
      // Another listener may have just ended it, or been told something more in the meantime.
      if (!this.#listeners.get(type).includes(entry)) continue;
      if (entry.once) this.#forget(type, (each) => each === entry);
      heard = true;
      failed = !call(entry.listener, ...what) || failed;
    }
    return heard && !failed;
  }
}

/** Who is in one room, as far as the gateway has told, and who wants to know it. */
class Watched {
  listeners = new Set();
  known = false;
  present = { users: [], count: 0 };
  /** The gateway's name for that, by which it knows whether anything is different. */
  version;
  /** The gateway has yet to answer. */
  asked = false;

  /** The room was left. */
  forget() {
    this.version = undefined;
  }

  tell(payload) {
    const { count, version, users, joined = [], left = [] } = payload ?? {};
    // A change before the answer is of what somebody has asked before, who wants to know it no more.
    if (!Number.isSafeInteger(count) || (!this.known && !users)) return;
    const before = new Map(this.present.users.map((user) => [user.userId, user]));
    const now = new Map(users ? [] : before);
    for (const user of users ?? joined) now.set(user.userId, user);
    for (const userId of left) now.delete(userId);
    const fresh = [...now.values()].filter((user) => !isSame(user, before.get(user.userId)));
    const gone = [...before.keys()].filter((userId) => !now.has(userId));
    const changed = !this.known || fresh.length || gone.length || count !== this.present.count;
    this.known = true;
    this.version = version;
    this.present = { users: [...now.values()], count };
    if (!changed) return;
    for (const entry of [...this.listeners]) {
      if (this.listeners.has(entry)) call(entry.listener, { ...this.present, joined: fresh, left: gone });
    }
  }
}

const isSame = (user, other) => other !== undefined && JSON.stringify(user.data) === JSON.stringify(other.data);

/** A listener's mistake is reported as one, and is no reason for the others not to hear. Whether it made none. */
function call(listener, ...what) {
  try {
    listener(...what);
    return true;
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
    return false;
  }
}

/** What was heard of one room, or of the user, and who fetches its state. */
class Feed {
  /** Of the last message, `{epoch, offset}`; none where the gateway keeps no history. */
  position;
  /** The room was entered, and was not left since. */
  known = false;
  /** `due`: it is to be fetched. `busy`: that is under way; if it is `due` as well, once more after that. */
  snapshots = new Set();
  /** The texts that go on, as far as they were heard from the beginning; the one that has got no piece for longest first. */
  texts = new Map();
  #held = [];
  #size = 0;

  /** Somebody fetches its state. */
  get busy() {
    return [...this.snapshots].some(({ busy }) => busy);
  }

  /** The room was left. */
  forget() {
    this.position = undefined;
    this.known = false;
    this.texts.clear();
    this.#giveUp();
    this.isStale();
  }

  isStale() {
    for (const snapshot of this.snapshots) snapshot.due = true;
  }

  /** Whether the message with this offset was heard before; from now on it was. */
  hasHeard(offset) {
    if (!this.position || offset === undefined) return false;
    if (offset <= this.position.offset) return true;
    this.position.offset = offset;
    return false;
  }

  /** Add to a piece of a text the text, if it is known. */
  addPiece({ what: [, piece, { append }] }) {
    if (!append || typeof piece !== "string") return;
    const before = append.from === undefined ? this.texts.get(append.key) : "";
    this.texts.delete(append.key);
    if (before === undefined) return;
    append.text = before + piece;
    if (!append.last) this.texts.set(append.key, append.text);
    if (this.texts.size > TEXTS) this.texts.delete(this.texts.keys().next().value);
  }

  /** Keep the message for `next`. False when that is too much: then all of them are given up. */
  hold(message) {
    this.#held.push(message);
    this.#size += message.size;
    if (this.#size <= HELD) return true;
    this.#giveUp();
    return false;
  }

  next() {
    const message = this.#held.shift();
    this.#size -= message?.size ?? 0;
    return message;
  }

  #giveUp() {
    this.#held = [];
    this.#size = 0;
  }
}

/**
 * The state of a room: what `snapshot` returns, or the promise of it, and then what `changes` make of it, by the type of
 * the room's messages: `(state, payload, about) => state`. Of a message that comes while the snapshot is fetched nobody knows
 * whether it is in there already, so a change must be one that may be made twice: by key, not by count. With `null` for the
 * room it is that of the user, and of messages outside of rooms.
 */
export class RoomState {
  #value;
  #error = null;
  #current = false;
  #listeners = new Set();
  #ends = [];

  constructor(client, roomId, { snapshot, changes = {} }) {
    const isHere = (about) => (about.roomId ?? USER) === roomId;
    const listen = (type, listener) => {
      client.on(type, listener);
      this.#ends.push(() => client.off(type, listener));
    };
    for (const [type, change] of Object.entries(changes)) {
      listen(type, (payload, about) => {
        if (this.#current && isHere(about)) this.#show(change(this.#value, payload, about));
      });
    }
    listen("error", (error) => {
      // Without a room it may be about anything.
      if (isHere(error) && (roomId !== USER || error.code === NO_SNAPSHOT)) this.#error = error;
    });
    const fetch = async () => {
      // After a failure nobody knows what it is that would be changed.
      this.#current = false;
      const value = await snapshot();
      this.#current = true;
      this.#error = null;
      this.#show(value);
    };
    this.#ends.push(roomId === USER ? client.userSnapshot(fetch) : client.snapshot(roomId, fetch));
    if (roomId === USER) return;
    client.join(roomId, { timeout: Infinity }).catch((error) => {
      this.#error = error;
    });
  }

  /** The state, as far as it is known: undefined before the first snapshot. */
  get value() {
    return this.#value;
  }

  /** Why the room is not entered, or its state not fetched: the last such `KraftekError` since it was. */
  get error() {
    return this.#error;
  }

  /** Have `listener` called with the state, now if there is one, and at each change. Returns a function that ends this. */
  subscribe(listener) {
    const entry = { listener };
    this.#listeners.add(entry);
    if (this.#value !== undefined) listener(this.#value);
    return () => this.#listeners.delete(entry);
  }

  /** Change no more. The room is not left by this. */
  close() {
    for (const end of this.#ends.splice(0)) end();
    this.#listeners.clear();
  }

  #show(value) {
    this.#value = value;
    for (const { listener } of [...this.#listeners]) listener(value);
  }
}

/** Of what the gateway says of a topic; undefined where it keeps no history. */
function positionOf(payload) {
  const { epoch, offset } = payload ?? {};
  return typeof epoch === "string" && Number.isSafeInteger(offset) ? { epoch, offset } : undefined;
}

/** The JSON of an object, with one member more. */
function withMember(text, name, value) {
  return `${text.slice(0, -1)},"${name}":${JSON.stringify(value)}}`;
}

function checkName(type) {
  if (NAME.test(type) && [...type].length <= NAME_LENGTH) return;
  const rule = `service:module:name, of at most ${NAME_LENGTH} characters without white space`;
  throw new TypeError(`an event's name is ${rule}; found ${JSON.stringify(type)}`);
}

/** What no gateway would take, on no socket, is the caller's mistake. */
function checkRoom(roomId) {
  if (roomId === undefined || roomId === null) return;
  const isName = typeof roomId === "string" && roomId !== "" && !HALF_A_PAIR.test(roomId);
  if (!isName || [...roomId].length > ROOM_LENGTH) {
    throw new TypeError(`a room's name is a string of 1 to ${ROOM_LENGTH} characters`);
  }
}

/** Whether the gateway has refused it for a while. A service's own refusal is its answer, also to the same id. */
function isLimited({ code, limit }) {
  return code === "RATE_LIMITED" && limit !== undefined;
}

/** The same, or until it has another token. */
function isRefusedFor({ code, limit }) {
  return isLimited({ code, limit }) || code === EXPIRED;
}

/** Whether a token or a room is shown again on the same socket. */
function isForLater(error) {
  return error.code === "AUTH_UNAVAILABLE" || isLimited(error);
}

/** What the token's callback gave. */
function credentials(shown) {
  const found = typeof shown === "string" ? { token: shown } : shown;
  checkRoom(found?.roomId);
  if (typeof found?.token === "string") return found;
  throw new TypeError("expected a string or {token, roomId} of options.token");
}

function refusal(code, message, eventType) {
  return new KraftekError({ code, message, eventType });
}

function tooLate(timeout, eventType) {
  return refusal("TIMEOUT", `no answer within ${timeout} ms`, eventType);
}

function leftAlready(waiting) {
  for (const { reject } of waiting) reject(refusal("LEFT", "left before it was entered"));
}
