"""The inputs that are kept hold, without a fuzzer; and ``make fuzz`` can be told which target, and from what."""

from __future__ import annotations

from pathlib import Path

import pytest
import txaio.tx

from tests.fuzz import corpora
from tests.fuzz.corpora import CORPUS, corpus_of, failure_of, keep, shortened
from tests.fuzz.targets import INSTRUMENTED, TARGETS, target
from tests.fuzz.watch import Target, try_out

INPUTS = [(name, file) for name in TARGETS for file in corpus_of(name)]


@pytest.fixture(autouse=True)
def _autobahns_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txaio.tx.config, "loop", None)


@pytest.mark.parametrize(("name", "file"), INPUTS)
def test_what_was_found_holds(name: str, file: str) -> None:
    try_out(target(name), (CORPUS / name / file).read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_what_it_begins_with_holds(name: str) -> None:
    it = target(name)
    assert it.name == name
    for seed in it.seeds:
        assert len(seed) <= it.longest
        try_out(it, seed, measured=False)


def test_the_corpus_is_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert INSTRUMENTED.keys() <= set(TARGETS)
    for name in TARGETS:
        files = corpus_of(name)
        assert 5 < len(files) <= 80, name
        assert sum(map(len, files.values())) < 40_000, name


def _breaks(data: bytes) -> None:
    assert b"x" not in data or b"y" not in data, "x and y"


BREAKS = Target("breaks", _breaks, [b"x"])


def test_a_finding_is_shortened() -> None:
    assert failure_of(BREAKS, b"abc") is None
    assert isinstance(failure_of(BREAKS, b"a y b x"), AssertionError)
    assert shortened(BREAKS, b"some y and some x behind it, and more") == b"yx"


def _wastes(data: bytes) -> None:
    for _ in data:
        for _ in data:
            bytes.fromhex("00")
            _breaks(b"")


@pytest.mark.parametrize(
    "wasteful",
    [
        Target("calls", _wastes, [], calls=(100, 10)),
        Target("memory", lambda data: _breaks(bytes(len(data) ** 2)), [], memory=(1000, 10)),
    ],
)
def test_what_takes_much_is_found(wasteful: Target) -> None:
    assert failure_of(wasteful, b"x") is None
    assert "expected at most" in str(failure_of(wasteful, 100 * b"x"))


def test_a_corpus_is_made_of_what_reaches_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "CORPUS", tmp_path)
    found = tmp_path / "native" / "found-1"
    found.parent.mkdir()
    found.write_bytes(b'\0{"type":"ping"}')
    native = target("native")
    assert keep(native, [b'\0{"type":"ping","id":1}', b"\0{}", b'\0{"type":"join"}', 5000 * b"x"], most=2) == 2
    kept = corpus_of("native", tmp_path)
    assert kept.pop("found-1") == b'\0{"type":"ping"}'
    assert set(kept.values()) == {b"\0{}", b'\0{"type":"join"}'}
