"""How ``twistd`` starts the gateway: its options, and the service that they make.

Imported by ``twistd`` when it meets the name ``kraftek-gateway``, by way of ``twisted/plugins/kraftek_gateway.py``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from twisted.application.service import IService
from twisted.logger import Logger
from twisted.python import usage

from kraftek.contract.errors import ConfigError
from kraftek.contract.settings import Config
from kraftek.daemon.config import load
from kraftek.daemon.garbage import settle
from kraftek.daemon.image import Command, inherited
from kraftek.daemon.systemd import name_sockets
from kraftek.fastpath import wanted

__all__ = ["Options", "makeService"]


class Options(usage.Options):
    """The command line. Once parsed, ``configuration`` is what it, the environment and the file give together, ``read``
    reads them again, and ``fastpath`` says whether the environment leaves that on.
    """

    synopsis = "[options]"
    longdesc = (
        "Options win over the environment (KRAFTEK_REDIS, KRAFTEK_AUTH, and with white space between endpoints "
        "KRAFTEK_LISTEN and KRAFTEK_OPERATOR), and that wins over the file. A password in a URL is safer in one of "
        "these two: the list of processes shows options to everybody. Without any of them clients are awaited at "
        "tcp:3001, Redis is redis://127.0.0.1:6379/0, the auth service http://127.0.0.1:3002; there are no services."
    )
    optParameters: ClassVar[list[list[str | None]]] = [
        ["config", None, None, "File in TOML; etc/kraftek-gateway.toml of the source shows every key."],
        [
            "redis",
            None,
            None,
            "redis://, rediss://, redis+sentinel:// or unix:// URL; embedded: for a server of its own.",
        ],
        ["auth", None, None, "Base URL of the auth service, or open: every token is let in, for development."],
    ]

    optFlags: ClassVar[list[list[str | None]]] = [
        ["check", None, "Start nothing: say what is wrong with the configuration, and exit with 0 or 78."],
    ]

    def opt_takes_over(self, formats: str) -> None:
        """As --check, and say which of these formats of state is taken over: asked before an upgrade."""
        self["check"] = True
        self.offered = formats

    offered = ""

    def opt_listen(self, endpoint: str) -> None:
        """Where clients connect: a Twisted endpoint such as tcp:3001:interface=127.0.0.1. May be repeated."""
        self.setdefault("listen", []).append(endpoint)

    def opt_service(self, service: str) -> None:
        """NAME=CHANNEL: the Redis channel that the events NAME:...:... go to. May be repeated."""
        self.setdefault("service", []).append(service)

    def opt_origin(self, pattern: str) -> None:
        """Pages that may connect: https://app.example.org, *.example.org, same-host, or *. May be repeated."""
        self.setdefault("origin", []).append(pattern)

    def opt_demo(self) -> None:
        """Serve a board of sticky notes to play with; unless given, Redis is embedded: and auth is open."""
        self["demo"] = True

    def parseArgs(self, *others: str) -> None:
        """There is nothing but options."""
        if others:
            raise usage.UsageError(f"expected options only, found {others[0]!r}")

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the configuration. A mistake ends the process, or twistd would print all of ``--help`` before it."""
        self.inheritance = inherited(os.environ)
        self.command = Command.own()
        if self.inheritance is not None:
            self.inheritance.guard()
            self.command.current = self.inheritance.current
        name_sockets(os.environ)
        try:
            super().parseOptions(options)
            given = {name: value for name, value in self.items() if value is not None}
            self.read = partial(load, given, os.environ)
            self.configuration = self.read()
            self.fastpath = wanted(os.environ)
            if self["check"]:
                _check(self.configuration, self.offered)
        except ConfigError as error:
            _refuse(error.mistakes)
        except usage.UsageError as error:
            _refuse([f"{error}; twistd kraftek-gateway --help lists the options"])
        pidfile = _of_parent(self, "pidfile")
        if pidfile:
            _remove_left_behind(Path(pidfile), own=self.inheritance is not None)


def makeService(options: Options) -> IService:
    """The gateway."""
    # Imported here because txredisapi imports the reactor, and twistd must have installed the chosen one first.
    from twisted.internet import reactor  # noqa: PLC0415

    from kraftek.daemon.hostnames import HostnameResolver  # noqa: PLC0415
    from kraftek.daemon.lifecycle import make_gateway  # noqa: PLC0415
    from kraftek.daemon.succession import Succession  # noqa: PLC0415

    running: Any = reactor
    # Twisted's is time.time: timers come late by as much as that is set back, and early when it is set forward.
    running.seconds = time.monotonic
    running.installNameResolver(HostnameResolver(running))
    # Otherwise the next image would become another process, or not find its way.
    stays = _of_parent(options, "nodaemon") and not _of_parent(options, "chroot")
    gateway = make_gateway(
        running,
        options.configuration,
        read=options.read,
        fastpath=options.fastpath,
        succession=Succession(running, options.command if stays else None, options.inheritance),
    )
    settle()
    return gateway


def _of_parent(options: Options, name: str) -> Any:
    """An option of twistd's own. twist has none of these."""
    return (getattr(options, "parent", None) or {}).get(name)


def _check(configuration: Config, offered: str) -> NoReturn:
    # Imported here because they import the reactor; all that a start needs, so that it is seen whether it is there.
    from kraftek.daemon.checkers import factories_of  # noqa: PLC0415
    from kraftek.daemon.lifecycle import Certificates  # noqa: PLC0415
    from kraftek.daemon.state import chosen  # noqa: PLC0415

    Certificates().read((*configuration.listen, *configuration.operator.listen))
    factories_of(configuration.auth.check)
    sys.stdout.write("The configuration is right.\n")
    if offered:
        taken = chosen(offered)
        if taken is None:
            _refuse([f"expected state in another format than {offered}"])
        sys.stdout.write(f"It takes over format {taken}.\n")
    raise SystemExit


def _refuse(mistakes: Sequence[str]) -> NoReturn:
    for mistake in mistakes:
        sys.stdout.write(f"Cannot start: {mistake}\n")
    raise SystemExit(ConfigError.EXIT_STATUS)


def _remove_left_behind(pidfile: Path, *, own: bool) -> None:
    """Remove the file of a gateway that was killed; twistd takes whatever process has that id now for it.

    In a container it is often the id of this very process. ``own``: it is that of the version before in this process.
    """
    try:
        text = pidfile.read_text().strip()
    except (OSError, ValueError):
        return  # twistd reports what is wrong with it
    if text and (not text.isdecimal() or _is_another_gateway(int(text))):
        return
    if not own:
        Logger().warn("Removing {pidfile}, which a gateway that was killed has left", pidfile=str(pidfile))
    with suppress(OSError):
        pidfile.unlink()


def _is_another_gateway(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, and what it is cannot be read
    return b"kraftek-gateway" in command
