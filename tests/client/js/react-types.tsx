// Components against react.d.ts. They are compiled, never run: what is wrong on purpose must be an error.
import type { Kraftek, KraftekError, State } from "kraftek";
import { GatewayProvider, useEvent, useGateway, usePresence, useRequest, useRoom, useRoomState, useUserState } from "kraftek/react";

interface Who {
  users: string[];
}

function Room({ roomId }: { roomId: string | null }) {
  const { client, state, wait, error: reason } = useGateway();
  const { entered, error } = useRoom(roomId);
  const who = useRequest<Who>("chat:room:who");
  const send = useRequest<{ at: number }, { text: string }>("chat:message:send");
  useEvent("chat:message:sent", ({ text }: { text: string }, about) => console.log(text, about.roomId));
  useEvent("error", (refused) => console.log(refused.code));

  const { state: users, error: stale } = useRoomState(roomId, {
    snapshot: async () => (await who(null)).users,
    changes: { "chat:room:entered": (users, { user }: { user: string }) => [...users, user] },
  });
  console.log(users?.join(), stale?.code);
  const { state: inbox } = useUserState({ snapshot: () => new Map<string, number>() });
  console.log(inbox?.size.toFixed());
  const { users: present, count, known: told, error: hidden } = usePresence<{ name: string }>(roomId);
  console.log(present.map(({ userId, data }) => data?.name ?? userId), count.toFixed(), told, hidden?.code);

  const known: State = state;
  const maybe: Kraftek | null = client;
  const refused: KraftekError | null = error;
  const ask = async () => {
    const { users } = await who(null, { signal: AbortSignal.timeout(1), roomId: "r1" });
    const { at } = await send({ text: users.join() });
    console.log(at.toFixed(), maybe?.rooms, refused?.code, wait?.toFixed(), reason);
  };

  // @ts-expect-error the client is not there at first
  client.emit("chat:message:send");
  // @ts-expect-error not what is sent
  void send(7);
  // @ts-expect-error an error is no string
  useEvent("error", (told: string) => told);
  return <button onClick={ask}>{known}{entered && "in it"}</button>;
}

export const page = (
  <GatewayProvider url="wss://gateway.test/" options={{ token: () => "t", roomId: "r1", cap: 60_000 }}>
    <Room roomId="r2" />
    <Room roomId={null} />
  </GatewayProvider>
);

// @ts-expect-error a token is needed
export const wrong = <GatewayProvider url="wss://gateway.test/" options={{}} />;
