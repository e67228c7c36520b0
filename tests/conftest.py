"""What holds for every test.

The package under test is the one that pip installed, not the checkout beside it: ``make test`` installs first. Only
``make check`` tests the checkout: no process that it starts could find another package there, because it starts none.
Every test is marked with what it needs, by ``tests/support/needs.py``.
A test of plain values is a function. A test that needs time takes a ``twisted.internet.task.Clock``. Only what
talks to a real socket or process needs the real reactor, and is written as trial writes it; pytest runs these by
itself, with the reactor, and fails them for what was left behind (delayed calls, open sockets, logged failures)::

    class PublishingTest(twisted.trial.unittest.TestCase):
        timeout = 10  # seconds; trial's own default is 120

        async def test_answers(self) -> None:  # awaits Deferreds; a test may also return one
            assert await publish() == 1

        def setUp(self) -> Deferred[None]: ...  # may be async or return a Deferred as well, like tearDown

pytest's fixtures do not reach into a TestCase's ``async def`` by arguments: give them in ``setUp``.
"""

import filecmp
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import kraftek
from tests.support.needs import MARKS, Guard, needs

# An assertion in what tests share shows what it compared, as one in a test does.
pytest.register_assert_rewrite(
    *(f"tests.{folder}" for folder in ("client", "core", "docs", "edge", "service", "support.world", "support.waiting"))
)

pytest_plugins = ["tests.support.redis_fixture"]

# How long an example takes depends on what else the machine is doing: no test is about that.
settings.register_profile("kraftek", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kraftek")

# A shell has what it starts in the background ignore Ctrl-C, and so would the programs that are tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHECKOUT = Path(__file__).resolve().parent.parent / "kraftek"
# Set by `make check`, which tests what was last edited without installing it.
FROM_CHECKOUT = "KRAFTEK_TEST_CHECKOUT"
INSTALLED = Path(kraftek.__file__).resolve().parent


def stale_modules() -> list[str]:
    """The modules of the checkout which are not installed as they stand there."""
    names = sorted(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.rglob("*") if path.suffix in {".py", ".lua"})
    _, differing, missing = filecmp.cmpfiles(CHECKOUT, INSTALLED, names, shallow=False)
    return sorted(differing + missing)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the checkout, unless asked to: what a user gets is what pip installs."""
    if INSTALLED == CHECKOUT and not os.environ.get(FROM_CHECKOUT):
        raise pytest.UsageError(
            "kraftek is imported from the checkout: run `make test`, or pip install it and call pytest, "
            "not `python -m pytest`, which puts the working directory before the installed packages"
        )
    for mark, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{mark}: {meaning}")
    config.pluginmanager.register(Guard(), "guard")


@pytest.hookimpl(tryfirst=True)  # before pytest's own, which selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it needs. Where workers share the tests, those modules come first that wait for a
    process, Redis or a browser, well mixed: so there is always something to compute and something to wait for. Those
    with the most tests come last: they are over soon, and all workers end at about the same time.
    """
    for item in items:
        for mark in needs(item):
            item.add_marker(mark)
    if "PYTEST_XDIST_WORKER" in os.environ:
        needed: dict[Path, set[str]] = {}
        many = Counter(item.path for item in items)
        for item in items:
            needed.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers() if mark.name in MARKS)
        alike = Counter(map(frozenset, needed.values()))
        places: dict[Path, tuple[bool, float]] = {}
        before: Counter[frozenset[str]] = Counter()
        for path, names in needed.items():
            kind = frozenset(names)
            before[kind] += 1
            places[path] = not names, before[kind] / (alike[kind] + 1) if names else many[path]
        items.sort(key=lambda item: places[item.path])  # the order within a module stays


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is tested, and warn when that is not what was last edited."""
    header = [f"kraftek: {INSTALLED}"]
    if stale := stale_modules():
        header.append(f"kraftek: NOT THE CHECKOUT, install again: {', '.join(stale)} differ")
    return header
