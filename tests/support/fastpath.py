"""Whether the tests run with the fast path: like a gateway they read ``KRAFTEK_FASTPATH``, and hand it on to those that
they start.
"""

from __future__ import annotations

import os
from typing import Any

from kraftek.contract.iteration import Iteration
from kraftek.fastpath import wanted, write_at_once

__all__ = ["FASTPATH", "make_iteration"]

FASTPATH = wanted(os.environ)


def make_iteration(reactor: Any, fastpath: bool = FASTPATH) -> Iteration:
    """As the daemon makes it, but not driven: the reactor of the tests is not theirs."""
    iteration = Iteration(reactor)
    if fastpath:
        write_at_once(iteration)
    return iteration
