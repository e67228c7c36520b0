"""Who says what clients may do, by ``auth.check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer

from kraftek.contract.errors import Code, ConfigError, PeerError
from kraftek.contract.interfaces import IAccessChecker
from kraftek.contract.messages import Grant, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.names import INVALIDATION
from kraftek.contract.settings import Auth, Config, Jwt
from kraftek.core.access.not_before import NOT_BEFORE
from kraftek.core.access.redis import CLEAR
from kraftek.daemon.checkers import Checkers, factories_of, kind_of
from tests.support.fakes import FakeBus

SECRET = "0123456789abcdef0123456789abcdef"
OWN = f"python:{__name__}:Everybody"


@implementer(IAccessChecker)
class Everybody:
    """A checker of one's own."""

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        return succeed(Grant(token.value))

    def vouches(self, source: str) -> bool:
        return not source

    def on_change(self, listener: Callable[[], None]) -> None:
        """It never changes."""


class Somebody(Everybody):
    """Another one."""


class Nobody:
    """No checker."""


def broken() -> None:
    raise ZeroDivisionError("no")


def config(check: str, directory: Path) -> Config:
    file = directory / "secret"
    file.write_text(SECRET)
    return Config(
        auth=Auth(check=check), jwt=Jwt(issuer="https://id", audience="gw", algorithm="HS256", key_files=(str(file),))
    )


class Running:
    def __init__(self, check: str, directory: Path) -> None:
        self.clock, self.bus = Clock(), FakeBus({})
        self.config = config(check, directory)
        self.checkers = Checkers(self.clock, self.config, self.bus, Counters())
        self.bus.calls.clear()

    def commands(self) -> list[Any]:
        return [call.command for call in self.bus.calls]


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        ("open", ("open",)),
        ("http://a", ("http",)),
        ("https://a/jwt+b", ("http",)),
        ("jwt", ("jwt",)),
        ("jwt+http://a", ("jwt", "http")),
        (OWN, (OWN,)),
        (f"{OWN}+http://a", (OWN, "http")),
        (f"jwt+{OWN}", ("jwt", OWN)),
    ],
)
def test_kinds(check: str, kind: tuple[str, ...], tmp_path: Path) -> None:
    assert kind_of(check) == kind
    with capturedLogs() as events:
        running = Running(check, tmp_path)
    assert len(events) == (check == "open")
    running.checkers.sweep()
    running.checkers.reload(running.config)()
    assert running.checkers.close().called
    # What is revoked is a time, where the token decides.
    for listener in running.bus._channels.get(INVALIDATION, []):
        listener(b'{"userId":"ada"}')
    # In this order: see NotBefore.
    assert running.commands() == [*([NOT_BEFORE] if "jwt" in kind else []), *([CLEAR] if check != "open" else [])]


def test_both_are_asked_in_a_chain(tmp_path: Path) -> None:
    running = Running("jwt+http://127.0.0.1:3002", tmp_path)
    assert running.checkers._auth_service is not None
    assert running.checkers._auth_service._agent._url == b"http://127.0.0.1:3002/auth/check"
    running.bus.down()
    errors: list[Any] = []
    with capturedLogs():
        running.checkers.access.check(Token("x"), "r").addErrback(lambda failure: errors.append(failure.value))
    assert isinstance(errors[0], PeerError)
    assert errors[0].code is Code.AUTH_FAILED  # the token's own no: the auth service is not asked


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    running = Running("jwt", tmp_path)
    (tmp_path / "secret").write_text("short")
    with pytest.raises(ValueError, match="expected a secret"):
        running.checkers.reload(running.config)


def test_ones_own_is_asked_in_a_chain(tmp_path: Path) -> None:
    running = Running(f"{OWN}+http://127.0.0.1:3002", tmp_path)
    assert running.checkers._auth_service is not None
    assert running.checkers._auth_service._agent._url == b"http://127.0.0.1:3002/auth/check"
    (own,) = running.checkers._own
    granted: list[Grant] = []
    own.check(Token("ada"), "r").addCallback(granted.append)
    source = granted[0].source
    assert (granted[0].user_id, own.vouches(source)) == ("ada", True)
    other = Running(f"python:{__name__}:Somebody", tmp_path)
    assert not other.checkers._own[0].vouches(source)


@pytest.mark.parametrize(
    ("path", "mistake"),
    [
        ("missing.module:x", "expected module missing.module to be there, found ModuleNotFoundError: No module named"),
        (f"{__name__}:Missing", f"expected Missing in module {__name__}, found AttributeError: "),
        (f"{__name__}:SECRET", "expected a function or class, found a str"),
    ],
)
def test_a_factory_that_is_not_there(path: str, mistake: str, tmp_path: Path) -> None:
    for use in (lambda: factories_of(f"jwt+python:{path}"), lambda: Running(f"python:{path}", tmp_path)):
        with pytest.raises(ConfigError) as caught:
            use()
        assert caught.value.mistakes[0].startswith(f"auth.check: python:{path}: {mistake}")


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("broken", "expected a factory that makes a checker without arguments, found ZeroDivisionError: no"),
        ("Nobody", "expected it to make an IAccessChecker of kraftek.contract.interfaces ("),
    ],
)
def test_a_factory_that_makes_no_checker(name: str, mistake: str, tmp_path: Path) -> None:
    (factory,) = factories_of(f"python:{__name__}:{name}")  # it is not called
    assert callable(factory)
    with pytest.raises(ConfigError) as caught:
        Running(f"python:{__name__}:{name}", tmp_path)
    assert caught.value.mistakes[0].startswith(f"auth.check: python:{__name__}:{name}: {mistake}")
