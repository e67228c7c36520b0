"""What an application makes of the gateway, without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService, MultiService
from twisted.internet import reactor
from zope.interface.verify import verifyObject

from kraftek.contract.errors import ConfigError
from kraftek.contract.settings import Config
from kraftek.gateway import make_gateway, read_config
from kraftek.service import EventProcessor


def test_a_configuration_is_a_file_or_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRAFTEK_REDIS", "redis://elsewhere")
    file = tmp_path / "gateway.toml"
    file.write_text('listen = ["tcp:1"]\nauth.check = "open"\nservices.chat = "events:chat"')
    table: dict[str, Any] = {"listen": ("tcp:1",), "auth": {"check": "open"}, "services": {"chat": "events:chat"}}
    config = read_config(file)
    assert config == read_config(str(file)) == read_config(table)
    assert (config.listen, config.redis) == (("tcp:1",), Config().redis)


@pytest.mark.parametrize(
    ("table", "mistake"),
    [
        ({"listen": ["tcp:x"]}, "config: listen[0]: expected "),
        ({"listen": ("tcp:x",)}, "config: listen[0]: expected "),
        ({"lissten": ["tcp:1"]}, "config: lissten: unknown key; did you mean listen?"),
        ({"auth": {"check": "opne"}}, 'config: auth.check: expected "open"'),
    ],
)
def test_every_mistake_is_named(table: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_gateway(reactor, table)
    assert caught.value.mistakes[0].startswith(mistake)


def test_it_is_a_service_with_services() -> None:
    services = [EventProcessor("chat"), EventProcessor("notes")]
    gateway = make_gateway(reactor, {"services": {"log": "events:log"}}, services)
    verifyObject(IService, gateway)
    gateway.setServiceParent(MultiService())
    assert [service.name for service in gateway.registry.services()] == ["log", "chat", "notes"]
    with pytest.raises(ConfigError, match="service chat: expected transport"):
        make_gateway(reactor, Config(), [EventProcessor("chat", transport="stream")])


def test_reading_again_keeps_its_services(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('origins = ["*"]')
    gateway = make_gateway(reactor, file, [EventProcessor("chat")])
    file.write_text('origins = ["same-host"]')
    again = gateway._read()
    assert (again.origins, [service.name for service in again.services]) == (("same-host",), ["chat"])
