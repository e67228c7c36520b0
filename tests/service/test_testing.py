"""What the stand-in for the gateway does that tests of real services do not show."""

from __future__ import annotations

from typing import Any

from kraftek.service import Context, EventProcessor
from kraftek.service.testing import Contract


def test_services_may_have_a_prefix(gateway_contract: Contract) -> None:
    chat = EventProcessor("chat", prefix="test:")

    @chat.on("room:who")
    async def who(context: Context, payload: Any) -> list[str]:
        context.emit("wiki:page:read", payload)
        context.broadcast_to_room("chat:room:asked", payload)
        return sorted(await context.who_is_in())

    gateway_contract.run(chat)
    ada, bob = gateway_contract.client("ada", "r"), gateway_contract.client("bob", "r")
    assert ada.request("chat:room:who", "Start") == ["ada", "bob"]
    assert gateway_contract.emitted()["payload"] == "Start"
    assert bob.receive() == {"type": "chat:room:asked", "payload": "Start"}
