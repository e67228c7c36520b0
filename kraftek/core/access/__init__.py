"""Access: which user may be in which room and send which events. Caches the auth service's answers and keeps the cache
coherent.

:mod:`kraftek.daemon.assembly` makes the parts; all others use :class:`kraftek.contract.interfaces.IAccess`.
"""
