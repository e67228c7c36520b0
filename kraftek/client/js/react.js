/**
 * The client for components of React 18 and newer: `import { GatewayProvider, … } from "kraftek/react"`.
 *
 * A provider has one client. It is made in an effect, not while rendering, which React may do twice or for nothing, and
 * is closed a tick after the effect has ended: StrictMode ends each effect once and begins it again.
 */

import { createContext, createElement, useCallback, useContext, useEffect, useRef, useState, useSyncExternalStore } from "react";
import { connect } from "./kraftek.js";

/** What there is before the first effect, and on a server. */
const NOTHING_YET = Object.freeze({ client: null, state: "connecting" });
const NOT_FETCHED = Object.freeze({ state: undefined, error: null });
const NOBODY = Object.freeze({ users: [], count: 0, known: false, error: null });
const OUTSIDE = Object.freeze({ entered: false, error: null });

const Shared = createContext(null);

/** The one client of a provider, and for each room how many components are in it. */
class Connection {
  client = null;
  /** What `useGateway` gives, the same object until something changes. */
  gateway = NOTHING_YET;
  /** Those of the last rendering. */
  options;
  #url;
  #closing;
  #closed = false;
  /** `own`: the client is in it for `useRoom` alone. */
  #rooms = new Map();
  #changed = new Set();
  /** Who asked before the client was there: effects of components come before those of the provider around them. */
  #asked = [];

  subscribe = (changed) => {
    this.#changed.add(changed);
    return () => this.#changed.delete(changed);
  };

  open(url) {
    clearTimeout(this.#closing);
    if (this.client && url === this.#url) {
      if (this.#closed) this.client.open();
    } else {
      this.client?.close();
      this.#url = url;
      this.#begin();
    }
    this.#closed = false;
    return () => {
      this.#closing = setTimeout(() => {
        this.#closed = true;
        this.client.close();
      });
    };
  }

  room(roomId) {
    return this.#rooms.get(roomId)?.shown ?? OUTSIDE;
  }

  enter(roomId) {
    const room = this.#rooms.get(roomId) ?? { count: 0, shown: OUTSIDE };
    clearTimeout(room.leaving);
    room.count += 1;
    if (!this.#rooms.has(roomId)) {
      this.#rooms.set(roomId, room);
      if (this.client) this.#join(roomId, room);
    }
    return () => {
      room.count -= 1;
      if (room.count) return;
      room.leaving = setTimeout(() => {
        this.#rooms.delete(roomId);
        if (room.own) this.client.leave(roomId);
      });
    };
  }

  request(...request) {
    if (this.client) return this.client.request(...request);
    return new Promise((resolve) => this.#asked.push(resolve)).then((client) => client.request(...request));
  }

  #begin() {
    const { token, ...options } = this.options;
    const client = connect(this.#url, {
      ...options,
      token: token && ((why) => this.#credentials(why)),
    });
    this.client = client;
    client.on("state", (change) => this.#became(client, change));
    client.on("error", (error) => this.#isOut(client, error));
    for (const [roomId, room] of this.#rooms) {
      room.own = undefined;
      this.#join(roomId, room);
    }
    this.#show({ client, state: client.state });
    for (const resolve of this.#asked.splice(0)) resolve(client);
  }

  async #credentials(why) {
    const shown = await this.options.token(why);
    const room = this.#rooms.get(shown?.roomId);
    if (room) room.own = false;
    return shown;
  }

  async #join(roomId, room) {
    const { client } = this;
    room.own ??= !client.rooms.includes(roomId);
    this.#showRoom(roomId, room, OUTSIDE);
    let shown;
    try {
      await client.join(roomId, { timeout: Infinity });
      shown = { entered: true, error: null };
    } catch (error) {
      shown = client.state === "closed" ? OUTSIDE : { entered: false, error };
    }
    if (client === this.client) this.#showRoom(roomId, room, shown);
  }

  #became(client, change) {
    if (client !== this.client) return;
    const reopened = this.gateway.state === "closed" && change.state === "connecting";
    this.#show({ client, ...change });
    for (const [roomId, room] of this.#rooms) {
      // It forgets rooms that it was about to enter when it is closed, and one in whose place the token names another.
      const forgotten = change.state === "ready" && room.shown.entered && !client.rooms.includes(roomId);
      if (change.state === "closed") this.#showRoom(roomId, room, OUTSIDE);
      else if (reopened || forgotten) this.#join(roomId, room);
    }
  }

  /** Access to a room was taken back, or it could not be entered again. */
  #isOut(client, error) {
    const room = this.#rooms.get(error.roomId);
    if (!room || client !== this.client || client.rooms.includes(error.roomId)) return;
    this.#showRoom(error.roomId, room, { entered: false, error });
  }

  #showRoom(roomId, room, shown) {
    if (this.#rooms.get(roomId) !== room) return;
    room.shown = shown;
    this.#tell();
  }

  #show(gateway) {
    this.gateway = gateway;
    this.#tell();
  }

  #tell() {
    for (const changed of [...this.#changed]) changed();
  }
}

/** Its components share one client, which is connected to `url` as long as it is on the page. */
export function GatewayProvider({ url, options, children }) {
  const [connection] = useState(() => new Connection());
  // The token's callback is that of the last rendering; the others count when the client is made.
  useEffect(() => {
    connection.options = options;
  });
  useEffect(() => connection.open(url), [connection, url]);
  return createElement(Shared.Provider, { value: connection }, children);
}

function useConnection() {
  const connection = useContext(Shared);
  if (!connection) throw new Error("expected a <GatewayProvider> around this component");
  return connection;
}

/** `{client, state, wait, code, reason, error}`: the client, `null` until the page is there, and what became of it. */
export function useGateway() {
  const connection = useConnection();
  return useSyncExternalStore(connection.subscribe, () => connection.gateway, () => NOTHING_YET);
}

/**
 * Be in a room, as long as some component wants that: `{entered, error}`. `error` is why it is not, or is no more. With
 * `null` for a room it does nothing.
 */
export function useRoom(roomId) {
  const connection = useConnection();
  useEffect(() => (roomId == null ? undefined : connection.enter(roomId)), [connection, roomId]);
  return useSyncExternalStore(connection.subscribe, () => connection.room(roomId), () => OUTSIDE);
}

/** A function that asks: `(payload, options)` of the client's `request`. It is the same one as long as `type` is. */
export function useRequest(type) {
  const connection = useConnection();
  return useCallback((payload, options) => connection.request(type, payload, options), [connection, type]);
}

/**
 * Be in a room, and have its state: `{state, error}`, from the client's `roomState`. `state` is undefined before the first
 * snapshot. `snapshot` and `changes` are those of the last rendering, and the types of `changes` those of the first one.
 */
export function useRoomState(roomId, options) {
  const { error } = useRoom(roomId);
  const shown = useStateOf(roomId ?? undefined, options);
  return error ? { state: shown.state, error } : shown;
}

/** Have the state of the user, from the client's `userState`: the rest as in `useRoomState`. */
export function useUserState(options) {
  return useStateOf(null, options);
}

/** `topic`: a room, `null` for the user, or undefined for nothing. */
function useStateOf(topic, options) {
  const { client } = useGateway();
  const [shown, show] = useState(NOT_FETCHED);
  const newest = useRef(options);
  useEffect(() => {
    newest.current = options;
  });
  useEffect(() => {
    show(NOT_FETCHED);
    if (!client || topic === undefined) return undefined;
    const changes = Object.keys(newest.current.changes ?? {}).map((type) => [
      type,
      (state, payload, about) => newest.current.changes[type](state, payload, about),
    ]);
    const how = { snapshot: () => newest.current.snapshot(), changes: Object.fromEntries(changes) };
    const kept = topic === null ? client.userState(how) : client.roomState(topic, how);
    kept.subscribe((state) => show({ state, error: null }));
    const failed = ({ roomId = null }) => roomId === topic && show(({ state }) => ({ state, error: kept.error }));
    client.on("error", failed);
    return () => {
      client.off("error", failed);
      kept.close();
    };
  }, [client, topic]);
  return shown;
}

/**
 * Be in a room, and know who else is: `{users, count, known, error}`, from the client's `presence`. `known` is false until
 * the gateway has said it. `error` is why the room is not entered, or why nobody is told who is there.
 */
export function usePresence(roomId) {
  const { client } = useGateway();
  const { error } = useRoom(roomId);
  const [shown, show] = useState(NOBODY);
  useEffect(() => {
    show(NOBODY);
    if (!client || roomId == null) return undefined;
    const end = client.presence(roomId, ({ users, count }) => show({ users, count, known: true, error: null }));
    const failed = (error) => {
      // An older gateway takes it for an event.
      const its = error.code === "NO_PRESENCE" || ["gateway:room:presence", "presence"].includes(error.eventType);
      if (its && error.roomId === roomId) show((before) => ({ ...before, error }));
    };
    client.on("error", failed);
    return () => {
      client.off("error", failed);
      end();
    };
  }, [client, roomId]);
  return error ? { ...shown, error } : shown;
}

/** Have the newest `listener` hear what services say under this type, or `error`, `dropped`, `recovered` or `gap`. */
export function useEvent(type, listener) {
  const { client } = useGateway();
  const newest = useRef(listener);
  useEffect(() => {
    newest.current = listener;
  });
  useEffect(() => {
    if (!client) return undefined;
    const heard = (...what) => newest.current(...what);
    client.on(type, heard);
    return () => client.off(type, heard);
  }, [client, type]);
}
