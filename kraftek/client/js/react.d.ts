import type { ReactNode } from "react";
import type {
  Kraftek, KraftekError, Listener, Options, Present, RequestOptions, RoomStateOptions, StateChange,
} from "./kraftek.js";

export interface GatewayProviderProps {
  url: string;
  /** `token` may be another function at each rendering: the last one counts. The others count for a new `url` alone. */
  options: Options;
  children?: ReactNode;
}

/** Its components share one client, which is connected to `url` as long as it is on the page. */
export function GatewayProvider(props: GatewayProviderProps): ReactNode;

export interface Gateway extends Readonly<StateChange> {
  /** `null` on a server, and until the effects of the provider have run for the first time. */
  readonly client: Kraftek | null;
}

export function useGateway(): Gateway;

export interface Room {
  /** Also while there is no connection: the room is entered again before the state is "ready". */
  readonly entered: boolean;
  /** Why it is not entered, or is not any more. */
  readonly error: KraftekError | null;
}

/** Be in a room, as long as at least one component wants that. With `null` or `undefined` it does nothing. */
export function useRoom(roomId: string | null | undefined): Room;

/** A function that asks. It is the same one as long as `type` is. */
export function useRequest<Answer = unknown, Payload = unknown>(
  type: string,
): (payload?: Payload, options?: RequestOptions) => Promise<Answer>;

export interface RoomStateShown<State> {
  /** `undefined` before the first snapshot. */
  readonly state: State | undefined;
  /** Why the room is not entered, or its state not fetched, if that is so. */
  readonly error: KraftekError | null;
}

/**
 * Be in a room, and have its state: what `snapshot` fetches, and `changes` make of it by the room's messages. Both are those
 * of the last rendering; the types of `changes` are those of the first one. With `null` for a room it does nothing.
 */
export function useRoomState<State>(
  roomId: string | null | undefined,
  options: RoomStateOptions<State>,
): RoomStateShown<State>;

/** Have the state of the user: what `snapshot` fetches, and `changes` make of it by what it is told outside of rooms. */
export function useUserState<State>(options: RoomStateOptions<State>): RoomStateShown<State>;

export interface PresenceShown<Data> {
  /** All who are in the room, or some of them where `count` is more. */
  readonly users: Present<Data>[];
  readonly count: number;
  /** Whether the gateway has said it. */
  readonly known: boolean;
  /** Why the room is not entered, or why nobody is told who is there. */
  readonly error: KraftekError | null;
}

/** Be in a room, and know who else is. With `null` for a room it does nothing. */
export function usePresence<Data = any>(roomId: string | null | undefined): PresenceShown<Data>;

/** Have the newest `listener` hear what services say under this type, or `error`, `dropped`, `recovered` or `gap`. */
export function useEvent<Name extends string>(type: Name, listener: Listener<Name>): void;
