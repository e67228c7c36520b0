"""Which pages may connect: the allowed Origins (RFC 6455, section 10.2). Asked at every handshake."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

__all__ = ["Origins"]

_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


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

    def allow(self, origin: str | None, host: str) -> bool:
        """Whether a client with this ``Origin`` header may connect to this ``Host``. Without one it is no browser."""
        if origin is None or self._any:
            return True
        origin = origin.lower()
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
        return self._same_host and _authority(hostname, port, parts.scheme) == _host(host, parts.scheme)


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
