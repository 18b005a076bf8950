"""Armed times: over midnight, several, and in the two odd nights of the year."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from stillwatch.monitor.schedule import schedule

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def test_a_span_over_midnight_and_one_at_noon() -> None:
    times = schedule(("22:00-06:00", "12:00-12:30"), BERLIN)
    hours = {
        text: times.armed(at(f"2026-01-05 {text}")) for text in ("05:59", "06:00", "12:29", "12:30", "21:59", "22:00")
    }
    assert list(hours.values()) == [True, False, True, False, False, True]
    assert times.armed(at("2026-01-05 16:00", "America/New_York")), "22:00 in Berlin"
    assert schedule((), None).armed(0) and schedule(("00:00-24:00",), BERLIN).armed(at("2026-01-05 00:00"))


def test_the_nights_in_which_clocks_are_changed() -> None:
    """Forward: 02:00 to 03:00 does not exist. Back: it comes twice, an hour apart."""
    times = schedule(("02:30-03:30",), BERLIN)
    forward = at("2026-03-29 01:00")
    assert sum(times.armed(forward + 60 * minute) for minute in range(240)) == 30
    back = at("2026-10-25 00:00")
    assert sum(times.armed(back + 60 * minute) for minute in range(360)) == 30 + 30 + 30


@pytest.mark.parametrize("text", ["22:00", "25:00-26:00", "8:61-9:00", "12:00-12:00", "24:00-01:00", "at night", ""])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"24:00|22:00-06:00"):
        schedule((text,), None)
    for zone in ("Europe/Bärlin", "../etc", "Europe", ""):
        with pytest.raises(ValueError):
            schedule((), zone)
