"""Who says what clients may do, by ``auth.check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.messages import Token
from kraftek.contract.metrics import Counters
from kraftek.contract.names import INVALIDATION
from kraftek.contract.settings import Auth, Config, Jwt
from kraftek.core.access.not_before import NOT_BEFORE
from kraftek.core.access.redis import CLEAR
from kraftek.daemon.checkers import Checkers, CheckKind, kind_of
from tests.support.fakes import FakeBus

SECRET = "0123456789abcdef0123456789abcdef"


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
        ("open", CheckKind.OPEN),
        ("http://a", CheckKind.ASKING),
        ("https://a/jwt", CheckKind.ASKING),
        ("jwt", CheckKind.JWT),
        ("jwt+http://a", CheckKind.CHAINED),
    ],
)
def test_kinds(check: str, kind: CheckKind, tmp_path: Path) -> None:
    assert kind_of(check) is kind
    with capturedLogs() as events:
        running = Running(check, tmp_path)
    assert len(events) == (kind is CheckKind.OPEN)
    running.checkers.sweep()
    running.checkers.reload(running.config)()
    assert running.checkers.close().called
    # What is revoked is a time, where the token decides.
    for listener in running.bus._channels.get(INVALIDATION, []):
        listener(b'{"userId":"ada"}')
    expected = {CheckKind.OPEN: [], CheckKind.ASKING: [CLEAR]}
    assert running.commands() == expected.get(kind, [NOT_BEFORE, CLEAR])  # in this order: see NotBefore


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
