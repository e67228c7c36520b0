"""How the image of a process is replaced: what is executed, what it finds, and the way back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kraftek.daemon.image import Command, Inheritance, inherited, memory_of
from kraftek.daemon.state import FORMATS, State, chosen, read_state

Executed = tuple[str, list[str], dict[str, str]]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    alarm = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, alarm)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def versions(directory: Path) -> tuple[Path, Path]:
    """Two directories with a program in each, and a link to the first; the link, and the second."""
    for name in ("1", "2"):
        (directory / name / "bin").mkdir(parents=True)
        program = directory / name / "bin/twistd"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        (directory / name / "bin/python").symlink_to(sys.executable)
    current = directory / "current"
    current.symlink_to(directory / "1")
    return current, directory / "2"


def test_a_program_is_found_again_by_its_path(tmp_path: Path) -> None:
    current, _ = versions(tmp_path)
    words = [str(tmp_path / "1/bin/python"), str(current / "bin/twistd"), "--nodaemon"]
    command = Command(words, {}, "/")
    assert command.current == [str(current / "bin/twistd"), "--nodaemon"]
    assert command.back == [str(tmp_path / "1/bin/python"), str(tmp_path / "1/bin/twistd"), "--nodaemon"]


def test_so_is_an_interpreter_whose_script_cannot_be_executed(tmp_path: Path) -> None:
    current, _ = versions(tmp_path)
    (tmp_path / "1/bin/twistd").chmod(0o644)
    command = Command([str(current / "bin/python"), "bin/twistd", "-n"], {}, str(current))
    assert command.current == [str(current / "bin/python"), str(current / "bin/twistd"), "-n"]
    assert command.back == [str(tmp_path / "1/bin/python"), str(tmp_path / "1/bin/twistd"), "-n"]


def test_there_may_be_no_script(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "twisted", "-n"]
    command = Command(words, {}, str(tmp_path))
    assert command.current == words
    assert command.back[1:] == words[1:]


def test_the_one_that_is_asked_is_not_the_service_of_systemd() -> None:
    environ = {"NOTIFY_SOCKET": "a", "WATCHDOG_USEC": "1", "LISTEN_FDS": "1", "HOME": "/"}
    words, given = Command([sys.executable, "-c", ""], environ, "/").check("--takes-over=1")
    assert words == [sys.executable, "-c", "", "--takes-over=1"]
    assert given == {"HOME": "/"}


def test_the_next_image_finds_the_state_and_the_way_back(tmp_path: Path) -> None:
    executed: list[tuple[Executed, str, set[Any]]] = []

    def execute(*arguments: Any) -> None:
        executed.append((arguments, str(Path.cwd()), signal.pthread_sigmask(signal.SIG_BLOCK, [])))

    directory = Path.cwd()
    command = Command([sys.executable, "-c", "pass"], {"A": "b"}, str(tmp_path))
    command.replace(7, 1, execute)
    assert Path.cwd() == directory
    ((path, words, environ), where, blocked), *_ = executed
    assert (path, words, where) == (sys.executable, command.current, str(tmp_path))
    assert {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2} <= blocked
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    found = inherited(environ)
    assert found == Inheritance(state=7, format=1, current=command.current, back=command.back)
    assert environ == {"A": "b"}
    assert inherited(environ) is None


def test_the_way_back_is_gone_once_and_not_after_it_has_taken_over() -> None:
    executed: list[Executed] = []
    inheritance = Inheritance(state=os.dup(0), format=1, current=["new"], back=["old", "-n"])
    inheritance.guard()
    for _ in range(2):
        inheritance.go_back(lambda *arguments: executed.append(arguments))
    assert [(path, words) for path, words, _ in executed] == [("old", ["old", "-n"])]
    found = inherited(executed[0][2])
    assert found is not None
    assert (found.back, found.current) == ([], ["new"])
    other = Inheritance(state=inheritance.state, format=1, current=[], back=["old"])
    other.guard()
    other.taken()
    other.go_back(lambda *arguments: executed.append(arguments))
    assert len(executed) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(other.state)
    inheritance.guard()  # nothing leads back from here: it returns


@pytest.mark.parametrize("ends", ["raise SystemExit(3)", "1 / 0", "import signal; signal.raise_signal(signal.SIGALRM)"])
def test_whatever_ends_a_new_version_the_old_one_goes_on(ends: str) -> None:
    program = f"""
import sys
from kraftek.daemon.image import Inheritance
Inheritance(state=0, format=1, current=[], back=["/bin/echo", "the old one"]).guard()
{ends}
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30.0)
    assert (found.returncode, found.stdout) == (0, "the old one\n")


def test_state_is_read_as_it_was_written() -> None:
    state = State(
        version="1",
        gateway_id="gw",
        sockets=[(5, b"a", b"b")],
        listeners=[("tcp:1", 6)],
        core=b"c",
        subscriber=(7, b"d"),
    )
    assert state.connected == [5, 7]
    assert state.descriptors == [5, 7, 6]
    descriptor = memory_of(state.encoded)
    assert os.get_inheritable(descriptor)
    inheritance = Inheritance(state=descriptor, format=FORMATS[0], current=[])
    for _ in range(2):
        assert read_state(inheritance) == state
    inheritance.format = 99
    with pytest.raises(ValueError, match="99"):
        read_state(inheritance)
    os.close(descriptor)


def test_formats() -> None:
    assert chosen("99,1") == 1
    assert chosen("99") is None
    assert chosen("11") is None
