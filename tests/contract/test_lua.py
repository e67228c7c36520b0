"""A script is known by its digest; that Redis agrees is held by ``tests/bus/test_redis_bus.py``."""

from __future__ import annotations

import pytest

from kraftek.contract.lua import Script


def test_the_digest_is_sha1_of_the_source() -> None:
    # From Redis's own documentation of SCRIPT LOAD.
    assert Script("return 1").digest == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"


def test_scripts_alike_are_equal() -> None:
    assert len({Script("return 1"), Script("return 1"), Script("return 2")}) == 2


def test_a_script_stays_as_it_is() -> None:
    script = Script("return 1")
    with pytest.raises(AttributeError):
        script.source = "return 2"  # type: ignore[misc]
