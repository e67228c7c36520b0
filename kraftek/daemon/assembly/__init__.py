"""What is made of what. Called by :mod:`kraftek.daemon.lifecycle`, which starts, sweeps and stops what is made here.

``surroundings.py``
    What all parts stand on: configuration, bus, counters, clock. Tests hand in fakes.
``core.py``
    The parts of ``kraftek.core``, each made in one place, of the surroundings and of the parts above it.
``edge.py``, ``operator.py``
    The same for what clients, and the operator, connect to.
"""

from kraftek.daemon.assembly.core import Core
from kraftek.daemon.assembly.edge import Edge
from kraftek.daemon.assembly.operator import operator_of
from kraftek.daemon.assembly.surroundings import Surroundings

__all__ = ["Core", "Edge", "Surroundings", "operator_of"]
