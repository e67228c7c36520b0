"""Which names a port may be addressed by, against DNS rebinding: a page's own name that suddenly points at the gateway
is of the same origin for its browser. Asked by :mod:`kraftek.edge.http_server` for every request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

__all__ = ["Hosts"]

# Two headers are a list with a comma: whoever is in front may have gone by the other one.
_HOST = re.compile(r"(\[[^\]]*\]|[^][:/?#@,\s]*)(?::[0-9]*)?")


class Hosts:
    """The rule made of names and ``*.example.org``, which covers every name below ``example.org``; of none: everybody.

    Ports do not matter. ``lenient``: an address and no name at all pass, too: no page is served from either.
    """

    def __init__(self, patterns: Iterable[str] = (), *, lenient: bool = False) -> None:
        patterns = [pattern.lower() for pattern in patterns]
        self._any = not patterns
        self._suffixes = tuple(pattern[1:] for pattern in patterns if pattern.startswith("*."))
        self._exact = frozenset(patterns)
        self._lenient = lenient

    def allow(self, host: str) -> bool:
        """Whether a request may be addressed to this ``Host``; empty for none."""
        if self._any:
            return True
        found = _HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1]
        if self._lenient and (not name or _is_address(name.strip("[]"))):
            return True
        return name in self._exact or name.endswith(self._suffixes or ("\0",))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
