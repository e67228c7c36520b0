"""The file with the token for publishing: who may read it, and what stands in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kraftek.contract.settings import Operator
from kraftek.daemon.token_file import read_token, token_of

TOKEN = "0123456789abcdef"


def file_of(tmp_path: Path, content: str, mode: int = 0o600) -> str:
    file = tmp_path / "token"
    file.write_text(content, "utf-8")
    file.chmod(mode)
    return str(file)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_the_token_is_its_only_line(tmp_path: Path, mode: int) -> None:
    name = file_of(tmp_path, f"{TOKEN}==\r\n", mode)
    assert read_token(name) == b"0123456789abcdef=="
    assert token_of(Operator(publish_token_file=name)) == b"0123456789abcdef=="
    assert token_of(Operator()) is None


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602, 0o601])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ValueError, match=f"600, or 640, and not {mode:o}"):
        read_token(file_of(tmp_path, TOKEN, mode))


@pytest.mark.parametrize("content", ["", "short", "0123456789 abcdef", f"{TOKEN}\n{TOKEN}", "ä" * 20, "x" * 513])
def test_what_is_no_token_is_refused_and_not_repeated(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match="16 to 512 letters") as raised:
        read_token(file_of(tmp_path, content))
    assert not content or content not in str(raised.value)


def test_a_file_that_is_not_there_is_named_by_its_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a readable file \(No such file or directory\)"):
        read_token(str(tmp_path / "none"))
