"""The integration tests' real parts, for the examples of the documentation as well."""

from tests.integration.conftest import (
    auth_service,
    chromium_path,
    connect,
    gateway,
    redis_server,
    redis_servers,
    service,
    stage,
    starter,
)

__all__ = [
    "auth_service",
    "chromium_path",
    "connect",
    "gateway",
    "redis_server",
    "redis_servers",
    "service",
    "stage",
    "starter",
]
