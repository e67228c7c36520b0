import type { Redis } from "ioredis";

import type { RequestId, Service } from "./index.js";

/** What a client is told: `id` when it answers a request. */
export interface Delivered {
  type: string;
  payload: unknown;
  id?: RequestId;
  /** Of a part of an answer, "progress". */
  run?: string;
  number?: number;
  /** Of a piece of a text. */
  append?: { key: string; from?: number; last?: boolean };
}

/** The gateway as services see it, in a Redis of its own. */
export class TestGateway {
  private constructor(url: string);
  /** With a redis-server of its own: the one on PATH. */
  static start(): Promise<TestGateway>;
  /** With a Redis that is there. */
  static connect(url: string): Promise<TestGateway>;
  readonly url: string;
  /** A client to look at Redis with. */
  readonly redis: Redis;
  /** Run a service until `close`; settles when it receives events. */
  run(service: Service): Promise<void>;
  /** Send the service's events to its channel or stream, for one that is a program of its own. */
  register(service: Service): Promise<void>;
  /** A client that is authenticated, and is in the room. Create clients after `run` or `register`. */
  client(userId: string, options?: { roomId?: string }): Promise<TestClient>;
  /** Send an event to its service as it is, or to another one: presence events, say. */
  deliver(envelope: { eventType: string; [field: string]: unknown }, to?: Service): Promise<void>;
  /** The next event that a service has sent to another. */
  emitted(): Promise<Record<string, any>>;
  /** Answer such an event. */
  answer(event: Record<string, any>, payload: unknown, type?: string): Promise<void>;
  /** Settles when clients have been told everything that services have sent until now. */
  settle(): Promise<void>;
  /** Stop the services that it runs, disconnect, and end the redis-server of `start`. */
  close(): Promise<void>;
}

/** One socket of a user. */
export interface TestClient {
  readonly userId: string;
  readonly socketId: string;
  readonly roomId: string | undefined;
  /** What it was told and the test has not read yet. */
  readonly inbox: Delivered[];
  /** Whether services learn by a receipt that it has handled a message; a test may say that it is too slow for that. */
  acknowledges: boolean;
  /** Send an event. `more` is added to the envelope. */
  send(event: string, payload?: unknown, more?: Record<string, unknown>): Promise<void>;
  /** Send a request; the payload of its answer. Rejects with `Refused` when that is an error. */
  request(event: string, payload?: unknown): Promise<unknown>;
  /** The next message to this client. */
  receive(): Promise<Delivered>;
}
