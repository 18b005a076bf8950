"""The status of a camera's picture: ok, black (or covered), frozen. Pure."""

from collections import deque

import cv2

from stillwatch.media.decode import Picture
from stillwatch.monitor.cameras.source import RateLimiter, VideoFrame
from stillwatch.rules.alarm import Status

FROZEN, BLACK = 5.0, 2.0  # seconds without any change; seconds of one dark or even shade
CHECKS = 2.0  # checks a second
NOISE = 1  # levels by which a picture may differ from itself: a sensor's noise is more
DARK, EVEN = 40, 3  # of 255: nearly the brightest of a black picture; standard deviation of a covered lens


class PictureHealth:
    """Frozen: for FROZEN seconds each picture equals one of the last few, as no noisy sensor's does."""

    def __init__(self, live: bool):
        self._live = live
        self._limiter = RateLimiter(CHECKS)
        self._recent: deque[Picture] = deque(maxlen=round(CHECKS * FROZEN))
        self._still: tuple[float, int] | None = None  # since when nothing new was seen; keyframes until then
        self._dark: float | None = None
        self._status: Status = "ok"

    def status(self, frame: VideoFrame, keyframes: int) -> Status:
        """keyframes: the source's so far."""
        if not self._limiter.due(frame.time):
            return self._status
        luma = frame.luma()
        mean, spread = (float(value[0, 0]) for value in cv2.meanStdDev(luma))
        if mean + 2 * spread >= DARK and spread >= EVEN:
            self._dark = None
        elif self._dark is None:
            self._dark = frame.time
        known = any(old.shape == luma.shape and int(cv2.absdiff(luma, old).max()) <= NOISE for old in self._recent)
        self._recent.append(luma)
        if not known or self._still is None:
            self._still = (frame.time, keyframes)
        since, counted = self._still
        black = self._dark is not None and frame.time - self._dark >= BLACK
        # Two keyframes: encoders vary a still picture within a group, and may leave a quiet scene alone between groups
        frozen = self._live and frame.time - since >= FROZEN and keyframes - counted >= 2
        self._status = "black" if black else "frozen" if frozen else "ok"
        return self._status
