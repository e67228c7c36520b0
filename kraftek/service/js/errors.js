/**
 * What goes wrong. `Refused` and `TooLarge` are for authors of services; the others are between the modules of the kit.
 */

/**
 * Thrown by a handler to refuse an event: the sender gets it as an `error`, and nothing is tried again. `code` is for
 * programs, in capitals; `message` for people; `retryAfter` the seconds after which it may be tried again.
 * `Context.request` throws it, too, when the other service answers with an error, or not in time.
 */
export class Refused extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{retryAfter?: number | undefined}} [more]
   */
  constructor(code, message, { retryAfter } = {}) {
    super(message);
    this.name = "Refused";
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** A message is larger than `messageBytes` of the service, or a text than what is kept of one. Nothing of it was sent. */
export class TooLarge extends RangeError {
  name = "TooLarge";
}

/** A message is not an event. No error can be sent, because its sender is unknown. */
export class NoEvent extends Error {
  name = "NoEvent";
}

/** Redis is unavailable, or disconnected before it answered. */
export class Away extends Error {
  name = "Away";
}

/** Redis takes no writes at present: it has no memory, say, or is a replica by now. */
export class Refusing extends Away {
  name = "Refusing";
}

/** Redis refused a command; the text is Redis's. */
export class Rejected extends Error {
  name = "Rejected";
}

/** A handler has exceeded its time limit. */
export class TimeoutError extends Error {
  name = "TimeoutError";
}

/** It cannot be done at present. Nothing was done. */
export class NotNow extends Error {
  name = "NotNow";
}

/** A gateway of an older version runs, which would send this command to clients. Nothing was sent. */
export class OldGateway extends NotNow {
  name = "OldGateway";

  /**
   * @param {string} gatewayId
   * @param {string} command
   */
  constructor(gatewayId, command) {
    super(`gateway ${gatewayId} is of a version that does not know ${command}: upgrade it first`);
  }
}

/** As many events as may wait for the gateways do so already. */
export class Full extends NotNow {
  name = "Full";

  constructor() {
    super("too many events between services wait for a gateway");
  }
}
