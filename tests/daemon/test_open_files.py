"""How many connections the limit of open files leaves to clients."""

from __future__ import annotations

from resource import RLIM_INFINITY

import pytest
from twisted.logger import capturedLogs

from kraftek.contract.errors import ConfigError
from kraftek.contract.settings import Auth, Config, Limits
from kraftek.daemon import open_files
from kraftek.daemon.open_files import OWN_FILES, connections_allowed, files_needed

OPEN = Auth(check="open")


@pytest.mark.parametrize(
    ("files", "wanted", "allowed"),
    [
        (OWN_FILES + 100, 0, 100),
        (OWN_FILES + 100, 99, 99),
        (OWN_FILES + 100, 100, 100),
        (OWN_FILES + 1, 0, 1),
        (RLIM_INFINITY, 7, 7),
        (RLIM_INFINITY, 0, 2**31 - 1),
    ],
)
def test_what_own_files_leave_is_allowed(
    monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, allowed: int
) -> None:
    monkeypatch.setattr(open_files, "getrlimit", lambda _: (files, files))
    with capturedLogs() as logs:
        assert connections_allowed(Config(auth=OPEN, limits=Limits(connections=wanted))) == allowed
    assert not logs


def test_who_wants_more_is_told_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "getrlimit", lambda _: (OWN_FILES + 100, 4096))
    with capturedLogs() as logs:
        assert connections_allowed(Config(auth=OPEN, limits=Limits(connections=101))) == 100
    assert [(event["wanted"], event["files"], event["possible"]) for event in logs] == [(101, OWN_FILES + 100, 100)]


def test_connections_to_the_auth_service_need_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(auth=Auth(concurrency=50))
    assert files_needed(config) == OWN_FILES + 50
    monkeypatch.setattr(open_files, "getrlimit", lambda _: (OWN_FILES + 50, 4096))
    with pytest.raises(ConfigError, match=f"expected more than {OWN_FILES + 50}, .* found {OWN_FILES + 50}"):
        connections_allowed(config)
