"""The chat's helper: it answers word by word, as a language model does. The room reads along; who asked can stop it.

A real one has the words from a model, in place of :func:`think`. The gateway keeps what was said until now, as one
message: whoever comes in the middle reads the answer from its beginning.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated

from msgspec import Meta, Struct

from kraftek.service import Context, EventProcessor
from kraftek.service.asyncio import run

PAUSE = float(os.environ.get("WORD_SECONDS", "0.2"))  # from word to word

# Unordered: nobody in the room waits until somebody else's answer is complete.
helper = EventProcessor("helper", transport="stream", unordered=True)


class Question(Struct):
    text: Annotated[str, Meta(min_length=1, max_length=2000)]
    id: Annotated[str, Meta(pattern="^[0-9a-f-]{36}$")]  # of the answer


@helper.on("question:ask")
async def answer(context: Context, question: Question) -> None:
    key = f"{context.user_id}:{question.id}"  # nobody can have another user's answer overwritten

    async def tell(words: str, *, first: bool = False, last: bool = False) -> None:
        await context.append_to_room("helper:answer:said", key, words, first=first, last=last)

    # If this process dies, the next one begins anew, and so does the answer on every page.
    await tell(f"{context.user_id}, ", first=True)
    try:
        async for words in think(question.text):
            await tell(words)
    except asyncio.CancelledError:  # the page has cancelled its request
        await tell("… (stopped)", last=True)
        raise
    await tell("", last=True)


async def think(question: str) -> AsyncIterator[str]:
    backwards = " ".join(reversed(question.rstrip("?!. ").split()))
    for word in f"I have read that backwards, and it says: {backwards}. That is all that I can do.".split():
        yield f"{word} "
        await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    run(helper)
