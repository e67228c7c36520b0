"""The oldest versions that the installed package allows, as constraints of pip, on standard output.

``make smoke`` runs it in the environment for which they are. The tools of the tests stay as new as they are.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

EXTRAS = ("", "client", "service")

for line in requires("kraftek-gateway") or ():
    requirement = Requirement(line)
    marker = requirement.marker
    if marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", line
        print(f"{requirement.name}=={bound.version}")
