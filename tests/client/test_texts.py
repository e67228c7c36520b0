"""Texts that come in pieces: what a client has of them. Whole stories are in ``transcripts/recovery.json``."""

from __future__ import annotations

from kraftek.client.messages import Append, Message
from kraftek.client.texts import Texts, whole


def piece(text: object, key: str = "k", first: int | None = None, *, last: bool = False) -> Message:
    return Message("a:b:c", text, append=Append(key, first, last))


def text_of(message: Message) -> str | None:
    assert message.append is not None
    return message.append.text


def test_a_text_grows_until_it_ends() -> None:
    texts = Texts()
    found = [text_of(texts.add(each)) for each in (piece("a", first=1), piece("b"), piece("c", last=True), piece("d"))]
    assert found == ["a", "ab", "abc", None]
    assert texts.known == {}


def test_a_whole_text_takes_the_place_of_what_was_heard() -> None:
    texts = Texts()
    texts.add(piece("a", first=1))
    assert text_of(texts.add(piece("abc", first=1))) == "abc"
    assert text_of(texts.add(piece("d"))) == "abcd"
    texts.forget()
    assert text_of(texts.add(piece("e"))) is None


def test_what_is_no_piece_is_as_it_was() -> None:
    plain, wrong = Message("a:b:c", "text"), piece({"no": "text"})
    assert Texts().add(plain) is whole(plain) is plain
    assert Texts().add(wrong) is whole(wrong) is wrong


def test_of_too_many_the_one_is_forgotten_that_rests_for_longest() -> None:
    texts = Texts()
    for number in range(100):
        texts.add(piece("a", str(number), first=1))
    texts.add(piece("b", "0"))
    texts.add(piece("a", "new", first=1))
    assert text_of(texts.add(piece("c", "0"))) == "abc"
    assert text_of(texts.add(piece("b", "1"))) is None
    assert len(texts.known) == 100


def test_in_a_page_it_is_whole() -> None:
    assert text_of(whole(piece("all of it", first=3))) == "all of it"
