"""Both Python clients do what the transcripts say; ``js/transcripts.test.js`` holds kraftek.js to the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.client.backends import BACKENDS, BackendThread
from tests.client.player import TRANSCRIPTS, Player
from tests.client.scripted import ScriptedGateway


@pytest.fixture(scope="module", params=BACKENDS)
def still(request: pytest.FixtureRequest) -> Iterator[BackendThread]:
    """Where clients live, and time stands still."""
    thread = BACKENDS[request.param](still=True)
    yield thread
    thread.stop()


@pytest.fixture
def server(stage: ExitStack) -> ScriptedGateway:
    server = ScriptedGateway(unread=None)
    stage.callback(server.close)
    return server


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_as_in_the_transcript(name: str, still: BackendThread, server: ScriptedGateway, stage: ExitStack) -> None:
    player = Player(still, server, TRANSCRIPTS[name])
    stage.callback(player.end)
    player.play(TRANSCRIPTS[name]["steps"])


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_difference_has_its_reason(name: str) -> None:
    transcript = TRANSCRIPTS[name]
    libraries = {verb.rpartition(" ")[0] for verb, *_ in transcript["steps"]} - {""}
    assert libraries <= {"js", "python"}
    assert bool(transcript.get("differs")) == bool(libraries or "js" in transcript)
