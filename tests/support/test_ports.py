"""Each port is given once, whichever process asks."""

from __future__ import annotations

import socket

import pytest

from tests.support import ports


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[int, socket.socket] = {}
    monkeypatch.setattr(ports, "_given", given)
    first = ports.free_port()
    with socket.socket() as listening, socket.socket(type=socket.SOCK_DGRAM) as other:
        for taken in (listening, other):
            taken.bind(("127.0.0.1", 0))
        # One that was given here, one that somebody listens on, and one that another process was given.
        numbers = [first, listening.getsockname()[1], other.getsockname()[1], free := ports.free_port()]
        ports.give_back(free)
        monkeypatch.setattr(ports, "PORTS", numbers)
        assert ports.free_port() == free
        with pytest.raises(AssertionError, match="no free port"):
            ports.free_port()
    for mark in given.values():
        mark.close()
