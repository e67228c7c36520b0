"""What values of the configuration must be beyond their types. Used by :mod:`kraftek.daemon.config`."""

from __future__ import annotations

import re
from collections.abc import Callable

from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

from kraftek.contract.redis_url import host_and_port, redis_address
from kraftek.daemon.token_file import read_token

__all__ = ["CHECKS", "Check", "Key"]

Key = tuple[str | int, ...]
"""The way to a value in the file; a number is an index into a list."""

Check = Callable[[str, Callable[[str], bytes]], object]
"""Raises ``ValueError`` with what it expected. The second argument reads a file."""


def _check_certificates(name: str, read_file: Callable[[str], bytes]) -> None:
    if not name:
        return
    try:
        content = read_file(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"a readable file ({getattr(error, 'strerror', error)})") from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ValueError("a file of certificates in PEM")


_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_OWN = f"python:{_NAME}:{_NAME}"


def _check_auth_url(url: str, _: object) -> None:
    if url in {"open", "jwt"}:
        return
    found = re.fullmatch(rf"(?:(?:jwt|{_OWN})\+)?(?:{_OWN}|https?://([^/?#@]*)(/[!-~]*)?)", url)
    if found is None or re.search("[?#@]", url):  # a password may have a slash in it
        url_only = "http:// or https:// with HOST[:PORT][/PATH] and nothing else"
        own = "python:MODULE:FACTORY"
        raise ValueError(f'"open", or {url_only}, or "jwt", or {own}, or jwt+ or {own}+ and one of them')
    if found[1] is not None:
        host_and_port(found[1], 0)


def _check_key_set(url: str, _: object) -> None:
    found = re.fullmatch(r"https://([^/?#@]+)(/[!-~]*)?", url)
    if url and (found is None or re.search("[#@]", url)):
        raise ValueError("https://HOST[:PORT][/PATH]")
    if found is not None:
        host_and_port(found[1], 0)


def _check_file(name: str, read_file: Callable[[str], bytes]) -> None:
    try:
        read_file(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"a readable file ({getattr(error, 'strerror', error)})") from None


def _check_token(name: str, _: object) -> None:
    if name:
        read_token(name)


def _check_origin(pattern: str, _: object) -> None:
    if pattern in {"same-host", "*"}:
        return
    found = re.fullmatch(r"(?:[A-Za-z][A-Za-z0-9+.-]*://|\*\.(?!.*:))([^/]+)", pattern)
    if found is None:
        raise ValueError("same-host, SCHEME://HOST[:PORT] without a path, *.example.org, or *")
    _check_ascii(pattern)
    host_and_port(found[1], 0)


def _check_host(pattern: str, _: object) -> None:
    name = pattern.removeprefix("*.")
    if host_and_port(name, 0) != (name.strip("[]"), 0) or name.endswith(":") or (name != pattern and "[" in name):
        raise ValueError("HOST without a port, an IPv6 address in brackets, or *.example.org")
    _check_ascii(name)


def _check_ascii(name: str) -> None:
    if not name.isascii():
        raise ValueError("an international name as browsers send it, in ASCII: xn--…")


def _check_endpoint(text: str, _: object) -> None:
    # What a backslash escapes cannot matter to the syntax; a character that never does stands in for it.
    kind, *arguments = re.sub(r"\\.", "_", text).split(":")
    names = _ENDPOINTS.get(kind)
    if names is not None:
        given = _arguments(names, arguments)
        if not given or (kind == "systemd" and ("index" in given) == ("name" in given)):
            optional = "".join(f"[:{name}=…]" for name in names[1:])
            raise ValueError(f"{kind}:{names[0].upper()}{optional}, a colon within a value as \\:")
    # Twisted finds the rest of its endpoints, and those of others, as plugins. What they take is their own matter.
    elif kind.lower() not in {plugin.prefix.lower() for plugin in getPlugins(IStreamServerEndpointStringParser)}:
        raise ValueError(f"an endpoint that begins with {', '.join(f'{each}:' for each in _ENDPOINTS)} or the like")


def _arguments(names: tuple[str, ...], arguments: list[str]) -> dict[str, str]:
    """An endpoint's arguments by name, or nothing when they are not right."""
    in_order = iter(names)
    given: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            name, value = next(in_order, ""), argument
        if name in given or name not in names or not re.fullmatch(_ARGUMENTS.get(name, r"[^\\]+"), value):
            return {}
        given[name] = value
    return given if names[0] in given and int(given.get("port", 0)) <= 65535 else {}


_ENDPOINTS: dict[str, tuple[str, ...]] = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": (
        "port",
        "privateKey",
        "certKey",
        "sslmethod",
        "interface",
        "backlog",
        "extraCertChain",
        "dhParameters",
    ),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
    "reuseport": ("port", "interface"),
}
"""Twisted's own endpoints, and ours (the last), with their arguments in order; the first of them must be given."""

_ARGUMENTS = {
    "port": "[0-9]{1,5}",
    "backlog": "[0-9]{1,5}",
    "mode": "[0-7]{1,4}",
    "lockfile": "[01]",
    "domain": "INET6?|UNIX",
    "index": "[0-9]{1,4}",
}
"""What those of them look like that are not just any text."""


CHECKS: dict[Key, Check] = {
    ("listen",): _check_endpoint,
    ("operator", "listen"): _check_endpoint,
    ("operator", "publish_token_file"): _check_token,
    ("hosts",): _check_host,
    ("origins",): _check_origin,
    ("redis", "url"): lambda url, _: redis_address(url),
    ("redis", "ca"): _check_certificates,
    ("auth", "check"): _check_auth_url,
    ("auth", "ca"): _check_certificates,
    ("jwt", "key_files"): _check_file,
    ("jwt", "key_set"): _check_key_set,
}
