import msgspec

from kraftek.service.processor import Incoming
from kraftek.service.waiting import EVENTS, FORGOTTEN, SIZE, Waiting


def event(user: str, room: str | None = "room", mark: int = 0, socket: str = "") -> Incoming:
    return Incoming(event_type=f"a:b:{mark}", user_id=user, room_id=room, socket_id=socket)


def taken(waiting: Waiting) -> list[str]:
    return [f"{each.user_id} {each.event_type[4:]}" for each in iter(lambda: waiting.take() if waiting else None, None)]


def test_users_take_turns_and_keep_their_order() -> None:
    events = Waiting()
    for mark in range(4):
        assert events.put(event("ada", f"room {mark % 2}", mark, f"socket {mark}"), 10)
    assert events.put(event("bob", "room 0", 4), 10)
    assert events.put(event("eve", None, 5), 10)
    assert events.put(event("bob", None, 6), 10)
    assert taken(events) == ["ada 0", "bob 4", "eve 5", "ada 1", "bob 6", "ada 2", "ada 3"]
    assert not events


def test_who_has_had_more_time_waits_longer() -> None:
    events = Waiting()
    for mark in range(3):
        assert events.put(event("ada", mark=mark), 10)
        assert events.put(event("bob", mark=mark + 3), 10)
    order = []
    for _ in range(6):
        taken = events.take()
        order.append(taken.user_id)
        events.charge(taken, 0.06 if taken.user_id == "ada" else 0.001)
    assert order == ["ada", "bob", "bob", "bob", "ada", "ada"]


def test_who_comes_again_has_had_what_it_has_had() -> None:
    events = Waiting()
    events.put(event("ada", mark=0), 10)
    events.put(event("bob", mark=1), 10)
    events.charge(events.take(), 1.0)
    events.put(event("ada", mark=2), 10)
    for mark in range(3, 6):
        events.put(event("bob", mark=mark), 10)
    assert taken(events) == ["bob 1", "bob 3", "bob 4", "bob 5", "ada 2"]


def test_nobody_saves_time_up() -> None:
    events = Waiting()
    events.put(event("ada", mark=0), 10)
    events.put(event("ada", mark=1), 10)
    events.charge(events.take(), 10.0)
    events.take()
    events.put(event("bob", mark=2), 10)
    events.put(event("bob", mark=3), 10)
    events.put(event("eve", mark=4), 10)
    assert taken(events) == ["bob 2", "eve 4", "bob 3"]


def test_services_take_turns_with_users() -> None:
    events = Waiting()
    for mark, source in enumerate(("wiki", "wiki", "mail", None)):
        events.put(msgspec.structs.replace(event("" if source else "ada", mark=mark), source=source), 10)
    assert taken(events) == [" 0", " 2", "ada 3", " 1"]


def test_one_alone_has_half_and_the_next_one_half_of_the_rest() -> None:
    events = Waiting()
    accepted = [events.put(event("ada", f"room {number}"), 10) for number in range(EVENTS)]
    assert (sum(accepted), accepted.index(False)) == (EVENTS // 2, EVENTS // 2)
    assert sum(events.put(event("bob"), 10) for _ in range(EVENTS)) == EVENTS // 4
    assert not events.put(event("ada"), 10)
    assert events.put(event("eve"), 10)
    while events:
        events.take()
    assert events.put(event("ada"), 10)


def test_so_are_bytes_shared() -> None:
    events = Waiting()
    size = SIZE // 8
    assert [events.put(event("ada"), size) for _ in range(5)] == [True] * 4 + [False]
    assert [events.put(event("bob"), size) for _ in range(3)] == [True] * 2 + [False]
    events.take()
    assert events.put(event("bob"), size)


def test_one_event_may_always_wait() -> None:
    events = Waiting()
    assert events.put(event("ada"), 2 * SIZE)
    assert not events.put(event("bob"), 10)
    events.take()
    assert events.put(event("bob"), 10)


def test_nothing_is_kept_of_those_who_are_gone() -> None:
    events = Waiting()
    for number in range(100):
        events.put(event(f"user {number}", f"room {number}"), 10)
    taken(events)
    assert not any(vars(events)[name] for name in ("_users", "_turns", "_events", "_sizes"))
    assert not vars(events)["_had"]
    assert vars(events)["_free_events"] == EVENTS


def test_of_many_who_are_gone_those_are_known_who_have_had_most() -> None:
    events = Waiting()
    events.put(event("slow", mark=0), 10)
    events.put(event("slow", mark=1), 10)
    events.charge(events.take(), 5.0)
    for number in range(3 * FORGOTTEN):
        events.put(event(f"user {number}"), 10)
        events.charge(events.take(), 2.0 if number == 7 else 0.001)
    had = vars(events)["_had"]
    assert len(had) <= FORGOTTEN + 1
    assert {"slow", "user 7"} <= had.keys()
