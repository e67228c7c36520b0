"""Access: who may be where and send what. The answers of whoever decides, shared, kept and coherent.

:mod:`kraftek.daemon.lifecycle` makes the pieces; everybody else sees :class:`kraftek.contract.interfaces.IAccess`.
"""
