"""The same for the second half: services, gateways and Redis that fail."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.docs.pages import code
from tests.docs.reader import PATIENCE
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.docs.reader import Read

pytestmark = pytest.mark.redis  # the shell starts one


def test_the_service_dies(read: Read) -> None:
    reader = read(4)
    reader.wait_ready()
    ada = reader.open("ada")
    reader.sees(ada.number, "0, by nobody")
    ada.press()
    wait_until(reader.events_handled_now, "the press at the service", 30.0)
    reader.paste("break")
    ada.press()
    for line in range(2):
        reader.sees(ada.lines.nth(line), "no answer yet")
    reader.sees(ada.state, "ready")
    reader.paste("mend")

    reader.sees(ada.lines.nth(0), "you made it 1")
    reader.sees(ada.lines.nth(1), "you made it 2")
    reader.sees(ada.number, "2, by ada")
    assert reader.paste("look") == code("tutorial-4-log").splitlines()


def test_two_gateways(read: Read) -> None:
    reader = read(5)
    ready = [re.fullmatch(r"(one|two)\.log:.* (\w+) is ready", line) for line in reader.wait_ready("which")]
    gateways = {line[2]: line[1] for line in ready if line}
    ada, bob = reader.open("ada"), reader.open("bob")
    for window in (ada, bob):
        expect(window.state).to_contain_text("ready at gateway", timeout=PATIENCE)
    wait_until(lambda: bob.moved(away_from=ada.gateway()), "the other gateway", 30.0)
    assert {ada.gateway(), bob.gateway()} == set(gateways)
    ada.press()
    for window in (ada, bob):
        reader.sees(window.number, "1, by ada")

    name = gateways[ada.gateway()]
    begun = reader.requests()
    ada.press()
    wait_until(lambda: reader.requests() > begun, "the press at the gateway", 30.0)
    reader.paste("break", ONE=name.upper())

    reader.sees(ada.state, "ready at gateway", f" {bob.gateway()}")
    reader.sees(ada.lines.nth(1), "you made it 2")
    for window in (ada, bob):
        reader.sees(window.number, "2, by ada")
    reader.paste("mend", ONE=name.upper(), one=name)
    wait_until(lambda: len(reader.paste("which")) == 3, "the gateway that was killed", 30.0)
    wait_until(lambda: bob.moved(away_from=ada.gateway()), "the gateway that is back", 30.0)


def test_watch_it(read: Read) -> None:
    reader = read(6)
    reader.wait_ready()
    ada = reader.open("ada")
    expect(ada.state).to_contain_text("ready at gateway", timeout=PATIENCE)
    ada.press()
    expect(ada.lines.nth(0)).to_have_text("you made it 1", timeout=PATIENCE)
    assert reader.browse("http://127.0.0.1:9101/health", '"redis":true') == 200
    clients = sum(reader.metric(port, "kraftek_sockets") for port in (9101, 9102))
    published = sum(reader.metric(port, "kraftek_published_total") for port in (9101, 9102))
    assert (clients, published > 0) == (1, True)

    reader.paste("break")
    reader.run("wait $SERVICE")
    ada.press()
    for line in code("tutorial-6-alarm").splitlines():
        reader.wait_shown(line)
    assert reader.metric(9101, 'kraftek_waiting{service="counter"}') == 1
    reader.paste("mend")
    expect(ada.lines.nth(1)).to_have_text("you made it 2", timeout=PATIENCE)
    for port in (9101, 9102):
        reader.wait_shown(f"over:  http://127.0.0.1:{port}/metrics: events wait for a service")

    reader.paste("stop-redis")
    for port in (9101, 9102):
        reader.wait_shown(f"ALARM: http://127.0.0.1:{port}/metrics: Redis is unavailable")
    assert reader.browse("http://127.0.0.1:9101/health", '"redis":false') == 503
    ada.press()
    reader.sees(ada.lines.nth(2), "the service cannot be reached at present")
    expect(ada.state).to_contain_text("ready at gateway")
    reader.expect_like("tutorial-6-log", reader.paste("look"))
    reader.paste("go-on")
    for port in (9101, 9102):
        reader.wait_shown(f"over:  http://127.0.0.1:{port}/metrics: Redis is unavailable")
    ada.press()
    expect(ada.lines.nth(3)).to_have_text("you made it 3", timeout=PATIENCE)
