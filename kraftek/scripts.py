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
    def each(cls, keys: int, args: int, body: str, before: str = "") -> Script:
        """A script that runs ``body`` for each message of many, and answers with a list of what each came to.

        ``body`` is as that of any script, with this number of ``KEYS`` and ``ARGV``, and returns a number or a string;
        ``before`` comes before the first. What fails for one message does not for the others.
        """
        return cls(f"""{before}
local function each(KEYS, ARGV) {body} end
local answers = {{}}
for i = 1, #ARGV / {args} do
    local keys = {{unpack(KEYS, (i - 1) * {keys} + 1, i * {keys})}}
    local args = {{unpack(ARGV, (i - 1) * {args} + 1, i * {args})}}
    local done, answer = pcall(each, keys, args)
    if done then answers[i] = answer
    else answers[i] = type(answer) == 'table' and answer or {{err = tostring(answer)}} end
end
return answers
""")

    @cached_property
    def digest(self) -> str:
        """The name under which Redis remembers the script: the source's SHA-1 in hex (``EVALSHA``)."""
        return sha1(self.source.encode(), usedforsecurity=False).hexdigest()
