"""Redis: the only room that imports txredisapi.

:mod:`kraftek.daemon.lifecycle` makes and starts the bus; all others use :class:`kraftek.contract.interfaces.IBus`.
"""

from txredisapi import RedisError

from kraftek.bus.redis_bus import RedisBus

__all__ = ["RedisBus", "RedisError"]
