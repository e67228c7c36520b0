/** Names that all sides write alike, as kraftek/contract/names.py has them: keys and channels without the prefix. */

export const BROADCAST = "events:broadcast";
/** The stream from which gateways read events between services, and how much may wait there. */
export const GATEWAY_STREAM = "events:gateway";
export const GATEWAY_LENGTH = 100_000;
export const GATEWAY_BYTES = 67_108_864;
/** Events whose names begin so are the gateway's own. */
export const GATEWAY_OWN = "gateway:";
export const ROOMS_RESET = "gateway:room:reset";

/** Milliseconds for which what belongs to a request that was handled is kept: as long as gateways know it by default. */
export const REQUEST_KNOWN = 130_000;

/** Bytes that Redis keeps of the last parts of an answer, or one larger part. */
export const PARTS_KEPT = 262_144;

/** A part of the answer to a request that asks for parts. */
export const REQUEST_PROGRESS = "gateway:request:progress";

/** The hash of services that have registered themselves, and the channel on which gateways hear of a new one. */
export const SELF_REGISTERED = "gateways:registered";
/** Until when each of them stands. */
export const SELF_LEASES = "gateways:registered:leases";
/** The hash of what each gateway process publishes about its services. */
export const REGISTRATIONS = "gateways:registrations";

/** The hash of the rules by which messages to rooms are kept. */
export const HISTORY_RULES = "gateways:history:rules";

/** Commands to gateways, and the leases of those that are alive. */
export const ROOM_PUT = "gateway:room:put";
export const ROOM_REMOVE = "gateway:room:remove";
export const RECEIPT = "gateway:receipt";
export const GATEWAY_LEASES = "gateways";

const NAME_LENGTH = 128;
const NAME = /^([^:\p{White_Space}\p{Cc}\p{Cs}]+)(?::[^:\p{White_Space}\p{Cc}\p{Cs}]+){2}$/u;

/**
 * The service that an event is for by its name, `service:module:name`; `undefined` when that is no event's name.
 *
 * @param {string} event
 */
export function serviceOf(event) {
  return [...event].length <= NAME_LENGTH ? NAME.exec(event)?.[1] : undefined;
}

/**
 * The gateway process that a socket belongs to; empty for an id that no gateway made.
 *
 * @param {string} socketId
 */
export const gatewayOf = (socketId) => socketId.slice(0, Math.max(0, socketId.lastIndexOf(".")));

/** @param {string} gatewayId */
export const replyChannel = (gatewayId) => `events:reply:${gatewayId}`;

/**
 * The channel on which all instances of a service hear of requests that their clients have cancelled.
 *
 * @param {string} service
 */
export const cancelChannel = (service) => `events:cancel:${service}`;

/**
 * The key of an answer to the request of a socket whose gateway is not there.
 *
 * @param {string} socketId
 * @param {import("./index.js").RequestId} id
 */
export const lateAnswerKey = (socketId, id) => `request:adopted:${socketId}${typeof id === "string" ? ":" : "#"}${id}`;

/**
 * The key of the stream of the parts of an answer.
 *
 * @param {string} socketId
 * @param {import("./index.js").RequestId} id
 */
export const partsKey = (socketId, id) => `request:parts:${socketId}${typeof id === "string" ? ":" : "#"}${id}`;

/** @param {string} service */
export const defaultChannel = (service) => `events:${service}`;

/**
 * A room, as one of the topics that may have a history.
 *
 * @param {string} roomId
 */
export const roomTopic = (roomId) => `room:${roomId}`;

/** @param {string} roomId */
export const roomKey = (roomId) => `room:${roomId}`;

/**
 * The dead-letter stream of a stream: entries that could not be handled.
 *
 * @param {string} stream
 */
export const deadLetters = (stream) => `${stream}:dead`;

/**
 * The sorted set of a service's instances that share its partitions.
 *
 * @param {string} channel
 * @param {string} service
 */
export const instancesKey = (channel, service) => `${channel}:instances:${service}`;

/**
 * The lease of one partition: the instance that reads it.
 *
 * @param {string} stream
 * @param {string} service
 */
export const leaseKey = (stream, service) => `${stream}:lease:${service}`;
