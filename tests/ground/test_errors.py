"""Errors: bounded, whatever they quote."""

import pytest

from stillwatch.errors import LINE, WORD, UserError, bounded, nearest


@pytest.mark.parametrize("text", ["x" * 100_000, "é ab " * 20_000, "runs/" + "a/" * 5000, "\n".join(["y"] * 5000), ""])
def test_no_message_is_as_long_as_its_input(text: str) -> None:
    for said in (bounded(text), str(UserError(f"a: {text!r}: unknown{nearest(text, [text, text])}"))):
        assert max(map(len, said.splitlines()), default=0) <= LINE
        assert max(map(len, said.split()), default=0) <= WORD
        assert len(said.splitlines()) <= 50


def test_what_is_short_stays() -> None:
    text = "runs/x: " + "y" * WORD + " z" * 400
    assert str(UserError(text)) == text
    assert bounded("a" * 300 + "/end").endswith("aa/end")


def test_only_some_of_many_words_are_listed() -> None:
    assert nearest("zzz", [f"word-{n}" for n in range(50)]).endswith("word-39 and 10 more")
