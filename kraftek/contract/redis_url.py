"""URLs of Redis, and hosts with ports as URLs have them: read, and shown without their passwords."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Literal
from urllib.parse import unquote

from msgspec import Struct
from msgspec.structs import replace

__all__ = ["RedisAddress", "host_and_port", "is_port", "masked", "redis_address", "shown"]


SENTINEL_PORT = 26379
"""Where sentinels listen unless told otherwise."""


class RedisAddress(Struct, frozen=True, kw_only=True):
    """A parsed Redis URL. ``host`` and ``port`` go with ``tcp`` and ``tls``, ``path`` with ``unix``.

    ``password`` is ``None`` when there is none to give, ``username`` when the password is the default user's.

    With ``sentinels``, each a host and a port, ``host`` is empty: they know where the master named ``master`` is. They
    and the master are all reached by ``tcp``, or all by ``tls``. ``sentinel_username`` and ``sentinel_password`` are
    for the sentinels, the other two for the master.
    """

    kind: Literal["tcp", "tls", "unix", "embedded"]
    host: str = ""
    port: int = 0
    path: str = ""
    username: str | None = None
    password: str | None = None
    database: int = 0
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def __repr__(self) -> str:
        hidden = self.sentinel_password and "***"
        return shown(self, password=self.password and "***", sentinel_password=hidden)


def shown(struct: Struct, **instead: object) -> str:
    """A Struct's representation, with other values in place of its secrets."""
    values = {name: instead.get(name, getattr(struct, name)) for name in struct.__struct_fields__}
    return f"{type(struct).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def redis_address(url: str) -> RedisAddress:
    """Parse ``url``; the bus calls this with ``config.redis.url``.

    Raises ``ValueError`` with what was expected, which repeats nothing of ``url``: that may hold a password.
    """
    if url == "embedded:":
        return RedisAddress(kind="embedded")
    scheme = url.partition(":")[0]
    kind = _REDIS_KINDS.get(scheme)
    if kind is None:
        raise ValueError("a URL that begins with redis://, rediss://, redis+sentinel:// or unix://, or embedded:")
    parts = re.fullmatch(r"[a-z+]+:(?://([^/?]*))?([^?]*)(?:\?(.*))?", url)
    if parts is None or not url.isprintable() or " " in url or "#" in url:
        raise ValueError("a Redis URL with white space and # percent-encoded")
    before, path, query = parts.groups("")
    credentials, _, authority = before.rpartition("@")
    username, password = _credentials(credentials)
    login = RedisAddress(kind=kind, username=username, password=password)
    if kind == "unix":
        return _with_path(login, authority, path, query)
    if scheme.endswith("+sentinel"):
        return _with_sentinels(login, authority, path, query)
    host, port = host_and_port(authority, 6379)
    database = re.fullmatch(r"/?([0-9]{1,9})?", path) if "?" not in url else None
    return replace(login, host=host, port=port, database=_number(database))


_REDIS_KINDS: dict[str, Literal["tcp", "tls", "unix"]] = {
    "redis": "tcp",
    "rediss": "tls",
    "redis+sentinel": "tcp",
    "rediss+sentinel": "tls",
    "unix": "unix",
}


def _with_path(login: RedisAddress, authority: str, path: str, query: str) -> RedisAddress:
    # Bytes that are no UTF-8 become what Python's file functions take for them.
    path = unquote(path, errors="surrogateescape")
    if authority or not path.startswith("/") or "\0" in path:
        raise ValueError("an absolute path after unix://, as in unix:///run/redis.sock?db=0")
    return replace(login, path=path, database=_number(re.fullmatch(r"(?:db=([0-9]{1,9}))?", query)))


def _number(database: re.Match[str] | None) -> int:
    if database is None:
        raise ValueError("a database's number at the end: /1 after redis:// and rediss://, ?db=1 after unix://")
    return int(database[1] or 0)


def _with_sentinels(login: RedisAddress, authority: str, path: str, query: str) -> RedisAddress:
    """Parse what other clients of Sentinel take as well (Redis-Sentinel-Url, Prefect, docket, RedisVL)."""
    sentinels = tuple(host_and_port(place, SENTINEL_PORT) for place in authority.split(","))
    # The characters that sentinel.conf allows in a name. One of digits alone would be another client's database, which
    # comes before the name there.
    found = re.fullmatch(r"/(?![0-9]*(?:/|\Z))([A-Za-z0-9._-]+)(?:/([0-9]{1,9})?)?", path)
    if found is None:
        raise ValueError("the master's name and a database's number after the sentinels, as in /mymaster/0")
    name, database = found.groups()
    options: dict[str, str] = {}
    for option in query.split("&") if query else ():
        key, _, value = option.partition("=")
        if key not in _SENTINEL_OPTIONS or key in options:
            raise ValueError(f"after the ? only {' and '.join(_SENTINEL_OPTIONS)}, each once")
        options[key] = _decoded(value)
    if options.keys() == {"sentinel_username"}:
        raise ValueError("sentinel_password with sentinel_username")
    return replace(login, sentinels=sentinels, master=name, database=int(database or 0), **options)


_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


def _credentials(text: str) -> tuple[str | None, str | None]:
    username, colon, password = text.partition(":")
    if not (username or password):
        return None, None
    if not colon:
        raise ValueError("USER:PASSWORD@ or :PASSWORD@ before the host")
    return _decoded(username) or None, _decoded(password)


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("a user and a password that are UTF-8 when percent-decoded") from None


def host_and_port(authority: str, default: int) -> tuple[str, int]:
    """Parse ``HOST`` or ``HOST:PORT``. An IPv6 address stands in brackets, and is returned without them."""
    found = re.fullmatch(r"(?:([A-Za-z0-9_.-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]*))?", authority)
    if found is None:
        raise ValueError("HOST or HOST:PORT, an IPv6 address in brackets")
    name, address, port = found.groups()
    if address:
        try:
            IPv6Address(address)
        except ValueError:
            raise ValueError("an IPv6 address in the brackets") from None
    if port and not is_port(port):
        raise ValueError("a port from 1 to 65535")
    return name or address, int(port) if port else default


def is_port(text: str, lowest: int = 1) -> bool:
    """Whether ``text`` is a port from ``lowest`` to 65535 in decimal digits."""
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and lowest <= int(text) <= 65535


def masked(url: str) -> str:
    """``url`` without the password in it, and without what could be one should the URL be malformed."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(://)", url)
    scheme, slashes = found.groups() if found else ("", "")
    rest = url[len(scheme + slashes) :]
    credentials, at, rest = rest.rpartition("@")
    if re.search(r"[/?#]", credentials):  # who knows where it ends
        return f"{scheme}{slashes}***"
    user, colon, _ = credentials.partition(":")
    comma, more = (",", ",") if scheme.endswith("+sentinel") else ("", "(?!)")
    host = rf"(?:\[[^\]]*\]|[^:/?#{comma}]+)(?::[0-9]{{0,5}}(?![^/?#{comma}]))?"
    harmless = re.match(
        rf"(?:{host}(?:{more}{host})*)?"
        + (r"(?:/[0-9]*(?![^?#]))?" if scheme in {"redis", "rediss"} else r"(?:/[^?#]*)?")  # database or path
        + r"(?:\?db=[0-9]+\Z)?",
        rest,
    )
    assert harmless is not None
    shown = scheme + slashes + (f"{user}:***@" if colon else at and "***@") + harmless[0]
    return shown if harmless.end() == len(rest) else f"{shown}{rest[harmless.end()]}***"
