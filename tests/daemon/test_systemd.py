"""Telling systemd, over a socket as systemd gives one: sd_notify(3)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from kraftek.daemon.systemd import more_time, notify, reloading


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.settimeout(5)
        yield systemd


def test_nobody_is_told_who_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("it made a socket to tell somebody"))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    notify("READY=1")


def test_a_socket_in_the_file_system_is_told(
    listening: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    listening.bind(path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify("READY=1")
    notify("STOPPING=1")
    assert [listening.recv(100), listening.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_an_abstract_socket_is_told(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"kraftek-test-{uuid4()}"
    listening.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    notify("READY=1")
    assert listening.recv(100) == b"READY=1"


def test_more_time_is_asked_for(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"kraftek-test-{uuid4()}"
    listening.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    more_time()
    assert listening.recv(100) == b"EXTEND_TIMEOUT_USEC=15000000"


def test_a_reload_has_its_time(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"kraftek-test-{uuid4()}"
    listening.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    before = time.monotonic_ns() // 1000
    reloading()
    told, _, microseconds = listening.recv(100).decode().rpartition("=")
    assert told == "RELOADING=1\nMONOTONIC_USEC"
    assert before <= int(microseconds) <= time.monotonic_ns() // 1000


def test_a_socket_that_is_not_there_stops_nothing(
    listening: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "late")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify("READY=1")
    listening.bind(path)
    notify("STOPPING=1")
    assert listening.recv(100) == b"STOPPING=1"
