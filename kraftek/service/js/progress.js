/** The parts of an answer, as a handler sends them. Made by context.js. */

import { randomBytes } from "node:crypto";

import { encode, json } from "./envelopes.js";
import { PARTS_KEPT, REQUEST_KNOWN, REQUEST_PROGRESS, partsKey } from "./names.js";
import { script } from "./scripts.js";

export const PROGRESS = script("progress");

/** Those of one run of a handler. */
export class Parts {
  #run = randomBytes(4).toString("hex");
  #number = 0;
  #service;
  #event;
  #id;

  /**
   * @param {import("./service.js").Service} service
   * @param {import("./envelopes.js").Incoming} event
   * @param {import("./index.js").RequestId} id
   */
  constructor(service, event, id) {
    this.#service = service;
    this.#event = event;
    this.#id = id;
  }

  /**
   * The keys and the arguments of `PROGRESS` for one more. Throws `TooLarge`.
   *
   * @param {unknown} payload
   * @returns {[string[], import("./connection.js").Word[]]}
   */
  next(payload) {
    const { messageBytes, prefix, transport } = this.#service;
    const { eventType, socketId, replyTo } = this.#event;
    const part = json(payload);
    const number = this.#number + 1;
    const place = { run: this.#run, number, payload };
    const message = { type: REQUEST_PROGRESS, payload: place, recipients: [socketId], inReplyTo: this.#id };
    const body = encode(eventType, message, messageBytes);
    this.#number = number;
    const over = transport === "stream" ? 1 : 0;
    const args = [this.#run, number, part, body, replyTo, PARTS_KEPT, REQUEST_KNOWN, over];
    return [[prefix + partsKey(socketId, this.#id)], args];
  }
}
