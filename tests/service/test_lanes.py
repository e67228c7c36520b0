"""Which event of a service is next, and how many may wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kraftek.contract.names import ROOMS_RESET
from kraftek.service.lanes import EVENTS, FORGOTTEN, LANE_EVENTS, LANE_SIZE, SIZE, Hand, Hands, Lanes
from kraftek.service.processor import Incoming


class Place:
    """Hands, and what they have begun: the marks of the events, and how to end each."""

    def __init__(self, concurrency: int = 1, unordered: bool = False) -> None:
        self.hands: Hands[Incoming] = Hands(concurrency, unordered, self._begin)
        self.begun: list[str] = []
        self.ends: dict[str, Callable[[], None]] = {}

    def _begin(self, hand: Hand[Incoming]) -> None:
        while hand.ready:
            event, ended = hand.take()
            mark = event.event_type.rpartition(":")[2]
            self.begun.append(mark)
            self.ends[mark] = ended

    def put(self, mark: object, user: str = "ada", room: str | None = "room", size: int = 10, **more: Any) -> bool:
        event = Incoming(event_type=f"a:b:{mark}", user_id=user, room_id=room, **more)
        return self.hands.put(event, event, size)

    def reset(self) -> None:
        event = Incoming(event_type=ROOMS_RESET)
        assert self.hands.put(event, event, 10)

    def end(self, *marks: object) -> None:
        for mark in marks:
            self.ends.pop(str(mark))()

    def end_all(self) -> list[str]:
        """End whatever is in hand until nothing is; what was begun since the start."""
        while self.ends:
            self.end(next(iter(self.ends)))
        return self.begun


def test_a_room_is_in_order_and_rooms_are_beside_each_other() -> None:
    place = Place(3)
    for mark in range(3):
        place.put(f"red{mark}", f"user {mark}", "red")
        place.put(f"blue{mark}", f"user {mark}", "blue")
    assert place.begun == ["red0", "blue0"]
    place.end("red0")
    assert place.begun[2:] == ["red1"]
    place.end("red1", "red2", "blue0")
    assert place.begun[3:] == ["red2", "blue1"]


def test_a_socket_in_no_room_is_one_of_its_own() -> None:
    place = Place(9)
    for mark in range(2):
        for socket in ("one", "two"):
            place.put(f"{socket}{mark}", room=None, socket_id=socket)
        place.put(f"room{mark}", socket_id="one")
    assert place.begun == ["one0", "two0", "room0"]
    assert sorted(place.end_all()[3:]) == ["one1", "room1", "two1"]


def test_users_take_turns_and_rooms_keep_their_order() -> None:
    place = Place()
    place.put("first", "eve", "elsewhere")
    for mark in range(4):
        place.put(mark, "ada", f"room {mark % 2}")
    place.put(4, "bob", "room 2")
    place.put(5, "eve", "room 3")
    place.put(6, "bob", "room 0")  # after ada's, who was there before
    assert place.end_all() == ["first", *"0451263"]


def test_without_order_only_users_take_turns() -> None:
    place = Place(2, unordered=True)
    for mark in range(4):
        place.put(mark)
    place.put(4, "bob")
    assert place.begun == ["0", "1"]
    assert place.end_all() == ["0", "1", "2", "4", "3"]


def test_requests_of_services_wait_for_no_room_and_have_hands_of_their_own() -> None:
    place = Place(2)
    for mark in range(3):
        place.put(mark, room=f"room {mark}")
    for mark in range(3, 6):
        place.put(mark, "", "room 0", source="wiki", id=mark)
    place.put(6, "", "room 0", source="wiki")
    assert place.begun == ["0", "1", "3", "4"]
    place.end(4)
    assert place.begun[4:] == ["5"]
    place.end(0)
    assert place.begun[5:] == ["2"]


def test_a_reset_of_the_rooms_is_handled_alone() -> None:
    place = Place(9)
    for mark in (1, 2):
        place.put(f"red{mark}", room="red")
    place.put("blue1", room="blue")
    place.reset()
    place.put("red3", room="red")
    place.put("green1", room="green")
    place.put("request", "", "red", source="wiki", id=1)
    assert place.begun == ["red1", "blue1", "request"]
    place.end("blue1", "red1")
    assert place.begun[3:] == ["red2"]
    place.end("red2")
    assert place.begun[4:] == ["reset"]
    place.put("blue2", room="blue")
    place.reset()
    place.reset()
    place.put("red4", room="red")
    place.end("reset")
    assert place.begun[5:] == ["red3", "green1", "blue2"]
    place.end("red3", "green1")
    assert place.begun[8:] == []
    place.end("blue2", "reset")
    assert place.begun[8:] == ["reset", "reset"]
    place.end("reset")
    assert place.begun[10:] == ["red4"]
    place.end_all()
    place.reset()
    place.put("last")
    assert place.begun[11:] == ["reset"]
    assert place.end_all()[12:] == ["last"]
    assert place.hands.waiting == 0


def test_what_waits_behind_a_reset_counts() -> None:
    place = Place()
    place.reset()
    place.reset()
    accepted = [place.put(number, "ada", f"room {number}") for number in range(EVENTS)]
    assert sum(accepted) == EVENTS // 2
    assert place.hands.waiting == 1 + EVENTS // 2
    assert len(place.end_all()) == 2 + sum(accepted)


def test_without_order_a_reset_waits_for_nobody() -> None:
    place = Place(2, unordered=True)
    place.put(1)
    place.reset()
    assert place.begun == ["1", "reset"]


def test_one_alone_has_half_and_the_next_one_half_of_the_rest() -> None:
    place = Place()
    place.put("first", "eve", "elsewhere")
    accepted = [place.put(number, "ada", f"room {number}") for number in range(EVENTS)]
    assert (sum(accepted), accepted.index(False)) == (EVENTS // 2, EVENTS // 2)
    assert sum(place.put(number, "bob", f"room {number}") for number in range(EVENTS)) == EVENTS // 4
    assert not place.put("more", "ada", "new")
    assert place.put("eve", "eve", "new")
    assert place.hands.waiting == EVENTS * 3 // 4 + 1
    place.end_all()
    assert place.hands.waiting == 0
    assert place.put("again")


def test_a_room_alone_has_half() -> None:
    place = Place()
    place.put("first")
    assert sum(place.put(number, f"user {number}") for number in range(EVENTS)) == EVENTS // 2
    assert place.put("other", "user", "other")


def test_so_are_bytes_shared() -> None:
    place, size = Place(), SIZE // 8
    place.put("first", "eve", "elsewhere")
    assert [place.put(number, "ada", f"{number}", size) for number in range(5)] == [True] * 4 + [False]
    assert [place.put(number, "bob", f"{number}", size) for number in range(3)] == [True] * 2 + [False]


def test_one_event_may_always_wait() -> None:
    place = Place()
    place.put("first")
    assert place.put("large", size=2 * SIZE)
    assert not place.put("small", "bob", "another")
    place.end("first")
    assert place.put("small", "bob", "another")


def test_the_first_of_each_room_are_kept_in_memory() -> None:
    place = Place()
    place.put("first", room="other")
    event = Incoming(event_type="a:b:c", room_id="room")
    assert place.hands.keeps(event, LANE_SIZE * 2)
    place.put(0)
    assert place.hands.keeps(event, LANE_SIZE - 10)
    assert not place.hands.keeps(event, LANE_SIZE - 9)
    for number in range(LANE_EVENTS - 1):
        assert place.hands.keeps(event, 10)
        place.put(number)
    assert not place.hands.keeps(event, 10)
    assert place.hands.keeps(Incoming(event_type="a:b:c", room_id="another"), 10)
    assert not place.hands.keeps(Incoming(event_type="a:b:c", room_id="another"), SIZE)


def test_nothing_is_kept_of_those_who_are_gone() -> None:
    place = Place()
    for number in range(100):
        place.put(number, f"user {number % 7}", f"room {number % 11}", source="wiki" if number % 3 else None, id=number)
    assert sorted(map(int, place.end_all())) == list(range(100))
    for hand in (place.hands._events, place.hands._requests):
        lanes = hand.lanes
        assert not any(
            vars(lanes)[name] for name in ("_lanes", "_behind", "_users", "_turns", "_had", "_events", "_sizes")
        )
        assert (vars(lanes)["_free_events"], len(lanes)) == (EVENTS, 0)


def play(lanes: Lanes[str], costs: dict[str, float], times: int) -> list[str]:
    """Whose events are taken, each of which costs its user so many seconds."""
    order = []
    for _ in range(times):
        user, lane = lanes.take()
        lanes.charge(user, costs.get(user, 0.0))
        lanes.ended(lane)
        order.append(user)
    return order


def put(lanes: Lanes[str], *users: str) -> None:
    """An event of each, in a lane of its own."""
    for user in users:
        lanes.put(user, object(), user, 10)


def test_who_has_had_more_time_waits_longer() -> None:
    lanes = Lanes[str]()
    put(lanes, *("ada", "bob") * 3)
    assert play(lanes, {"ada": 0.06, "bob": 0.001}, 6) == ["ada", "bob", "bob", "bob", "ada", "ada"]


def test_who_comes_again_has_had_what_it_has_had() -> None:
    lanes = Lanes[str]()
    put(lanes, "ada", "bob")
    play(lanes, {"ada": 1.0}, 1)
    put(lanes, "ada", "bob", "bob", "bob")
    assert play(lanes, {}, 5) == ["bob", "bob", "bob", "bob", "ada"]


def test_nobody_saves_time_up() -> None:
    lanes = Lanes[str]()
    put(lanes, "ada", "ada", "ada")
    play(lanes, {"ada": 10.0}, 2)
    put(lanes, "bob", "bob", "eve")
    assert play(lanes, {}, 4) == ["bob", "eve", "bob", "ada"]


def test_of_many_who_are_gone_those_are_known_who_have_had_most() -> None:
    lanes = Lanes[str]()
    put(lanes, "slow", "slow")
    play(lanes, {"slow": 5.0}, 1)
    for number in range(3 * FORGOTTEN):
        put(lanes, f"user {number}")
        play(lanes, {"user 7": 2.0}, 1)
    had = vars(lanes)["_had"]
    assert len(had) <= FORGOTTEN + 1
    assert {"slow", "user 7"} <= had.keys()
