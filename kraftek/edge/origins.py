"""Which pages may connect: the allowed Origins (RFC 6455, section 10.2). Asked at every handshake."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from urllib.parse import urlsplit

__all__ = ["Origins", "Verdict"]

_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Verdict(Enum):
    """What a page may do."""

    REFUSED = "refused"
    ANYBODY = "anybody"  # as any page may: connect, without cookies
    NAMED = "named"  # connect, with cookies and whatever else makes a request the user's


class Origins:
    """The rule made of the configured patterns: ``same-host``, exact origins, ``*.example.org``, ``*``.

    ``*.example.org`` covers every host below ``example.org``, at any scheme and port, and not ``example.org`` itself.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = [pattern.lower() for pattern in patterns]
        self._any = "*" in patterns
        self._same_host = "same-host" in patterns
        self._suffixes = tuple(pattern[1:] for pattern in patterns if pattern.startswith("*."))
        self._exact = {_normal(pattern) for pattern in patterns if "://" in pattern}

    def judge(self, origin: str, host: str, scheme: str | None) -> Verdict:
        """What a page with this ``Origin`` may do on this ``Host``; empty: a client without one is no browser.

        ``scheme``: what the page would have if it were the host's own, ``None`` where that is not known.
        """
        if not origin or self._names(origin.lower(), host, scheme):
            return Verdict.NAMED
        return Verdict.ANYBODY if self._any else Verdict.REFUSED

    def _names(self, origin: str, host: str, scheme: str | None) -> bool:
        try:
            parts = urlsplit(origin)
            hostname, port = parts.hostname, parts.port
        except ValueError:
            return False
        if hostname is None:
            return False
        if self._suffixes and hostname.endswith(self._suffixes):
            return True
        if _normal(origin) in self._exact:
            return True
        if not self._same_host or (scheme is not None and parts.scheme != scheme):
            return False
        return _authority(hostname, port, parts.scheme) == _host(host, parts.scheme)


def _normal(origin: str) -> str:
    parts = urlsplit(origin)
    return f"{parts.scheme}://{_authority(parts.hostname or '', parts.port, parts.scheme)}"


def _authority(hostname: str, port: int | None, scheme: str) -> str:
    return f"{hostname}:{port or _PORTS.get(scheme, 0)}"


def _host(host: str, scheme: str) -> str:
    try:
        parts = urlsplit(f"//{host.lower()}")
        return _authority(parts.hostname or "", parts.port, scheme)
    except ValueError:
        return ""
