"""What a test needs besides Python, read off its code: the marks ``redis``, ``process`` and ``browser``.

A test needs what its code reaches: the function, the fixtures it asks for, its parameters, ``setUp`` and its fellows,
and every function and class of ``tests/`` that these name, and so on. ``tests/conftest.py`` marks each test so when it
is collected. Where the product under test starts a process by itself, that cannot be read off, and the test bears the
mark by hand. :class:`Guard` keeps all this true: a test that starts a process without being marked fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
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
        search = _Search()
        search.visit(item.callspec.params)
        found |= search.found
    return found


@cache
def reached(function: Any, owner: type | None = None) -> frozenset[str]:
    """The marks of what a function reaches; ``owner`` is the class that it is a method of."""
    search = _Search()
    search.visit(function, owner)
    return frozenset(search.found)


class _Search:
    """A walk from one test through what its code names; :attr:`found` is what it met."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        # With each thing, so that it stays alive: nothing that is made later gets its id.
        self._visited: dict[tuple[int, type | None], Any] = {}

    def names_starter(self, name: str) -> bool:
        """Note what ``name`` starts; whether it is one that starts anything."""
        self.found |= STARTERS.get(name, set())
        return name in STARTERS

    def visit(self, thing: Any, owner: type | None = None) -> None:
        """Go on from a function (of ``owner``), a class or a collection; anything else leads nowhere."""
        if (id(thing), owner) in self._visited:
            return
        self._visited[id(thing), owner] = thing
        if isinstance(thing, dict):
            thing = list(thing.values())
        if isinstance(thing, list | tuple | set | frozenset):
            for inner in thing:
                self.visit(inner, owner)
        elif isinstance(thing, property | staticmethod | classmethod):
            self.visit(thing.fget if isinstance(thing, property) else thing.__func__, owner)
        elif isinstance(thing, type):
            if self.names_starter(thing.__name__) or not _ours(thing.__module__):
                return
            for cls in thing.__mro__:
                if _ours(cls.__module__):
                    self.visit(vars(cls) | {}, thing)
        elif isinstance(method := getattr(thing, "__func__", thing), FunctionType):
            self._visit_function(unwrap(method), owner)

    def _visit_function(self, function: Any, owner: type | None) -> None:
        scope: dict[str, Any] = function.__globals__
        for cell in function.__closure__ or ():
            self.visit(cell.cell_contents, owner)
        modules = [scope[name] for name in _names(function.__code__) if isinstance(scope.get(name), ModuleType)]
        for name in _names(function.__code__):
            if self.names_starter(name):
                continue
            self.visit(scope.get(name) if _ours(scope["__name__"]) else None)
            if owner is not None:
                self.visit(getattr(owner, name, None), owner)
            for module in modules:
                if _ours(module.__name__):
                    self.visit(getattr(module, name, None))


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
