"""What a test needs besides Python, read off its code: the marks ``redis``, ``process`` and ``browser``.

A test needs what its code reaches: the function, the fixtures it asks for, its parameters, ``setUp`` and its fellows,
and every function and class of ``tests/`` that these name, and so on. ``tests/conftest.py`` marks each test so when it
is collected. Where the product under test starts a process by itself, that cannot be read off, and the test bears the
mark by hand. :class:`Guard` keeps all this true: a test that starts a process without being marked fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import unwrap
from pathlib import PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

__all__ = ["MARKS", "Guard", "needs", "reached"]

MARKS = {
    "redis": "starts a redis-server",
    "process": "starts other processes: the daemon, a service, Node",
    "browser": "starts Chromium",
}

# Whatever names one of these needs it. What these are made of in turn is not looked at.
STARTERS: dict[str, set[str]] = {
    "PrivateRedis": {"redis"},
    "Sentinels": {"redis"},
    "RedisServer": {"redis"},
    "gateway_contract_redis": {"redis"},
    "EmbeddedRedis": {"redis", "process"},
    "subprocess": {"process"},
    "Popen": {"process"},
    "create_subprocess_exec": {"process"},
    "spawnProcess": {"process"},
    "sync_playwright": {"browser"},
}
AROUND = ("setUp", "tearDown", "setUpClass", "tearDownClass", "setup_method", "teardown_method")


def needs(item: pytest.Item) -> set[str]:
    """The marks of a test: which of :data:`MARKS` its code reaches."""
    if not isinstance(item, pytest.Function):
        return set()
    found = set(reached(item.function, item.cls))
    for name in AROUND:
        found |= reached(getattr(item.cls, name, None), item.cls)
    info = item._fixtureinfo  # pytest tells which fixtures a test gets, but not publicly what their functions are
    for name in item.fixturenames:
        for definition in reversed(info.name2fixturedefs.get(name, ())):
            found |= STARTERS[name] if name in STARTERS else reached(definition.func)
            if name not in definition.argnames:
                break  # it stands in place of those that were defined before it
    if hasattr(item, "callspec"):
        for value in item.callspec.params.values():
            found |= reached(value)
    return found


def reached(thing: Any, owner: type | None = None) -> frozenset[str]:
    """The marks of what a function reaches, or anything that has functions in it; ``owner`` is the class that it is a
    method of.
    """
    return frozenset(_REACH.of(thing, owner))


_Place = tuple[Any, type | None]
"""A function, class or collection, and the class that it belongs to."""


class _Reach:
    """What all code reaches that was looked at: each function is read once, for however many tests."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, type | None], set[str]] = {}
        self._alive: list[Any] = []
        """All of these: nothing that is made later gets the id of one."""

    def of(self, thing: Any, owner: type | None) -> set[str]:
        """The marks. Not to be changed."""
        start = _end_of(thing)
        if start is None:
            return set()
        if (id(start), owner) not in self._found:
            self._settle(self._explore((start, owner)))
        return self._found[id(start), owner]

    def _explore(self, *new: _Place) -> dict[tuple[int, type | None], list[tuple[int, type | None]]]:
        """Read all that leads on from there and was not read before. Returns where each of it leads."""
        leads: dict[tuple[int, type | None], list[tuple[int, type | None]]] = {}
        places = list(new)
        while places:
            thing, owner = places.pop()
            key = id(thing), owner
            if key not in self._found:
                self._alive.append(thing)
                self._found[key], further = _look(thing, owner)
                leads[key] = [(id(each), its_owner) for each, its_owner in further]
                places += further
        return leads

    def _settle(self, leads: dict[tuple[int, type | None], list[tuple[int, type | None]]]) -> None:
        """Give each what it leads to, until nothing is new: functions call each other in circles."""
        changed = True
        while changed:
            changed = False
            for key, further in reversed(leads.items()):
                found = self._found[key]
                before = len(found)
                found.update(*(self._found[each] for each in further))
                changed |= len(found) > before


_REACH = _Reach()


def _end_of(thing: Any) -> Any:
    """The function, class or collection that a thing is in the end; ``None`` for anything else, which leads nowhere."""
    if isinstance(thing, property):
        thing = thing.fget
    thing = getattr(thing, "__func__", thing)
    if isinstance(thing, FunctionType):
        return unwrap(thing)
    return thing if isinstance(thing, type | dict | list | tuple | set | frozenset) else None


def _look(thing: Any, owner: type | None) -> tuple[set[str], list[_Place]]:
    """The marks of the names that stand in it, and where it leads."""
    found: set[str] = set()
    further: list[_Place] = []

    def lead(*things: Any, to: type | None) -> None:
        further.extend((end, to) for each in things if (end := _end_of(each)) is not None)

    if isinstance(thing, dict):
        lead(*thing.values(), to=owner)
    elif isinstance(thing, list | tuple | set | frozenset):
        lead(*thing, to=owner)
    elif isinstance(thing, type):
        if thing.__name__ in STARTERS:
            found |= STARTERS[thing.__name__]
        elif _ours(thing.__module__):
            for cls in thing.__mro__:
                if _ours(cls.__module__):
                    lead(*vars(cls).values(), to=thing)
    else:
        scope: dict[str, Any] = thing.__globals__
        lead(*(cell.cell_contents for cell in thing.__closure__ or ()), to=owner)
        names = {*_names(thing.__code__)}
        found.update(*(STARTERS.get(name, ()) for name in names))
        modules = [each for name in names if isinstance(each := scope.get(name), ModuleType) and _ours(each.__name__)]
        for name in names - STARTERS.keys():
            if _ours(scope["__name__"]):
                lead(scope.get(name), to=None)
            if owner is not None:
                lead(getattr(owner, name, None), to=owner)
            lead(*(getattr(module, name, None) for module in modules), to=None)
    return found, further


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "tests"


def _names(code: CodeType) -> Iterator[str]:
    """The globals and attributes that a function names, with those of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


class Guard:
    """Lets a test start what its marks allow, and fails it for anything else, whoever swallowed the exception.

    A plain socket is no process: tests may listen on, and connect to, this machine; other machines are none of theirs.
    """

    def __init__(self) -> None:
        self._marks: set[str] | None = None
        self.refused: list[str] = []  # by the test that runs
        sys.addaudithook(self._hear)  # cannot be taken away again: it does nothing between tests

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Watch while a test runs."""
        self._marks = {mark.name for mark in item.iter_markers()} & set(MARKS)
        try:
            return (yield)
        finally:
            self._marks = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Fail the test, or let its own exception go on, for what was refused since its fixtures began."""
        yield
        self._judge()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """The same for what was refused in clean-ups."""
        yield
        self._judge()

    def _judge(self) -> None:
        refused, self.refused = self.refused, []
        if refused:
            pytest.fail(f"not marked, yet it tried: {'; '.join(refused)}. See {__name__}", pytrace=False)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._marks is None or "process" in self._marks or "browser" in self._marks:
            return
        if event in {"os.fork", "os.forkpty", "os.system", "os.posix_spawn", "subprocess.Popen", "pty.spawn"}:
            program = PurePath(arguments[0]).name if arguments and isinstance(arguments[0], str) else event
            if "redis" in self._marks and (program.endswith("-server") or event == "os.fork"):
                return
            self._refuse(f"to start {program}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            host = str(arguments[1][0])
            if not (host.startswith("127.") or host in {"::1", "localhost", "0.0.0.0", ""}):
                self._refuse(f"to connect to {host}")

    def _refuse(self, what: str) -> None:
        self.refused.append(what)
        raise PermissionError(f"this test is not marked to be allowed {what}")
