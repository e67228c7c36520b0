"""The gateway in a Twisted application: what it imports that has the gateway beside its own services, in one process.

``docs/embedding.rst`` has whole examples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from kraftek.contract.settings import Config
from kraftek.daemon.config import load
from kraftek.daemon.lifecycle import Daemon
from kraftek.daemon.local_services import with_services
from kraftek.daemon.shared_reactor import SharedReactor
from kraftek.fastpath import wanted
from kraftek.service.processor import EventProcessor

__all__ = ["make_gateway", "read_config"]

Source = Mapping[str, Any] | str | PathLike[str]
"""A file in TOML, or what would stand in one."""


def read_config(source: Source) -> Config:
    """The configuration, from nothing else: no environment. Raises :class:`kraftek.contract.errors.ConfigError` with
    every mistake.
    """
    if isinstance(source, Mapping):
        return load({}, {}, table=source)
    return load({"config": fspath(source)}, {})


def make_gateway(reactor: Any, config: Config | Source, services: Sequence[EventProcessor] = ()) -> Daemon:
    """The gateway as an ``IService``. What it does to its process under ``twistd kraftek-gateway`` it leaves to the
    application here: signals, the reactor's clock and name resolver, the garbage collector.

    ``services``: those whose handlers run in this process. Those that ``config`` does not register are registered as
    replying. ``reload()`` of the service reads the file again. It cannot be upgraded in place. When it cannot start it
    stops the reactor, and the log says why.

    Raises :class:`kraftek.contract.errors.ConfigError`.
    """

    def read() -> Config:
        return with_services(config if isinstance(config, Config) else read_config(config), services)

    fastpath = wanted(os.environ)
    return Daemon(SharedReactor(reactor), read(), read=read, fastpath=fastpath, services=services, own_process=False)
