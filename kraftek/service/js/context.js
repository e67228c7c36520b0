/**
 * What a handler gets beside the payload: the event, and what can be done about it. What it sends becomes Redis commands,
 * which are committed together when it has returned; only what it awaits happens at once.
 */

import { encode } from "./envelopes.js";
import {
  GATEWAY_LEASES,
  GATEWAY_OWN,
  GATEWAY_STREAM,
  RECEIPT,
  REGISTRATIONS,
  ROOM_PUT,
  ROOM_REMOVE,
  gatewayOf,
  lateAnswerKey,
  roomKey,
  roomTopic,
  serviceOf,
} from "./names.js";
import { PROGRESS, Parts } from "./progress.js";
import { LONGEST_RECEIPT, USERS } from "./receipts.js";
import { APPEND, piece, told } from "./texts.js";

/**
 * @typedef {import("./index.js").Context} IContext
 * @typedef {import("./index.js").Receipt} Receipt
 * @typedef {import("./envelopes.js").Incoming} Incoming
 * @typedef {import("./envelopes.js").Message} Message
 * @typedef {import("./service.js").Service} Service
 * @typedef {import("./connection.js").Word} Word
 *
 * @typedef {object} Command A Redis command.
 * @property {"always" | "unheard" | "emit"} when `unheard` is a PUBLISH that is sent only if the one before it had no
 *   receiver, and has another word: the key under which its message is stored if it has none either. `emit` is an event for the stream of the gateways, which may be full: its words are the stream and the event.
 * @property {Word[]} words
 * @property {{leases: string, published: string, command: string}} [wants] A command to gateways that all of them must
 *   know, and the keys of their leases, and of what they publish.
 * @property {Topic} [topic] Of a PUBLISH, which is told otherwise if that has a history.
 *
 * @typedef {{name: string, prefix: string}} Topic
 *
 * @typedef {object} Link What a handler can use while it runs.
 * @property {(...words: Word[]) => Promise<unknown>} call
 * @property {(script: string, keys: string[], args: Word[]) => Promise<unknown>} run
 * @property {(event: Record<string, unknown>, timeout: number) => Promise<unknown>} request
 * @property {(message: Message, timeout: number) => Promise<Receipt>} receipt
 */

/** Characters of a room's name at most. */
const ROOM_LENGTH = 256;

const DISCONNECT = "disconnect";
const COMMANDS = new Set([ROOM_PUT, ROOM_REMOVE, RECEIPT]);
/** docs/errors.rst, "Codes". */
const CODE = /^[A-Z][A-Z0-9_]{0,63}$/;

/** @implements {IContext} */
export class Context {
  /** @type {Command[]} */
  commands = [];
  #service;
  #event;
  #link;
  #replied = false;
  #later = false;
  #ended = false;
  #cancelled = false;
  /** @type {AbortController | undefined} */
  #end;
  /** @type {Parts | undefined} */
  #parts;
  #goesOn;

  /**
   * @param {Service} service
   * @param {Incoming} event
   * @param {Link} link
   * @param {() => void} goesOn called when a part of the answer, or a piece of a text, is sent
   */
  constructor(service, event, link, goesOn = () => {}) {
    this.#goesOn = goesOn;
    this.#service = service;
    this.#event = event;
    this.#link = link;
  }

  get eventType() {
    return this.#event.eventType;
  }

  get userId() {
    return this.#event.userId;
  }

  get socketId() {
    return this.#event.socketId;
  }

  get roomId() {
    return this.#event.roomId;
  }

  get id() {
    return this.#event.id;
  }

  get replyTo() {
    return this.#event.replyTo;
  }

  get source() {
    return this.#event.source;
  }

  get timestamp() {
    return this.#event.timestamp;
  }

  get signal() {
    this.#end ??= new AbortController();
    if (this.#ended || this.#cancelled) this.#end.abort();
    return this.#end.signal;
  }

  get cancelled() {
    return this.#cancelled;
  }

  /** @param {unknown} payload */
  reply(payload) {
    if (this.#replied) throw new Error(`${this.eventType} has been answered already`);
    this.#replied = true;
    if (this.id !== undefined && this.socketId && payload !== undefined && payload !== null) {
      this.#service.answered = this.eventType;
    }
    if (this.id !== undefined) this.#add(...toSender(this.#service, this.#event, this.eventType, payload));
  }

  /** @param {unknown} payload */
  async progress(payload) {
    this.#mustRun();
    const { id, progress, socketId } = this.#event;
    if (id === undefined || !progress || !socketId) return false;
    this.#goesOn();
    this.#parts ??= new Parts(this.#service, this.#event, id);
    return (await this.#link.run(PROGRESS, ...this.#parts.next(payload))) === 1;
  }

  answerLater() {
    this.#later = true;
  }

  /** Whether the sender waits, and nobody has answered or will. */
  get owesAnswer() {
    return this.id !== undefined && !this.#replied && !this.#later;
  }

  /**
   * @param {string} type
   * @param {unknown} payload
   * @param {{roomId?: string | undefined, exclude?: Iterable<string> | undefined}} [options]
   */
  broadcastToRoom(type, payload, { roomId, exclude } = {}) {
    this.#publish({ type, payload, roomId: this.#room(roomId), excludeSocketIds: some(exclude ?? []) });
  }

  /**
   * @param {string} type
   * @param {string} key
   * @param {string} text
   * @param {{roomId?: string | undefined, first?: boolean | undefined, last?: boolean | undefined, id?: string | undefined}} [options]
   */
  async appendToRoom(type, key, text, { roomId, ...options } = {}) {
    this.#mustRun();
    const args = piece(this.#service, type, key, text, this.#room(roomId), options);
    this.#goesOn();
    return told(await this.#link.run(APPEND, [], args));
  }

  /**
   * @param {string} type
   * @param {unknown} payload
   * @param {string} userId
   */
  broadcastToUser(type, payload, userId) {
    this.broadcastToUsers(type, payload, [userId]);
  }

  /**
   * @param {string} type
   * @param {unknown} payload
   * @param {Iterable<string>} userIds
   */
  broadcastToUsers(type, payload, userIds) {
    const users = some(userIds);
    if (users) this.#publish({ type, payload, userIds: users });
  }

  /**
   * @param {string} type
   * @param {unknown} payload
   * @param {Iterable<string>} socketIds
   */
  broadcastToSockets(type, payload, socketIds) {
    const recipients = some(socketIds);
    if (!recipients) return;
    // When all of them are on the sender's gateway, no other one needs the message.
    const gateways = new Set([...recipients, this.socketId].map(gatewayOf));
    this.#publish({ type, payload, recipients }, gateways.size === 1 && !gateways.has("") ? this.#event.replyTo : "");
  }

  /**
   * @param {string} type
   * @param {unknown} payload
   * @param {{exclude?: Iterable<string> | undefined}} [options]
   */
  broadcastToEverybody(type, payload, { exclude } = {}) {
    this.#publish({ type, payload, everybody: true, excludeSocketIds: some(exclude ?? []) });
  }

  /**
   * @param {string} type
   * @param {unknown} payload
   * @param {{roomId?: string | undefined, userIds?: Iterable<string> | undefined, exclude?: Iterable<string> | undefined,
   *   timeout?: number | undefined}} [options]
   * @returns {Promise<Receipt>}
   */
  async broadcastWithReceipt(type, payload, { roomId, userIds, exclude, timeout = 5_000 } = {}) {
    this.#mustRun();
    if (!(timeout > 0 && timeout <= LONGEST_RECEIPT)) throw new TypeError(`timeout: expected at most ${LONGEST_RECEIPT} ms`);
    const excludeSocketIds = some(exclude ?? []);
    if (!userIds) return this.#link.receipt({ type, payload, roomId: this.#room(roomId), excludeSocketIds }, timeout);
    if (roomId !== undefined || excludeSocketIds) {
      throw new TypeError(`${type}: expected users, or else a room, and what to exclude in it`);
    }
    const users = some(userIds);
    if (!users) return { acknowledged: [], slow: [], offline: [], owed: [], complete: true };
    if (new Set(users).size > USERS) throw new TypeError(`${type}: expected at most ${USERS} users for a receipt`);
    return this.#link.receipt({ type, payload, userIds: users }, timeout);
  }

  /**
   * @param {{userIds?: Iterable<string>, socketIds?: Iterable<string>, roomId?: string, code?: string, message?: string}} whom
   */
  disconnect({ userIds, socketIds, roomId, code = "ACCESS_REVOKED", message = "disconnected by a service" }) {
    if (!CODE.test(code)) throw new TypeError(`${code}: expected a code of at most 64 capitals, digits and _`);
    const [users, recipients] = [some(userIds ?? []), some(socketIds ?? [])];
    if (!users && !recipients) return;
    this.#publish({ type: DISCONNECT, payload: { code, message }, recipients, roomId, userIds: users });
  }

  /**
   * @param {string} roomId
   * @param {{userIds?: Iterable<string>, socketIds?: Iterable<string>, permissions?: Iterable<string>}} whom
   */
  putInRoom(roomId, { userIds, socketIds, permissions = [`${this.#service.name}:*:*`] }) {
    const permitted = typeof permissions === "string" ? [permissions] : [...permissions];
    this.#command(ROOM_PUT, { permissions: permitted }, roomId, userIds, socketIds);
  }

  /**
   * @param {string} roomId
   * @param {{userIds?: Iterable<string>, socketIds?: Iterable<string>}} whom
   */
  removeFromRoom(roomId, { userIds, socketIds }) {
    this.#command(ROOM_REMOVE, null, roomId, userIds, socketIds);
  }

  /**
   * @param {string} event
   * @param {unknown} [payload]
   * @param {{roomId?: string | undefined}} [options]
   */
  emit(event, payload, { roomId } = {}) {
    this.#add(toGateway(this.#service, this.#sent(event, payload, roomId)));
  }

  /** @param {Word[]} command */
  also(...command) {
    this.#add({ when: "always", words: command });
  }

  /**
   * @param {string} event
   * @param {unknown} [payload]
   * @param {{roomId?: string | undefined, timeout?: number | undefined}} [options]
   */
  async request(event, payload, { roomId, timeout = 10_000 } = {}) {
    this.#mustRun();
    return this.#link.request(this.#sent(event, payload, roomId), timeout);
  }

  /** @param {Word[]} command */
  async redis(...command) {
    this.#mustRun();
    return decoded(await this.#link.call(...command));
  }

  /** @param {string} [roomId] */
  async whoIsIn(roomId) {
    const found = /** @type {string[]} */ (await this.redis("HGETALL", this.#service.prefix + roomKey(this.#room(roomId))));
    /** @type {Map<string, string>} */
    const sockets = new Map();
    for (let at = 0; at < found.length; at += 2) sockets.set(String(found[at]), String(found[at + 1]));
    return sockets;
  }

  /** Called by cancels.js when the client has cancelled the request. */
  cancel() {
    this.#cancelled = true;
    this.#end?.abort();
  }

  /** Called by handling.js when the handler has ended, or was given up. */
  end() {
    this.#ended = true;
    this.#end?.abort();
  }

  /** @param {Command[]} commands */
  #add(...commands) {
    this.#mustRun();
    this.commands.push(...commands);
  }

  #mustRun() {
    if (this.#ended) throw new Error(`the handler of ${this.eventType} has ended: what it says now is not sent`);
  }

  /** @param {string | undefined} roomId */
  #room(roomId) {
    const room = roomId ?? this.roomId;
    if (room === undefined) throw new TypeError("expected a roomId: the event belongs to no room");
    return room;
  }

  /**
   * @param {string} type
   * @param {unknown} payload
   * @param {string} roomId
   * @param {Iterable<string>} [users]
   * @param {Iterable<string>} [sockets]
   */
  #command(type, payload, roomId, users = [], sockets = []) {
    if (!roomId || [...roomId].length > ROOM_LENGTH) {
      throw new TypeError(`${type}: expected a room's name of 1 to ${ROOM_LENGTH} characters`);
    }
    const [userIds, recipients] = [some(users), some(sockets)];
    if (userIds || recipients) this.#publish({ type, payload, recipients, roomId, userIds });
  }

  /**
   * @param {Message} message
   * @param {string} [channel]
   */
  #publish(message, channel) {
    this.#add(publish(this.#service, channel || this.#service.broadcast, message));
  }

  /**
   * @param {string} event
   * @param {unknown} payload
   * @param {string | undefined} roomId
   */
  #sent(event, payload, roomId) {
    if (serviceOf(event) === undefined) throw new TypeError(`${event}: expected service:module:name`);
    return {
      source: this.#service.name,
      eventType: event,
      payload,
      userId: this.userId || undefined,
      roomId: (roomId ?? this.roomId) || undefined,
      traceparent: this.#event.traceparent || undefined,
    };
  }
}

/**
 * Send the sender an error.
 *
 * @param {Service} service
 * @param {Incoming} event
 * @param {string} code
 * @param {string} message
 * @param {number} [retryAfter] seconds
 */
export function refusal(service, event, code, message, retryAfter) {
  if (event.eventType.startsWith(GATEWAY_OWN)) return [];
  return toSender(service, event, "error", { code, message, eventType: event.eventType, retryAfter });
}

/**
 * Send to the sender's gateway. In case that one has died, a request's answer goes to all gateways, and in case that there is
 * none, to where the next one looks for it.
 *
 * @param {Service} service
 * @param {Incoming} event
 * @param {string} type
 * @param {unknown} payload
 * @returns {Command[]}
 */
function toSender(service, event, type, payload) {
  if (!event.socketId) {
    return event.replyTo ? [publish(service, event.replyTo, { type, payload, inReplyTo: event.id })] : [];
  }
  const message = { type, payload, recipients: [event.socketId], inReplyTo: event.id };
  const commands = [publish(service, event.replyTo || service.broadcast, message)];
  if (event.id !== undefined && event.replyTo) {
    const again = publish(service, service.broadcast, { ...message, userIds: [event.userId] });
    const late = service.prefix + lateAnswerKey(event.socketId, event.id);
    commands.push({ when: "unheard", words: [...again.words, late] });
  }
  return commands;
}

/**
 * Send a message to clients.
 *
 * @param {Service} service
 * @param {string} channel
 * @param {Message} message
 * @returns {Command}
 */
export function publish(service, channel, message) {
  /** @type {Command} */
  const command = {
    when: "always",
    words: ["PUBLISH", channel, encode(message.type, { ...message }, service.messageBytes)],
  };
  if (COMMANDS.has(message.type)) {
    const [leases, published] = [service.prefix + GATEWAY_LEASES, service.prefix + REGISTRATIONS];
    command.wants = { leases, published, command: message.type };
  }
  const name = topicOf(message);
  if (name) command.topic = { name, prefix: service.prefix };
  return command;
}

/**
 * Whom a message is for, if that is a room or users, and nobody else: a topic, or `users:` and the JSON list with which the
 * message ends. It is part of their history, if they have one.
 *
 * @param {Message} message
 */
function topicOf({ type, roomId, recipients, userIds, everybody, inReplyTo }) {
  if (recipients || everybody || inReplyTo !== undefined || type === DISCONNECT || type.startsWith(GATEWAY_OWN)) return undefined;
  if (userIds) return roomId ? undefined : `users:${JSON.stringify(userIds)}`;
  return roomId ? roomTopic(roomId) : undefined;
}

/**
 * Send an event to another service, through a gateway.
 *
 * @param {Service} service
 * @param {Record<string, unknown>} event
 * @returns {Command}
 */
export function toGateway(service, event) {
  const body = encode(String(event.eventType), event, service.messageBytes);
  return { when: "emit", words: [service.prefix + GATEWAY_STREAM, body] };
}

/**
 * Ids without empty ones; `undefined` where there are none. A single string counts as one id.
 *
 * @param {Iterable<string>} ids
 */
function some(ids) {
  const found = (typeof ids === "string" ? [ids] : [...ids]).filter(Boolean);
  return found.length ? found : undefined;
}

/**
 * @param {unknown} answer
 * @returns {unknown}
 */
function decoded(answer) {
  if (Array.isArray(answer)) return answer.map(decoded);
  return Buffer.isBuffer(answer) ? answer.toString() : answer;
}
