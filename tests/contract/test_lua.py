"""A script is known by its digest; that Redis agrees is held by ``tests/bus/test_redis_bus.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from kraftek.contract.lua import Script, lua


def test_the_digest_is_sha1_of_the_source() -> None:
    # From Redis's own documentation of SCRIPT LOAD.
    assert Script("return 1").digest == "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"


def test_scripts_alike_are_equal() -> None:
    assert len({Script("return 1"), Script("return 1"), Script("return 2")}) == 2


def test_a_script_stays_as_it_is() -> None:
    script = Script("return 1")
    with pytest.raises(AttributeError):
        script.source = "return 2"  # type: ignore[misc]


def test_files_are_joined_in_order_after_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "scripted"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "first.lua").write_text("-- first\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = lua("scripted", "fields", "first", MOST=3, LEAST=-1)
    assert text.startswith("local MOST = 3\nlocal LEAST = -1\n-- fields(reply)")
    assert text.endswith("-- first\n")


def test_a_missing_file_is_told() -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.lua"):
        lua("kraftek.core", "missing")
