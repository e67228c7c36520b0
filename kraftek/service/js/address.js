/**
 * URLs of Redis as `[redis]` of the gateway has them: redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://.
 * docs/configuration.rst has their parts. Used by connection.js.
 */

const DEFAULT_PORT = 6379;
const SENTINEL_PORT = 26379;

/** The Redis of a program that names none. */
export function redisUrl() {
  return process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0";
}

/**
 * What ioredis connects with. Throws a `TypeError` that says what was expected, and repeats nothing of the URL: that may
 * hold a password.
 *
 * @param {string} url
 * @returns {Omit<import("ioredis").RedisOptions, "replyMapping">}
 */
export function connectionOptions(url) {
  const found = /^(rediss?|rediss?\+sentinel|unix):\/\/(?:([^/?#]*)@)?([^/?#]*)([^?#]*)(?:\?([^#]*))?$/.exec(url);
  if (!found || /[\s\p{Cc}]/u.test(url)) {
    throw new TypeError("expected a URL that begins with redis://, rediss://, redis+sentinel:// or unix://");
  }
  const [, scheme = "", login, place = "", path = "", query = ""] = found;
  const options = credentials(login);
  if (scheme === "unix") {
    const number = /^(?:db=(\d{1,9}))?$/.exec(query);
    if (place || !number) throw new TypeError("expected unix:///run/redis.sock, or with ?db=1 after it");
    return { ...options, path: decoded(path), db: Number(number[1] ?? 0) };
  }
  const tls = scheme.startsWith("rediss");
  if (!scheme.endsWith("+sentinel")) {
    const number = /^\/?(\d{1,9})?$/.exec(path);
    if (!number || query) throw new TypeError("expected a database's number at the end of the URL: /1");
    const { host, port } = hostAndPort(place, DEFAULT_PORT);
    return { ...options, host, port, db: Number(number[1] ?? 0), ...(tls && { tls: { servername: host } }) };
  }
  const named = /^\/(?!\d*(?:\/|$))([\w.-]+)(?:\/(\d{1,9})?)?$/.exec(path);
  if (!named) throw new TypeError("expected the master's name and a database's number after the sentinels: /mymaster/0");
  const more = new Map(query.split("&").filter(Boolean).map((part) => /** @type {[string, string]} */ (pair(part))));
  for (const name of more.keys()) {
    if (!["sentinel_username", "sentinel_password"].includes(name)) {
      throw new TypeError("expected only sentinel_username and sentinel_password after the ?");
    }
  }
  const [username, password] = [more.get("sentinel_username"), more.get("sentinel_password")];
  return {
    ...options,
    sentinels: place.split(",").map((sentinel) => hostAndPort(sentinel, SENTINEL_PORT)),
    name: /** @type {string} */ (named[1]),
    db: Number(named[2] ?? 0),
    failoverDetector: true,
    // A list may end with the sentinels that are asked first: those before them are asked as well, and then it has failed.
    sentinelRetryStrategy: (times) => (times === 1 ? 0 : null),
    ...(username !== undefined && { sentinelUsername: username }),
    ...(password !== undefined && { sentinelPassword: password }),
    ...(tls && { tls: {}, sentinelTLS: {}, enableTLSForSentinelMode: true }),
  };
}

/** @param {string | undefined} login */
function credentials(login) {
  if (!login || login === ":") return {};
  const colon = login.indexOf(":");
  if (colon < 0) throw new TypeError("expected USER:PASSWORD@ or :PASSWORD@ before the host");
  const username = decoded(login.slice(0, colon));
  return { ...(username && { username }), password: decoded(login.slice(colon + 1)) };
}

/**
 * @param {string} place
 * @param {number} port
 */
function hostAndPort(place, port) {
  const found = /^(?:([\w.-]+)|\[([\da-fA-F:.]+)\])(?::(\d{1,5})?)?$/.exec(place);
  const given = Number(found?.[3] ?? port);
  if (!found || given < 1 || given > 65535) throw new TypeError("expected HOST or HOST:PORT, an IPv6 address in brackets");
  return { host: found[1] ?? /** @type {string} */ (found[2]), port: given };
}

/** @param {string} part */
function pair(part) {
  const equals = part.indexOf("=");
  return equals < 0 ? [part, ""] : [part.slice(0, equals), decoded(part.slice(equals + 1))];
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new TypeError("expected UTF-8 where the URL is percent-encoded");
  }
}
