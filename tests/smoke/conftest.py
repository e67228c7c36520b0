"""The integration tests' real parts, and a user of each client."""

from tests.client.conftest import auth_service, backend, gateway, redis_server, redis_servers, stage, starter, user

__all__ = ["auth_service", "backend", "gateway", "redis_server", "redis_servers", "stage", "starter", "user"]
