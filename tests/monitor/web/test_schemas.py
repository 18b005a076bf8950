"""Every state of a camera has its plain words; what JSON cannot say is left out."""

import math
from typing import Any, get_args

import pytest

from stillwatch.monitor.web.schemas import CONDITIONS, Condition, finite, plain


@pytest.mark.parametrize(
    ("fields", "condition", "says"),
    [
        ({}, "starting", "Starting"),
        ({"state": "live", "status": "ok", "words": "h264 640x360"}, "watching", "Watching"),
        ({"state": "live"}, "watching", "Watching"),
        ({"state": "live", "status": "frozen"}, "frozen", "Picture frozen"),
        ({"state": "live", "status": "black"}, "black", "Dark, or the lens is covered"),
        ({"state": "live", "status": "damaged", "words": "some"}, "damaged", "Some pictures arrive damaged"),
        ({"state": "live", "status": "lost"}, "lost", "No signal"),
        ({"state": "lost", "status": "ok", "words": "timed out"}, "lost", "No signal: timed out"),
        ({"state": "ended", "status": "black"}, "ended", "The film has ended"),
        ({"state": "failed", "words": "no such file"}, "failed", "Cannot be opened: no such file"),
        ({"state": "never heard of"}, "starting", "Starting"),
    ],
)
def test_every_state_has_its_plain_words(fields: dict[str, Any], condition: str, says: str) -> None:
    assert plain(fields) == (condition, says)


def test_no_condition_is_without_words() -> None:
    assert set(CONDITIONS) == set(get_args(Condition))


def test_no_nan_reaches_a_browser() -> None:
    assert [finite(value) for value in (0.5, 1, None, math.nan, math.inf)] == [0.5, 1.0, None, None, None]
