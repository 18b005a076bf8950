"""The event record. Imports nothing of ours."""

from dataclasses import dataclass, replace
from typing import Any, Literal

Level = Literal["notice", "warn", "alarm"]
LEVELS: tuple[Level, ...] = ("notice", "warn", "alarm")


@dataclass(frozen=True)
class Event:
    """One id for life: opened, raised any number of times, closed."""

    id: str  # camera-salt-number: unique where the salt is
    camera: str
    kind: str  # the indicator: distraction, glances, phone, microsleep, sleep, perclos, yawns, violence, camera …
    label: str | None  # the class that it is about
    level: Level
    state: Literal["opened", "raised", "closed"]
    start: float  # when the behaviour began, s
    opened: float  # when the rule first spoke, s
    updated: float  # when this was said, s
    end: float | None  # when the behaviour ended, s; None: it goes on
    peak: float  # the highest probability or share so far
    words: str  # one line for a person

    def shifted(self, seconds: float) -> "Event":
        end = None if self.end is None else self.end + seconds
        return replace(
            self, start=self.start + seconds, opened=self.opened + seconds, updated=self.updated + seconds, end=end
        )

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)
