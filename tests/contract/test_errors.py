"""The codes of the client protocol, section 7: which there are, and which close a socket."""

from __future__ import annotations

import pytest

from kraftek.contract.errors import CLOSE_CODES, Code, ConfigError, NotPublished, PeerError

# docs/errors.rst; None stays open.
TABLE = {
    "NOT_AUTHENTICATED": None,
    "AUTH_FAILED": 4401,
    "DUPLICATE_CONNECTION": 4409,
    "INVALID_EVENT": None,
    "INVALID_MESSAGE": 4400,
    "AUTH_TIMEOUT": 4408,
    "AUTH_UNAVAILABLE": None,
    "ACCESS_DENIED": None,
    "ACCESS_REVOKED": 4403,
    "NO_HISTORY": None,
    "TOKEN_EXPIRED": 4401,
    "NO_PRESENCE": None,
    "SERVICE_UNAVAILABLE": None,
    "TIMEOUT": None,
    "CANCELLED": None,
    "RATE_LIMITED": 4429,
    "SLOW_CONSUMER": 4413,
    "INTERNAL": 1011,
}


def test_the_codes_are_those_of_the_protocol() -> None:
    assert {code.value: CLOSE_CODES.get(code) for code in Code} == TABLE


def test_a_code_is_found_by_its_text() -> None:
    # What a service names in a disconnect command is looked up without being parsed.
    assert CLOSE_CODES["AUTH_FAILED"] == 4401


def test_a_peer_error_says_what_its_client_is_told() -> None:
    error = PeerError(Code.AUTH_UNAVAILABLE, "later", closes=True, retry_after=1.5, id="q", event_type="a:b:c")
    assert str(error) == error.message == "later"
    assert (error.code, error.closes, error.retry_after) == (Code.AUTH_UNAVAILABLE, True, 1.5)
    assert (error.id, error.event_type) == ("q", "a:b:c")


def test_a_peer_error_closes_nothing_unless_it_says_so() -> None:
    error = PeerError(Code.AUTH_FAILED, "no")
    assert (error.closes, error.retry_after, error.id, error.event_type) == (False, None, None, None)


def test_what_is_ours_is_no_peer_error() -> None:
    assert not issubclass(NotPublished, PeerError)
    assert not issubclass(ConfigError, PeerError)


def test_a_configuration_error_names_every_mistake() -> None:
    with pytest.raises(ConfigError, match="one\ntwo") as caught:
        raise ConfigError(["one", "two"])
    assert caught.value.mistakes == ["one", "two"]
