"""Reads the configuration: options over environment over file.

Called by :mod:`kraftek.daemon.tap`; everything else is handed the finished values, which
:mod:`kraftek.contract.settings` describes.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from msgspec import Struct, ValidationError, convert
from msgspec.structs import fields

from kraftek.contract.errors import ConfigError
from kraftek.contract.messages import ROOM_ID_LENGTH
from kraftek.contract.names import default_channel
from kraftek.contract.redis_url import is_port, masked
from kraftek.contract.registrations import mistakes_of, name_mistake
from kraftek.contract.settings import (
    Auth,
    Config,
    Drain,
    EventPolicy,
    Jwt,
    Limits,
    Operator,
    Redis,
    Registration,
    RoomPolicy,
    SocketIO,
    Users,
)
from kraftek.daemon.config_checks import CHECKS, Check, Key

__all__ = ["load"]


def load(
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    read_file: Callable[[str], bytes] = lambda name: Path(name).read_bytes(),
    table: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration that all of these give together.

    ``options``: those given on the command line: ``config`` (a file's name), ``redis``, ``auth``, ``demo``, and the
    lists ``listen``, ``service`` (of ``NAME=CHANNEL``) and ``origin``. ``environ``: like ``os.environ``; an empty
    variable is one that is not given. ``table``: what a file would have. Raises :class:`ConfigError` with every mistake
    that any of them has.
    """
    draft = _Draft(read_file)
    _take_options(draft, options)
    _take_environment(draft, environ)
    if "config" in options:
        draft.take_file(options["config"])
    if table is not None:
        draft.take_table("config", table)
    _take_original_environment(draft, environ)
    if draft.values.get(("demo",)):
        draft.take("demo", ("redis", "url"), "embedded:")
        draft.take("demo", ("auth", "check"), "open")
        draft.take_service("demo", "stickyNotes", {"channel": default_channel("stickyNotes")})
        draft.take_rooms("demo", "*", {"presence": True, "history": 1000})
    return draft.finish()


def _take_options(draft: _Draft, options: Mapping[str, Any]) -> None:
    for option, key in _OPTIONS.items():
        if option in options:
            draft.take(f"--{option}", key, options[option])
    names = set()
    for text in options.get("service", ()):
        name, equals, channel = text.partition("=")
        if not equals or name in names:
            draft.blame("--service", ("services",), "each name once" if equals else "NAME=CHANNEL", text)
        else:
            draft.take_service("--service", name, channel, found=text)
        names.add(name)


def _take_environment(draft: _Draft, environ: Mapping[str, str]) -> None:
    if url := environ.get("KRAFTEK_REDIS"):
        draft.take("KRAFTEK_REDIS", ("redis", "url"), url)
    # Separated by white space: a comma may stand in the path of a socket or a key.
    if endpoints := environ.get("KRAFTEK_LISTEN", "").split():
        draft.take("KRAFTEK_LISTEN", ("listen",), endpoints)
    if endpoints := environ.get("KRAFTEK_OPERATOR", "").split():
        draft.take("KRAFTEK_OPERATOR", ("operator", "listen"), endpoints)
    if check := environ.get("KRAFTEK_AUTH"):
        draft.take("KRAFTEK_AUTH", ("auth", "check"), check)


def _take_original_environment(draft: _Draft, environ: Mapping[str, str]) -> None:
    """The variables of the gateway that this one replaces, so that its deployment files keep working.

    Where something else is given they are not even looked at: their names are common, and Kubernetes, for one, sets
    ``REDIS_PORT`` to ``tcp://10.0.0.7:6379`` wherever a service is called ``redis``.
    """
    if (port := environ.get("PORT")) and ("listen",) not in draft.values:
        if is_port(port, 0):
            draft.take("PORT", ("listen",), [f"tcp:{port}"])
        else:
            draft.blame("PORT", ("listen",), "a port from 0 to 65535", port)
    host, port = environ.get("REDIS_HOST"), environ.get("REDIS_PORT")
    if (host or port) and ("redis", "url") not in draft.values:
        if port and not is_port(port):
            draft.blame("REDIS_PORT", ("redis", "url"), "a port from 1 to 65535", port)
            port = None
        host = host or "127.0.0.1"
        host = f"[{host}]" if host.count(":") > 1 else host  # an IPv6 address
        draft.take("REDIS_HOST", ("redis", "url"), f"redis://{host}:{port or 6379}/0")
    if (channel := environ.get("REDIS_OUTGOING_CHANNEL")) and ("redis", "broadcast") not in draft.values:
        draft.take("REDIS_OUTGOING_CHANNEL", ("redis", "broadcast"), channel)
    if (check := environ.get("AUTH_SERVICE_URL")) and ("auth", "check") not in draft.values:
        draft.take("AUTH_SERVICE_URL", ("auth", "check"), check)


class _Draft:
    """What was read so far: ``values`` has for each key what was given first, ``None`` if that was wrong."""

    def __init__(self, read_file: Callable[[str], bytes]) -> None:
        self.values: dict[Key, Any] = {}
        self._sources: dict[Key, str] = {}
        self._services: dict[str, str] = {}
        self._events: dict[str, str] = {}
        self._rooms: dict[str, str] = {}
        self._mistakes: list[str] = []
        self._read_file = read_file

    def blame(self, source: str, key: Key, expected: str, found: object) -> None:
        """Note a mistake, without the password that ``found`` may hold."""
        if isinstance(found, str) and (key in {("redis", "url"), ("auth", "check")} or "://" in found):
            found = masked(found)
        self._mistakes.append(f"{source}: {_dotted(key)}: expected {expected}, found {_shown(found)}")

    def take(self, source: str, key: Key, value: object) -> None:
        """Check a value; it counts if it is the first for its key."""
        rule = (key[0], "NAME", *key[2:]) if key[:1] in _NAMED else key
        kind = _KINDS.get(rule)
        if kind is None:
            self._mistakes.append(f"{source}: {_dotted(key)}: {_unknown(key, rule)}")
            return
        checked = self._checked(source, key, kind, CHECKS.get(rule), value)
        if key not in self.values:
            self.values[key] = checked
            self._sources[key] = source

    def _checked(self, source: str, key: Key, kind: Any, check: Check | None, value: object) -> Any:
        plain, meta = get_args(kind)
        if get_origin(plain) is tuple and isinstance(value, list | tuple) and value:
            each = get_args(plain)[0]
            return tuple(self._checked(source, (*key, i), each, check, one) for i, one in enumerate(value))
        if get_origin(plain) is dict and isinstance(value, dict):
            name_kind, each = get_args(plain)
            for name in value:
                self._checked(source, key, name_kind, check, name)
            return {name: self._checked(source, (*key, name), each, check, one) for name, one in value.items()}
        try:
            converted = convert(value, kind)
            if check is not None and isinstance(converted, str):
                check(converted, self._read_file)
        except ValidationError:
            self.blame(source, key, meta.description, value)
        except ValueError as error:
            self.blame(source, key, str(error), value)
        else:
            return converted
        return None

    def take_service(self, source: str, name: str, value: object, found: str | None = None) -> None:
        """Take a service: its channel, or a table with its keys. ``found``: what a malformed name was read from."""
        if (mistake := name_mistake(name)) is not None:
            self.blame(source, ("services",), mistake.expected, found or name)
            return
        self._services.setdefault(name, source)
        if isinstance(value, dict):
            self.take_table(source, value, ("services", name))
        else:
            self.take(source, ("services", name, "channel"), value)

    def take_events(self, source: str, pattern: str, value: object) -> None:
        """Take what is said about the events of a pattern: a table with its keys."""
        if len(pattern) > 128 or not all(re.fullmatch(r"\*|[^\s:*]+", part) for part in pattern.split(":")):
            self.blame(source, ("events",), "a pattern like cursors:*:moved, with * for a whole part", pattern)
        elif not isinstance(value, dict):
            self.blame(source, ("events", pattern), "a table", value)
        else:
            self._events.setdefault(pattern, source)
            self.take_table(source, value, ("events", pattern))

    def take_rooms(self, source: str, pattern: str, value: object) -> None:
        """Take what is said about the rooms of a pattern: a table with its keys."""
        if not (pattern.isprintable() and 0 < len(pattern) <= ROOM_ID_LENGTH and pattern.count("*") <= 1):
            self.blame(source, ("rooms",), "a room's name, with at most one * for any text", pattern)
        elif not isinstance(value, dict):
            self.blame(source, ("rooms", pattern), "a table", value)
        else:
            self._rooms.setdefault(pattern, source)
            self.take_table(source, value, ("rooms", pattern))

    def take_table(self, source: str, table: Mapping[str, object], path: Key = ()) -> None:
        """Take all that stands in a table."""
        for name, value in table.items():
            key = (*path, name)
            if key not in _TABLES:
                self.take(source, key, value)
            elif not isinstance(value, dict):
                self._mistakes.append(f"{source}: {_dotted(key)}: expected a table, found something else")
            elif key == ("services",):
                for service, one in value.items():
                    self.take_service(source, service, one)
            elif key == ("events",):
                for pattern, one in value.items():
                    self.take_events(source, pattern, one)
            elif key == ("rooms",):
                for pattern, one in value.items():
                    self.take_rooms(source, pattern, one)
            else:
                self.take_table(source, value, key)

    def take_file(self, name: str) -> None:
        """Take all that stands in a file."""
        source = name if name.isprintable() else repr(name)
        try:
            document = tomllib.loads(self._read_file(name).decode())
        except OSError as error:
            self._mistakes.append(f"--config: expected a readable file, found {source}: {error.strerror or error}")
        except RecursionError:
            self._mistakes.append(f"{source}: expected TOML, found too many brackets within each other")
        except ValueError as error:
            self._mistakes.append(f"{source}: expected TOML, found a mistake: {error}")
        else:
            self.take_table(source, document)

    def finish(self) -> Config:
        """The values that were accepted, otherwise the defaults. Raises :class:`ConfigError`."""
        self._check_services()
        for pattern in self._events:
            key = ("events", pattern, "key")
            if self.values.get(key) and self.values.get(("events", pattern, "policy")) != "latest":
                self.blame(self._sources[key], key, 'nothing unless the policy is "latest"', self.values[key])
        self._check_pings()
        self._check_jwt()
        self._check_recovery()
        if self._mistakes:
            raise ConfigError(self._mistakes)
        named = {str(path[0]): table for path, table in _STRUCTS.items() if len(path) == 1}
        tables: Any = {name: table(**self._fields(table, name)) for name, table in named.items()}
        return Config(
            **self._fields(Config),
            **tables,
            services=tuple(
                Registration(name=name, **self._fields(Registration, "services", name)) for name in self._services
            ),
            events=tuple(
                EventPolicy(pattern=pattern, **self._fields(EventPolicy, "events", pattern)) for pattern in self._events
            ),
            rooms=tuple(
                RoomPolicy(pattern=pattern, **self._fields(RoomPolicy, "rooms", pattern)) for pattern in self._rooms
            ),
        )

    def _check_services(self) -> None:
        broadcast = self.values.get(("redis", "broadcast")) or Redis().broadcast
        earlier: list[Registration] = []
        for name, source in self._services.items():
            key = ("services", name, "rate")
            for pattern in self.values.get(key) or ():
                if pattern.partition(":")[0] != name:
                    self.blame(self._sources[key], key, f'patterns of its own events, "{name}:…"', pattern)
            key = ("services", name, "channel")
            if key not in self.values:
                self._mistakes.append(f"{source}: {_dotted(key)}: expected a Redis channel, found nothing")
            given = {each: self.values.get(("services", name, each)) for each in ("transport", "partitions")}
            service = Registration(
                name=name,
                channel=self.values.get(key) or "",
                **{each: value for each, value in given.items() if value is not None},
            )
            for mistake in mistakes_of(service, broadcast, earlier):
                key = ("services", name, mistake.key)
                self.blame(self._sources[key], key, mistake.expected, mistake.found)
            if service.channel:
                earlier.append(service)

    def _check_pings(self) -> None:
        # The heartbeat waits for the answer to one ping at a time. Engine.IO's sends the next one when it has it.
        timeout, interval = ("limits", "ping_timeout"), ("limits", "ping_interval")
        longest = self.values.get(timeout, Limits().ping_timeout)
        between = self.values.get(interval, Limits().ping_interval)
        if longest is None or between is None or longest < between:
            return
        if timeout in self.values:
            self.blame(self._sources[timeout], timeout, f"less than limits.ping_interval, {between:g} s", longest)
        else:
            self.blame(self._sources[interval], interval, f"more than limits.ping_timeout, {longest:g} s", between)

    def _check_recovery(self) -> None:
        key = ("socketio", "recovery")
        if self.values.get(key) and not any(self.values.get(("rooms", each, "history")) for each in self._rooms):
            self.blame(self._sources[key], key, "false as long as no room has a history ([rooms])", True)

    def _check_jwt(self) -> None:
        check = self.values.get(("auth", "check")) or ""
        if not check.startswith("jwt"):
            return
        source, given = (
            self._sources["auth", "check"],
            {key[1]: self.values[key] for key in self.values if key[0] == "jwt"},
        )
        for name, what in (("issuer", "the iss of tokens"), ("audience", "an aud of tokens")):
            if not given.get(name, ""):
                self._mistakes.append(f"{source}: jwt.{name}: expected {what}, found nothing")
        if bool(given.get("key_files", ())) == bool(given.get("key_set", "")):
            self._mistakes.append(f"{source}: jwt: expected either key_files or key_set")
        if given.get("key_set") and given.get("algorithm") == "HS256":
            key = ("jwt", "algorithm")
            self.blame(self._sources[key], key, '"RS256" or "ES256" with a key_set', "HS256")

    def _fields(self, struct: type[Struct], *path: str) -> dict[str, Any]:
        keys = {field.name: (*path, field.name) for field in fields(struct)}
        return {name: self.values[key] for name, key in keys.items() if key in self.values}


def _dotted(key: Key) -> str:
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]{1,128}", part) else _shown(part))
    return text


def _shown(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return repr(value if len(value) <= 100 else f"{value[:100]}…")
        case int() if abs(value) >= 2**63:  # Python refuses to write thousands of digits
            return "a huge number"
        case int() | float():
            return repr(value)
        case list():
            return "a list"
        case dict():
            return "a table"
    return f"a {type(value).__name__}"


def _unknown(key: Key, rule: Key) -> str:
    """The error text for an unknown key: suggests the key of that name elsewhere, otherwise the most similar one."""
    names = [_dotted(known) for known in (*_KINDS, *_TABLES)]
    meant = [name for name in names if name.rpartition(".")[2] == key[-1]]
    meant = meant or get_close_matches(_dotted(rule), names, n=1)
    if key[:1] in _NAMED:
        meant = [name.replace(_dotted((key[0], "NAME")), _dotted(key[:2])) for name in meant]
    return f"unknown key{'; did you mean ' + ' or '.join(meant) + '?' if meant else ''}"


# What there is to read.

_OPTIONS: dict[str, Key] = {
    "listen": ("listen",),
    "redis": ("redis", "url"),
    "auth": ("auth", "check"),
    "origin": ("origins",),
    "demo": ("demo",),
}

_STRUCTS: dict[Key, type[Struct]] = {
    (): Config,
    ("redis",): Redis,
    ("auth",): Auth,
    ("jwt",): Jwt,
    ("limits",): Limits,
    ("socketio",): SocketIO,
    ("operator",): Operator,
    ("drain",): Drain,
    ("users",): Users,
    ("services", "NAME"): Registration,
    ("events", "NAME"): EventPolicy,
    ("rooms", "NAME"): RoomPolicy,
}
"""``NAME`` stands for any service's, and any pattern."""

_NAMED = {path[:1] for path in _STRUCTS if path[1:]}

_TABLES = {path[:1] for path in _STRUCTS if path}

_KINDS: dict[Key, Any] = {
    (*path, field.name): field.type
    for path, struct in _STRUCTS.items()
    for field in fields(struct)
    if get_origin(field.type) is Annotated
}
"""The type of every value. What is not annotated is no value: a table, or the name of one."""
