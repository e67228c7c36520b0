"""Configurations: values that the gateway can run with, or every mistake in one line each, and no password anywhere."""

from __future__ import annotations

from typing import Any

from kraftek.contract.errors import ConfigError
from kraftek.contract.redis_url import masked, redis_address
from kraftek.contract.settings import Config
from kraftek.daemon.config import load
from tests.fuzz.watch import Target

__all__ = ["TARGET"]

_FILE = "gateway.toml"
_SECRET = "pa55w0rd"
_LISTS = {"listen", "service", "origin"}
_OPTIONS = {*_LISTS, "redis", "auth", "demo"}


def _loaded(document: bytes, environ: dict[str, str], options: dict[str, Any]) -> Config | list[str]:
    """The configuration, or the mistakes in it."""

    def read_file(name: str) -> bytes:
        if name == _FILE:
            return document
        raise OSError(2, "No such file or directory", name)

    try:
        return load({"config": _FILE, **options}, environ, read_file)
    except ConfigError as error:
        return error.mistakes


def _check_url(text: str) -> None:
    """A URL's password is shown nowhere, however malformed the URL is."""
    before, mark, after = text.partition("\x01")
    if not mark:
        return
    url = f"{before}:{_SECRET}@{after}"
    assert _SECRET not in masked(url), masked(url)
    assert _SECRET not in str(_loaded(b"", {"KRAFTEK_REDIS": url, "KRAFTEK_AUTH": url}, {}))
    try:
        address = redis_address(url)
    except ValueError as error:
        assert _SECRET not in str(error)
    else:
        assert _SECRET not in repr(address)
        assert 0 <= address.port <= 65535


def _run(data: bytes) -> None:
    document, *more = data.split(b"\x1e")
    lines = [line.decode("utf-8", "surrogateescape") for part in more[:1] for line in part.split(b"\n")]
    environ = {name: value for line in lines for name, equals, value in [line.partition("=")] if equals}
    options: dict[str, Any] = {}
    for part in more[1:2]:
        for line in part.decode("utf-8", "surrogateescape").split("\n"):
            name, _, value = line.partition("=")
            if name in _LISTS:
                options.setdefault(name, []).append(value)
            elif name in _OPTIONS:
                options[name] = True if name == "demo" else value
    for part in more[2:3]:
        _check_url(part.decode("utf-8", "replace"))
    found = _loaded(document, environ, options)
    assert _loaded(document, environ, options) == found
    if isinstance(found, list):
        assert found
        for mistake in found:
            assert len(mistake) <= 2_000, mistake
            assert "\n" not in mistake, mistake
            assert ": expected " in mistake or "unknown key" in mistake, mistake
        return
    redis_address(found.redis.url)
    assert found.listen
    assert found.limits.ping_timeout < found.limits.ping_interval
    assert len({service.name for service in found.services}) == len(found.services)
    assert all(service.channel != found.redis.broadcast for service in found.services)
    for seconds in (found.redis.ping_interval, found.limits.handshake_timeout, found.auth.timeout):
        assert 0 < seconds <= 31_536_000


_SEEDS = [
    (
        b'listen = ["tcp:3001", "unix:/run/x\\\\:y:mode=660"]\nsessions = "many"\n'
        b'origins = ["https://a.test", "*.b.test"]\n'
        b'hosts = ["a.test", "[::1]"]\nforwarded_for = 1\n[redis]\nurl = "redis://u:p@h:1/2"\nprefix = "p:"\n'
        b'[auth]\ncheck = "https://auth.test/base"\ntimeout = 2.5\n[limits]\nrooms = 3\nping_timeout = 2\n'
        b'[services]\nnotes = "n"\n[services.chat]\nchannel = "c"\nreply = true\ntransport = "stream"\npartitions = 4\n'
    ),
    b'[redis]\nurl = "redis+sentinel://:p@h1,h2:1/mymaster/0?sentinel_password=x"\n',
    b'[redis]\nurl = "unix:///run/redis.sock?db=1"\nca = "none.pem"\n',
    b'[limits]\nping_interval = 1\nrooms = 0\nhandshake_timeout = inf\nunknown = 1\n[redis]\nbroadcast = "x y"\n',
    b'listen = "tcp:1"\nredis = 1\n[services]\n"a b" = "x"\nb = 1\nc = {}\nd = "events:broadcast"\n',
    b"a = [[[[[[[[[[[[[[[[[[[[[[[[[",
    b'"\\n" = 1\n[services."x\\ny"]\nchannel = "c"',
    b"x = 0x" + 100 * b"f" + b"\ny = 1979-05-27\n",
    b"\xff",
    (
        b"\x1eKRAFTEK_LISTEN=tcp:1 tcp:2\nKRAFTEK_REDIS=redis://h\nPORT=8\nREDIS_HOST=::1\nREDIS_PORT=tcp://1:2\n"
        b"AUTH_SERVICE_URL=http://a\nREDIS_OUTGOING_CHANNEL=o\nKRAFTEK_OPERATOR=unix:/x\nKRAFTEK_AUTH=open"
    ),
    b"\x1e\x1elisten=tcp:1\nlisten=ssl:1:privateKey=x\nservice=a=b\nservice=a=c\nservice=d\norigin=*\nredis=embedded:",
    b"\x1e\x1edemo\nauth=http://u:p@h",
    b"\x1e\x1e\x1eredis://user\x01host:1/0",
    b"\x1e\x1e\x1erediss+sentinel://\x01h1:1,h2/m/0?sentinel_username=u",
    b"\x1e\x1e\x1eredis//us\x01h@h2/x",
    b"\x1e\x1e\x1e\x01",
]

TARGET = Target("configuration", _run, _SEEDS, calls=(100_000, 2_000), memory=(2_000_000, 5_000))
