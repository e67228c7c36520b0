"""A configuration that has changed, for a gateway that runs. Made by :mod:`kraftek.daemon.lifecycle`.

Whoever reads a setting when it is needed, from the value that it was given at the start, has the new one by that alone:
the values are changed in place, here and nowhere else. What was made of a setting is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from msgspec.structs import fields, force_setattr
from twisted.logger import Logger

from kraftek.contract.errors import ConfigError
from kraftek.contract.interfaces import IServiceRegistry
from kraftek.contract.settings import Config
from kraftek.daemon.assembly import Core, Edge
from kraftek.daemon.checkers import Checkers, kind_of
from kraftek.daemon.listening import Certificates
from kraftek.daemon.open_files import connections_allowed
from kraftek.daemon.operator import OperatorSite
from kraftek.daemon.token_file import token_of
from kraftek.edge.hosts import Hosts
from kraftek.edge.origins import Origins
from kraftek.edge.policies import Policies

__all__ = ["LIVE", "Reload", "keys"]

BUDGETS = frozenset(
    {
        "limits.burst",
        "limits.events_per_socket",
        "limits.events_per_user",
        "limits.events_per_address",
        "limits.bytes_per_socket",
        "limits.bytes_per_user",
        "limits.bytes_per_address",
        "limits.joins_per_user",
        "limits.questions_per_user",
        "limits.questions_per_address",
        "limits.connects_per_address",
    }
)
"""When one of these changes, all budgets begin anew."""

LIVE = frozenset(
    {
        "origins",
        "hosts",
        "auth.check",
        "auth.ca",
        "auth.timeout",
        "auth.concurrency",
        "auth.waiting",
        "auth.cache_ttl",
        "jwt.issuer",
        "jwt.audience",
        "jwt.algorithm",
        "jwt.key_files",
        "jwt.key_set",
        "jwt.user",
        "jwt.rooms",
        "jwt.permissions",
        "jwt.leeway",
        "jwt.longest",
        "limits.message_bytes",
        "limits.handshake_timeout",
        "limits.authenticate_timeout",
        "limits.request_timeout",
        "limits.held_messages",
        "limits.held_bytes",
        "limits.invalid_messages",
        "limits.rooms",
        "limits.rooms_per_user",
        "limits.requests",
        "limits.presence_bytes",
        "limits.receipts",
        "limits.connections",
        "limits.memory",
        "operator.publish_token_file",
        *BUDGETS,
        "drain.lead",
        "drain.seconds",
        "services",
        "auto_register",
        "events",
    }
)
"""The keys that take effect at once. All others need a restart."""


def keys(config: Struct, path: str = "") -> Iterator[tuple[str, Struct, str]]:
    """Every key with dots, the table that it is in, and its name there. Those of services are one."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Struct):
            yield from keys(value, f"{field.name}.")
        else:
            yield path + field.name, config, field.name


def _token(config: Config) -> bytes | None:
    try:
        return token_of(config.operator)
    except ValueError as error:
        raise ConfigError([f"operator.publish_token_file: expected {error}"]) from None


class Reload:
    """``config``: what the gateway was started with; it has the new values afterwards. ``checkers``: who says what
    clients may do.
    """

    _log = Logger()

    def __init__(
        self,
        config: Config,
        registry: IServiceRegistry,
        certificates: Certificates,
        core: Core,
        edge: Edge,
        operator: OperatorSite,
        checkers: Checkers,
    ) -> None:
        self._config = config
        self._registry = registry
        self._certificates = certificates
        self._core = core
        self._edge = edge
        self._operator = operator
        self._checkers = checkers

    def take(self, new: Config) -> None:
        """Take over what has changed; a line of the log names each key.

        Raises ``ConfigError``, with nothing changed, when a certificate cannot be used or too few files may be open.
        """
        config = self._config
        same = kind_of(config.auth.check) == kind_of(new.auth.check)
        restart = set() if same else {key for key in LIVE if key == "auth.check" or key.startswith("jwt.")}
        connections = connections_allowed(new)
        use_certificates = self._certificates.read((*config.listen, *config.operator.listen))
        token = _token(new)
        use_auth = None
        if same:
            try:
                use_auth = self._checkers.reload(new)
            except (OSError, ValueError) as error:
                raise ConfigError([f"auth.ca, jwt.key_files: {error}"]) from None
        changed: set[str] = set()
        for (key, table, name), (_, new_table, _) in zip([*keys(config)], [*keys(new)], strict=True):
            value = getattr(new_table, name)
            if value == getattr(table, name):
                continue
            if key not in LIVE - restart:
                self._log.warn("{key} has changed: that needs a restart", key=key)
                continue
            if key == "services":
                self._register(config, new)
            force_setattr(table, name, value)
            changed.add(key)
            self._log.info("{key} has changed", key=key)
        use_certificates()
        self._operator.publish.token = token
        if use_auth is not None:
            use_auth()
        self._make_again(connections)
        if changed & {"services", "auto_register"}:
            self._core.self_registrations.reconcile()
            self._core.leases.renew()
        if changed & BUDGETS:
            self._core.budgets.renew()
            self._edge.site.arrivals.renew()
            for session in self._core.roster:
                session.events = session.size = 0

    def _make_again(self, connections: int) -> None:
        config, edge, site = self._config, self._edge, self._edge.site
        site.hosts = Hosts(config.hosts)
        self._operator.hosts = Hosts(config.hosts, lenient=True)
        site.origins = Origins(config.origins)
        site.head_timeout = config.limits.handshake_timeout
        site.request_timeout = config.limits.request_timeout
        edge.backlogs.policies = Policies(config.events)
        edge.connections.allow(connections)
        edge.engine_clients.max_clients = connections

    def _register(self, config: Config, new: Config) -> None:
        there: Any = {service.name: service for service in config.services}
        wanted: Any = {service.name: service for service in new.services}
        for name, service in there.items():
            if wanted.get(name) != service:
                self._registry.unregister(name)
        for name, service in wanted.items():
            if there.get(name) != service:
                self._registry.register(service)
