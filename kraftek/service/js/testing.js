/**
 * For tests of services: a stand-in for the gateway, with the same protocol over a real Redis. It needs no runner of its
 * own; README.md has an example with node:test.
 */

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { crc32 } from "node:zlib";

import { Redis } from "ioredis";

import { connectionOptions } from "./address.js";
import { encode } from "./envelopes.js";
import { Refused } from "./errors.js";
import {
  BROADCAST,
  GATEWAY_STREAM,
  RECEIPT,
  REQUEST_PROGRESS,
  ROOM_PUT,
  ROOM_REMOVE,
  replyChannel,
  roomKey,
} from "./names.js";

/** Milliseconds that anything may take. */
const PATIENCE = 10_000;

/**
 * @typedef {import("./testing.js").TestGateway} ITestGateway
 * @typedef {import("./testing.js").TestClient} ITestClient
 * @typedef {import("./testing.js").Delivered} Delivered
 * @typedef {import("./service.js").Service} Service
 * @typedef {Record<string, any>} Json
 */

/** @implements {ITestGateway} */
export class TestGateway {
  gatewayId = randomBytes(6).toString("hex");
  /** The prefix of the services, which all have the same; known once the first service is registered. */
  prefix = "";
  replyTo = replyChannel(this.gatewayId);
  /** @type {Set<TestClient>} */
  clients = new Set();
  /** @type {Map<string, Service>} */
  #services = new Map();
  /** @type {import("./index.js").Running[]} */
  #running = [];
  /** Ends what `start` has started. */
  #end = async () => {};
  #listening;
  /** Whoever waits for a message. @type {Set<() => void>} */
  #waiting = new Set();
  #barriers = 0;
  #read = "0";

  /** @param {string} url */
  constructor(url) {
    this.url = url;
    this.redis = new Redis(connectionOptions(url));
    this.#listening = this.redis.duplicate();
    this.#listening.on("message", (_, text) => this.#told(JSON.parse(text)));
  }

  /** @param {string} url */
  static async connect(url) {
    const gateway = new TestGateway(url);
    await gateway.#listening.subscribe(BROADCAST, gateway.replyTo);
    return gateway;
  }

  static async start() {
    const place = mkdtempSync(join(tmpdir(), "kraftek-service-"));
    const path = join(place, "redis.sock");
    const options = ["--port", "0", "--unixsocket", path, "--save", "", "--dir", place];
    const server = spawn("redis-server", options, { stdio: "ignore" });
    const ended = new Promise((resolve) => server.once("exit", resolve).once("error", resolve));
    const redis = new Redis({ path, retryStrategy: () => 10, maxRetriesPerRequest: null });
    redis.on("error", () => {});
    const failed = ended.then(() => {
      throw new Error("redis-server does not start: is it installed?");
    });
    await Promise.race([redis.ping(), failed]).finally(() => redis.disconnect());
    const gateway = await TestGateway.connect(`unix://${path}`);
    gateway.#end = async () => {
      server.kill();
      await ended;
      rmSync(place, { recursive: true });
    };
    return gateway;
  }

  /** @param {Service} service */
  async run(service) {
    await this.register(service);
    const running = service.start(this.url);
    this.#running.push(running);
    await running.begun;
  }

  /** @param {Service} service */
  async register(service) {
    this.#services.set(service.name, service);
    this.prefix = service.prefix;
    await this.#listening.subscribe(service.broadcast);
  }

  /**
   * @param {string} userId
   * @param {{roomId?: string | undefined}} [options]
   */
  async client(userId, { roomId } = {}) {
    const client = new TestClient(this, userId, roomId);
    this.clients.add(client);
    if (roomId !== undefined) {
      await this.redis.hset(this.prefix + roomKey(roomId), userId, client.socketId);
      await this.redis.set(`${this.prefix}socket:${userId}:${roomId}`, client.socketId);
    }
    return client;
  }

  /**
   * @param {Json} envelope
   * @param {Service} [to]
   */
  async deliver(envelope, to) {
    const [name] = String(envelope.eventType).split(":");
    const service = to ?? this.#services.get(String(name));
    if (!service) throw new Error(`${name}: no such service was run or registered`);
    const body = encode(String(envelope.eventType), envelope, Infinity);
    if (service.transport === "pubsub") return void (await this.redis.publish(service.channel, body));
    const number = crc32(Buffer.from(envelope.roomId ?? envelope.socketId ?? "")) % service.streams.length;
    await this.redis.xadd(/** @type {string} */ (service.streams[number]), "*", "event", body);
  }

  async emitted() {
    const key = this.prefix + GATEWAY_STREAM;
    for (const deadline = performance.now() + PATIENCE; performance.now() < deadline; await pause(5)) {
      const found = await this.redis.xread("COUNT", 1, "STREAMS", key, this.#read);
      const entry = found?.[0]?.[1][0];
      if (!entry) continue;
      this.#read = entry[0];
      return /** @type {Json} */ (JSON.parse(String(entry[1][1])));
    }
    throw new Error("no service sent an event to another");
  }

  /**
   * @param {Json} event
   * @param {unknown} payload
   * @param {string} [type]
   */
  async answer(event, payload, type = event.eventType) {
    await this.redis.publish(event.replyTo, JSON.stringify({ type, inReplyTo: event.id, payload }));
  }

  async settle() {
    const barrier = new TestClient(this, "", undefined);
    this.clients.add(barrier);
    const type = `barrier ${(this.#barriers += 1)}`;
    await this.redis.publish(this.replyTo, JSON.stringify({ type, recipients: [barrier.socketId] }));
    await barrier.receive();
    this.clients.delete(barrier);
  }

  async close() {
    await Promise.all(this.#running.map((running) => running.stop()));
    this.#listening.disconnect();
    this.redis.disconnect();
    await this.#end();
  }

  /**
   * Settles with what is found once there is something; it is looked for after each message.
   *
   * @template T
   * @param {() => T | undefined} find
   * @param {string} what
   * @returns {Promise<T>}
   */
  until(find, what) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const found = find();
        if (found === undefined) return;
        clearTimeout(timer);
        this.#waiting.delete(look);
        resolve(found);
      };
      const timer = setTimeout(() => {
        this.#waiting.delete(look);
        reject(new Error(`no ${what} within ${PATIENCE / 1000} s`));
      }, PATIENCE);
      this.#waiting.add(look);
      look();
    });
  }

  /** @param {Json} message */
  #told(message) {
    const { type, payload = null, inReplyTo, roomId, append } = message;
    if (type === RECEIPT) {
      this.#acknowledge(message);
      return;
    }
    for (const client of this.clients) {
      if (type === ROOM_PUT || type === ROOM_REMOVE) {
        if (client.isMeantBy(message)) client.obey(type, roomId);
        continue;
      }
      if (!client.isMeantBy(message)) continue;
      if (type === REQUEST_PROGRESS) client.inbox.push({ ...payload, type: "progress", id: inReplyTo });
      else client.inbox.push({ type, payload, ...(inReplyTo !== undefined && { id: inReplyTo }), ...(append && { append }) });
    }
    for (const look of [...this.#waiting]) look();
  }

  /**
   * As if all of them had handled, by now, what comes next: but for those that do not acknowledge anything.
   *
   * @param {Json} message
   */
  #acknowledge({ receipt, ...message }) {
    const clients = [...this.clients].filter((client) => client.isMeantBy(message));
    const acknowledged = clients.filter(({ acknowledges }) => acknowledges).map(({ userId }) => userId);
    const waiting = clients.map(({ userId }) => userId).filter((userId) => !acknowledged.includes(userId));
    const part = { gatewayId: this.gatewayId, acknowledged, waiting, done: true };
    void this.redis.publish(receipt.replyTo, JSON.stringify({ type: RECEIPT, inReplyTo: receipt.id, payload: part }));
  }
}

/** @implements {ITestClient} */
class TestClient {
  /** @type {Delivered[]} */
  inbox = [];
  /** The rooms that services have put it into. @type {Set<string>} */
  given = new Set();
  acknowledges = true;
  #gateway;
  #count = 0;

  /**
   * @param {TestGateway} gateway
   * @param {string} userId
   * @param {string | undefined} roomId
   */
  constructor(gateway, userId, roomId) {
    this.#gateway = gateway;
    this.userId = userId;
    this.roomId = roomId;
    this.socketId = `${gateway.gatewayId}.${randomBytes(8).toString("hex")}`;
  }

  /**
   * @param {string} event
   * @param {unknown} [payload]
   * @param {Json} [more]
   */
  async send(event, payload = null, more = {}) {
    const { userId, socketId, roomId } = this;
    const { gatewayId, replyTo } = this.#gateway;
    const envelope = { eventType: event, userId, socketId, roomId, payload, timestamp: Date.now(), gatewayId, replyTo };
    await this.#gateway.deliver({ ...envelope, ...more });
  }

  /**
   * @param {string} event
   * @param {unknown} [payload]
   */
  async request(event, payload) {
    const id = (this.#count += 1);
    await this.send(event, payload, { id });
    const { type, payload: said } = await this.#next((message) => message.id === id, `answer to ${event}`);
    if (type !== "error") return said;
    const { code, message, retryAfter } = /** @type {Json} */ (said);
    throw new Refused(code, message, { retryAfter });
  }

  receive() {
    return this.#next(() => true, `message to ${this.userId}`);
  }

  /**
   * Whether the gateway would deliver this message to this client.
   *
   * @param {Json} message
   */
  isMeantBy({ recipients, userIds, excludeSocketIds, everybody, roomId, payload }) {
    if (excludeSocketIds?.includes(this.socketId)) return false;
    if (recipients?.length || userIds?.length) {
      return Boolean(recipients?.includes(this.socketId) || userIds?.includes(this.userId));
    }
    if (everybody) return true;
    const room = roomId ?? payload?.roomId;
    return room !== undefined && this.#isIn(room);
  }

  /**
   * A service puts it into a room, or takes it out.
   *
   * @param {string} command
   * @param {string} room
   */
  obey(command, room) {
    if (this.#isIn(room) === (command === ROOM_PUT)) return;
    if (command === ROOM_PUT) {
      this.given.add(room);
      this.inbox.push({ type: "joined", payload: { roomId: room } });
      return;
    }
    this.given.delete(room);
    if (room === this.roomId) this.roomId = undefined;
    const error = { code: "ACCESS_REVOKED", message: `Access to room ${room} was ended by a service` };
    this.inbox.push({ type: "error", payload: error });
  }

  /** @param {string} room */
  #isIn(room) {
    return room === this.roomId || this.given.has(room);
  }

  /**
   * @param {(message: Delivered) => boolean} meant
   * @param {string} what
   */
  #next(meant, what) {
    return this.#gateway.until(() => {
      const at = this.inbox.findIndex(meant);
      return at < 0 ? undefined : this.inbox.splice(at, 1)[0];
    }, what);
  }
}
