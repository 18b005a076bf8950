"""Armed times: spans of local time, over midnight and through changes of summer time. Reads no clock."""

import re
from datetime import datetime, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

DAY = 24 * 60


class Schedule(NamedTuple):
    """spans: (first minute of the day, the one after the last); none: always armed. zone: None: the system's."""

    spans: tuple[tuple[int, int], ...] = ()
    zone: tzinfo | None = None

    def armed(self, seconds: float) -> bool:
        """seconds: since 1970. A local time that comes twice is armed twice, a skipped one never."""
        at = datetime.fromtimestamp(seconds, self.zone)
        minute = 60 * at.hour + at.minute
        return not self.spans or any((minute - start) % DAY < (end - start) % DAY or end - start == DAY
                                     for start, end in self.spans)  # fmt: skip


def span(text: str) -> tuple[int, int]:
    """ "22:00-06:00" -> minutes of the day. Raises ValueError."""
    if not (found := re.fullmatch(r"(\d\d?):([0-5]\d) ?[-–] ?(\d\d?):([0-5]\d)", text)):
        raise ValueError(f'{text!r}: is written "22:00-06:00"')
    start, end = (60 * int(found[n]) + int(found[n + 1]) for n in (1, 3))
    if start == end or start >= DAY or end > DAY:
        raise ValueError(f'{text!r}: two different times up to 24:00; all day is "00:00-24:00"')
    return start, end


def schedule(spans: tuple[str, ...], zone: str | None) -> Schedule:
    """Raises ValueError for an unreadable span or an unknown zone."""
    try:
        return Schedule(tuple(map(span, spans)), None if zone is None else ZoneInfo(zone))
    except (KeyError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError; a folder is an OSError
        raise ValueError(
            f"{zone!r}: no such time zone here, as Europe/Berlin; pip install tzdata where none is"
        ) from error
