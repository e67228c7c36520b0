"""A Lua script that Redis runs in one piece, as a value.

Made by whoever decides something in Redis, run by :meth:`kraftek.interfaces.IBus.call`; those for many messages at once
by :meth:`kraftek.interfaces.IBus.run`.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha1

from msgspec import Struct

__all__ = ["Script"]


class Script(Struct, frozen=True, dict=True):
    """``source`` is Lua; it names its keys by ``KEYS`` and everything else by ``ARGV``."""

    source: str

    @classmethod
    def each(cls, keys: str, args: str, body: str, before: str = "") -> Script:
        """A script that runs ``body`` for each message of many, and answers with a list of what each came to.

        ``keys`` and ``args`` name those of one message, as ``body`` calls them: ``"stream, claim"``. It returns a
        number or a string, or nil when nobody needs to know; ``before`` comes before the first. What fails for one
        message does not for the others.
        """
        given = ", ".join((*_of_one("KEYS", keys), *_of_one("ARGV", args)))
        return cls(f"""{before}
local function each({keys}, {args}) {body} end
local answers = {{}}
for i = 0, #KEYS / {len(keys.split(","))} - 1 do
    local done, answer = pcall(each, {given})
    if not done and type(answer) ~= 'table' then answer = {{err = tostring(answer)}} end
    answers[i + 1] = answer or false
end
return answers
""")

    @cached_property
    def digest(self) -> str:
        """The name under which Redis remembers the script: the source's SHA-1 in hex (``EVALSHA``)."""
        return sha1(self.source.encode(), usedforsecurity=False).hexdigest()


def _of_one(table: str, names: str) -> list[str]:
    """The expressions for what the message ``i`` has in a table that holds those of all, one after another."""
    names_of_one = names.split(",")
    return [f"{table}[{len(names_of_one)} * i + {number}]" for number in range(1, len(names_of_one) + 1)]
