"""Toy scenes, a driver's cabin and a street: the same pictures on every call, and nobody real."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, nearest
from stillwatch.media import points
from stillwatch.media.points import Face, Signals

Picture: TypeAlias = NDArray[np.uint8]
Shade: TypeAlias = tuple[float, float, float]
Ink: TypeAlias = Any  # a Shade, or a gray
# (label, chance) -> (seconds -> pose), and what draws a pose
Scene: TypeAlias = tuple[Callable[..., Any], Callable[..., Picture]]

LABELS: dict[str, tuple[str, ...]] = {
    "cabin": ("DangerousDriving", "Distracted", "Drinking", "SafeDriving", "SleepyDriving", "Yawn"),
    "street": ("NonViolence", "Violence"),
    "meeting": ("NonViolence", "Violence"),  # the street's people shake hands or push: no single frame tells which
}
SHUT = 0.15  # opening up to which eyes are drawn as a line
EYE = ((-1, 0), (-0.4, -1), (0.4, -1), (1, 0), (0.4, 1), (-0.4, 1))  # corner, upper lid, corner, lower lid
BLEND = 0.5  # seconds in which a clip's figures move from one act to the next
SUBPIXEL = 4  # binary digits behind the point of the coordinates handed to cv2


def still(scene: str, label: str, person: int, number: int, size: tuple[int, int] = (96, 128)) -> Picture:
    """uint8 (*size,3) RGB; the cabin's channels are equal, as in infrared.

    person: driver or camera. size: (height, width). Raises UserError.
    """
    act, draw = _scene(scene, label)
    chance = np.random.default_rng([LABELS[scene].index(label), person, number])
    pose = act(label, chance)(chance.uniform(0, 20))
    return draw(pose, person, size, chance, chance)


def look(
    scene: str, label: str, person: int, number: int, back: Sequence[float], size: tuple[int, int] = (96, 128)
) -> Picture:
    """uint8 (T,*size,3) RGB: one act at each of `back` seconds before a moment."""
    act, draw = _scene(scene, label)
    key = [LABELS[scene].index(label), person, number]
    chance = np.random.default_rng([*key, 11])
    pose, now = act(label, chance), chance.uniform(5, 25)
    frames = []
    for moment, seconds in enumerate(back):
        light, grain = np.random.default_rng([*key, 12]), np.random.default_rng([*key, 13, moment])
        frames.append(draw(pose(now - seconds), person, size, light, grain))
    return np.stack(frames)


def still_face(label: str, person: int, number: int, size: tuple[int, int], look: bool = False) -> Face:
    """What a perfect reader says of still("cabin", …); `look`: of look("cabin", …)'s newest frame."""
    chance = np.random.default_rng([LABELS["cabin"].index(label), person, number, *([11] if look else [])])
    pose = _drive(label, chance)
    return _face(pose(float(chance.uniform(5, 25) if look else chance.uniform(0, 20))), person, size)


def clip(
    scene: str, seconds: float, fps: float, seed: int = 0, size: tuple[int, int] = (96, 128)
) -> Iterator[tuple[float, Picture, str]]:
    """Yields (seconds, uint8 (*size,3) RGB, label) at fps.

    seed: person or camera, and order of labels. Raises UserError.
    """
    _, draw = _scene(scene)
    posed = _poses(scene, seconds, seed)
    for index in range(math.ceil(seconds * fps - 1e-9)):
        pose, label = posed(index / fps)
        light, grain = np.random.default_rng([seed, 5]), np.random.default_rng([seed, index, 6])
        yield index / fps, draw(pose, seed, size, light, grain), label


def reader(seconds: float, seed: int = 0, size: tuple[int, int] = (96, 128)) -> Callable[[Picture, float], Face | None]:
    """A face reader, (picture, s) -> Face, of clip("cabin", …); repeats after `seconds`."""
    posed = _poses("cabin", seconds, seed)
    return lambda image, time: _face(posed(time % seconds)[0], seed, size)


def _poses(scene: str, seconds: float, seed: int) -> Callable[[float], tuple[Any, str]]:
    """s -> (pose, label)."""
    act, _ = _scene(scene)
    segments = truth(scene, seconds, seed)
    acts = [act(s["label"], np.random.default_rng([seed, n, 7])) for n, s in enumerate(segments)]
    ends = [segment["end_s"] for segment in segments[:-1]]

    def posed(time: float) -> tuple[Any, str]:
        now = bisect_right(ends, time)
        pose = acts[now](time)
        done = (time - segments[now]["start_s"]) / BLEND
        if now and done < 1:
            weight = done * done * (3 - 2 * done)
            pose = _between(acts[now - 1](time), pose, weight)
        return pose, segments[now]["label"]

    return posed


def _between(a: Any, b: Any, weight: float) -> Any:
    """weight: of b."""
    if isinstance(a, tuple):
        return type(a)(*(_between(*pair, weight) for pair in zip(a, b, strict=True)))
    return (1 - weight) * a + weight * b


def truth(scene: str, seconds: float, seed: int = 0) -> list[dict[str, Any]]:
    """clip()'s labels: [{"start_s", "end_s", "label"}], without gaps."""
    _scene(scene)
    safe = "SafeDriving" if scene == "cabin" else "NonViolence"
    chance = np.random.default_rng([seed, 99])
    others = [label for label in LABELS[scene] if label != safe]
    order = chance.permutation(len(others))
    segments: list[dict[str, Any]] = []
    start = 0.0
    while start < seconds:
        turn, odd = divmod(len(segments), 2)
        label = others[order[turn % len(others)]] if odd else safe
        end = min(start + round(chance.uniform(4, 7), 1), seconds)
        segments.append({"start_s": round(start, 3), "end_s": round(end, 3), "label": label})
        start = end
    return segments


def _scene(scene: str, label: str | None = None) -> Scene:
    if scene not in SCENES:
        raise UserError(f"toy scene = {scene!r}: unknown{nearest(scene, SCENES)}")
    if label is not None and label not in LABELS[scene]:
        raise UserError(f"toy label = {label!r}: unknown{nearest(label, LABELS[scene])}")
    return SCENES[scene]


# --- canvas ---------------------------------------------------------------------------------------------------------


class Canvas:
    """Unit: the picture's height; (0, 0) is the middle, y down. Small ones are drawn at twice their size."""

    def __init__(self, size: tuple[int, int], channels: int):
        self.size = size
        self.scale = 2 if size[0] < 240 else 1
        height, width = size[0] * self.scale, size[1] * self.scale
        shape = (height, width) if channels == 1 else (height, width, channels)
        self.image = np.zeros(shape, np.uint8)
        self.height, self.width = height, width

    def at(self, x: float, y: float) -> tuple[int, int]:
        unit = self.height * (1 << SUBPIXEL)
        return round(x * unit) + (self.width << SUBPIXEL) // 2, round(y * unit) + (self.height << SUBPIXEL) // 2

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, shade: Ink, arc: tuple[int, int] = (0, 360), thick: float = 0.0
    ) -> None:
        """arc: degrees. thick: of its outline; 0: filled."""
        unit = self.height * (1 << SUBPIXEL)
        axes = (max(round(rx * unit), 8), max(round(ry * unit), 8))
        width = max(1, round(thick * self.height)) if thick else -1
        cv2.ellipse(self.image, self.at(x, y), axes, 0, *arc, shade, width, cv2.LINE_AA, SUBPIXEL)

    def line(self, points: Sequence[tuple[float, float]], shade: Ink, thick: float) -> None:
        width = max(1, round(thick * self.height))
        corners = np.array([self.at(*point) for point in points], np.int32)
        cv2.polylines(self.image, [corners], False, shade, width, cv2.LINE_AA, SUBPIXEL)

    def polygon(self, points: Sequence[tuple[float, float]], shade: Ink) -> None:
        corners = np.array([self.at(*point) for point in points], np.int32)
        cv2.fillPoly(self.image, [corners], shade, cv2.LINE_AA, SUBPIXEL)

    def done(
        self, chance: np.random.Generator, light: tuple[float, float, float], blur: float, noise: float
    ) -> Picture:
        """uint8 (H,W,3). light: gain, slope across, slope down."""
        height, width = self.size
        image = self.image
        if self.scale > 1:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        image = cv2.GaussianBlur(image, (3, 3), blur).reshape(height, width, -1)  # type: ignore[assignment]
        gain, across, down = light
        row = np.linspace(-across, across, width, dtype=np.float32)[None, :]
        column = np.linspace(-down, down, height, dtype=np.float32)[:, None]
        field = gain * (1 + row + column)
        grain = noise * chance.standard_normal((height, width), dtype=np.float32)
        image = np.clip(image * field[:, :, None] + grain[:, :, None], 0, 255).astype(np.uint8)
        return np.repeat(image, 3 // image.shape[2], axis=2)


# --- the cabin ------------------------------------------------------------------------------------------------------


class Driver(NamedTuple):
    """From 0 to 1, but for angles."""

    yaw: float  # -1 left .. 1 right
    pitch: float  # -1 up .. 1 down
    eyes: float  # open
    mouth: float  # open
    phone: float  # how far the hand with the phone is up
    bottle: float  # how far the hand with the bottle is up
    x: float  # sway of the head, in picture heights
    y: float


class Person:
    """Driver, car and camera, the same in every picture. Lengths in picture heights."""

    def __init__(self, number: int):
        r = np.random.default_rng([number, 1])
        u = r.uniform
        self.skin = u(110, 190)
        self.wide, self.tall = u(0.145, 0.185), u(0.21, 0.25)
        self.hair = u(20, 85)
        self.style = int(r.integers(4))  # 0 short, 1 bald, 2 long, 3 cap
        self.beard, self.glasses = r.random() < 0.35, r.random() < 0.3
        self.shirt, self.seat, self.back = u(40, 200), u(25, 80), u(20, 110)
        self.window = (u(-0.6, 0.6), u(-0.35, -0.1), u(0.12, 0.3), u(120, 230))  # x, y, half width, shade
        self.offset = (u(-0.1, 0.1), u(-0.05, 0.04))
        self.zoom = u(0.9, 1.2)
        self.side = 1 if r.random() < 0.5 else -1  # the hand that holds the phone
        self.eye, self.lip = u(0.85, 1.2), u(0.8, 1.2)
        self.light = (u(0.75, 1.15), u(-0.3, 0.3), u(-0.15, 0.15))


_person = lru_cache(maxsize=256)(Person)


def _drive(label: str, r: np.random.Generator) -> Callable[[float], Driver]:
    u = r.uniform
    base = Driver(u(-0.18, 0.18), u(-0.15, 0.15), u(0.7, 1.0), u(0, 0.08), 0, 0, u(-0.05, 0.05), u(-0.03, 0.03))
    if label == "DangerousDriving":
        base = base._replace(phone=u(0.85, 1), yaw=u(-0.35, 0.35), mouth=u(0, 0.3))
    elif label == "Distracted":
        aside = r.random() < 0.7
        turned = base._replace(yaw=u(0.6, 1.0) * (1 if r.random() < 0.5 else -1))
        base = turned if aside else base._replace(pitch=u(0.7, 1.0), eyes=u(0.3, 0.6), yaw=u(-0.4, 0.4))
    elif label == "Drinking":
        base = base._replace(bottle=u(0.85, 1), pitch=u(-0.5, 0), eyes=u(0.4, 1), mouth=u(0.1, 0.3))
    elif label == "SleepyDriving":
        base = base._replace(eyes=u(0, 0.12), pitch=u(-0.1, 0.45), yaw=u(-0.3, 0.3))
    elif label == "Yawn":
        base = base._replace(mouth=u(0.6, 1), eyes=u(0.1, 0.7), pitch=u(-0.4, 0.1))
    phase, blink = r.uniform(0, 2 * math.pi, 4), u(2.5, 4.5)

    def at(time: float) -> Driver:
        wave = [math.sin(2 * math.pi * f * time + p) for f, p in zip((0.23, 0.31, 0.17, 0.41), phase, strict=True)]
        shut = max(0.0, 1 - abs(time % blink - 0.2) / 0.1)  # a blink of 0.2 s
        return base._replace(
            yaw=base.yaw + 0.08 * wave[0],
            pitch=base.pitch + 0.06 * wave[1],
            eyes=base.eyes * (1 - 0.7 * shut),
            x=base.x + 0.012 * wave[2],
            y=base.y + 0.008 * wave[3],
        )

    return at


def _cabin(
    pose: Driver, number: int, size: tuple[int, int], chance: np.random.Generator, grain: np.random.Generator
) -> Picture:
    p = _person(number)
    c = Canvas(size, 1)
    c.image[:] = round(p.back)
    wx, wy, half, bright = p.window
    c.polygon(
        [(wx - half, wy - 0.2), (wx + half, wy - 0.24), (wx + half * 1.1, wy + 0.2), (wx - half, wy + 0.17)], bright
    )
    z = p.zoom
    x, y = p.offset[0] + pose.x, p.offset[1] + pose.y - 0.06
    seat = p.offset[0]
    c.ellipse(seat, 0.02, 0.26 * z, 0.3 * z, p.seat)
    c.polygon(
        [(seat - 0.34 * z, 0.6), (seat - 0.28 * z, 0.12), (seat + 0.28 * z, 0.12), (seat + 0.34 * z, 0.6)], p.seat
    )
    c.ellipse(seat + pose.x * 0.5, 0.58, 0.46 * z, 0.28 * z, p.shirt)
    c.line([(x, y + 0.1), (seat + pose.x * 0.5, 0.36)], p.skin * 0.8, 0.14 * z)
    _head(c, p, pose, x, y + 0.03 * pose.pitch, z)
    reach = (seat + p.side * 0.42 * z, 0.56)
    if pose.phone > 0.02:
        hand = _towards(reach, (x + p.side * (p.wide * 1.08 - 0.03 * abs(pose.yaw)) * z, y + 0.06 * z), pose.phone)
        _arm(c, p, reach, hand, z)
        c.line(
            [(hand[0] + 0.01 * p.side, hand[1] - 0.1 * z), (hand[0] - 0.015 * p.side, hand[1] + 0.07 * z)],
            12,
            0.055 * z,
        )
        for finger in range(4):
            c.ellipse(
                hand[0] - 0.01 * p.side, hand[1] + (0.05 - 0.028 * finger) * z, 0.04 * z, 0.016 * z, p.skin * 0.93
            )
    if pose.bottle > 0.02:
        lip = (x + pose.yaw * 0.09 * z, y + (0.135 + 0.05 * pose.pitch) * z)
        hand = _towards(reach, (lip[0] + p.side * 0.14 * z, lip[1] + 0.1 * z), pose.bottle)
        _arm(c, p, reach, hand, z)
        mouth = (hand[0] - p.side * 0.14 * z, hand[1] - 0.1 * z)
        neck, foot = _towards(mouth, hand, 0.3), _towards(mouth, hand, 1.35)
        c.line([mouth, neck], 235, 0.035 * z)
        c.line([neck, foot], 220, 0.095 * z)
        c.line([_towards(mouth, hand, 0.55), _towards(mouth, hand, 0.8)], 120, 0.095 * z)
        c.ellipse(*hand, 0.055 * z, 0.045 * z, p.skin * 0.93)
    c.ellipse(seat - 0.05, 0.62, 0.36 * z, 0.2 * z, 18, (180, 360), 0.03 * z)
    gain, across, down = p.light
    light = (gain * chance.uniform(0.8, 1.2), across + chance.uniform(-0.12, 0.12), down + chance.uniform(-0.1, 0.1))
    return c.done(grain, light, blur=chance.uniform(0.3, 0.9), noise=chance.uniform(4, 11))


def _head(c: Canvas, p: Person, pose: Driver, x: float, y: float, z: float) -> None:
    wide, tall = p.wide * z, p.tall * z
    turn, nod = pose.yaw, pose.pitch
    for ear in (-1, 1):
        if ear * turn < 0.5:  # the ear on the far side is hidden
            c.ellipse(x + ear * wide * (1.0 - 0.25 * abs(turn)), y + 0.02 * z, 0.028 * z, 0.05 * z, p.skin * 0.85)
    if p.style == 2:
        c.ellipse(x - turn * 0.03 * z, y + 0.06 * z, wide * 1.25, tall * 1.2, p.hair)
    elif p.style != 1:
        c.ellipse(x - turn * 0.035 * z, y - 0.03 * z, wide * 1.1, tall * 1.03, p.hair)
    c.ellipse(x, y, wide, tall, p.skin)
    top = y - tall * (0.62 - 0.25 * nod)
    if p.style == 3:
        c.ellipse(x, top, wide * 1.1, tall * 0.45, p.hair, arc=(180, 360))
        c.line([(x - wide + turn * 0.1, top), (x + wide + turn * 0.1, top)], p.hair * 0.7, 0.03 * z)
    elif p.style != 1:
        c.ellipse(x - turn * 0.02 * z, top + 0.02 * z, wide * 0.98, tall * 0.42, p.hair, arc=(180, 360))
    shift = turn * 0.09 * z  # the features slide over the face as it turns
    drop = nod * 0.06 * z
    if p.beard:
        c.ellipse(x + shift * 0.7, y + tall * 0.55 + drop, wide * 0.75, tall * 0.45, p.hair * 0.5 + p.skin * 0.3)
    for eye in (-1, 1):
        near = 1 - 0.45 * max(0.0, eye * turn)  # the far eye is foreshortened
        ex, ey = x + shift + eye * 0.068 * z * near, y - 0.035 * z + drop
        rx = 0.036 * z * near * p.eye
        if pose.eyes > SHUT:
            c.ellipse(ex, ey, rx, 0.024 * z * pose.eyes * p.eye, 245)
            c.ellipse(ex + turn * 0.012 * z, ey + nod * 0.004, rx * 0.45, 0.021 * z * pose.eyes * p.eye, 10)
        else:
            c.ellipse(ex, ey, rx, 0.022 * z, p.skin * 0.82)
            c.ellipse(ex, ey, rx, 0.015 * z, 25, (10, 170), 0.011 * z)
        c.line([(ex - rx, ey - 0.042 * z), (ex + rx, ey - 0.045 * z)], min(p.hair, p.skin * 0.5), 0.013 * z)
        if p.glasses:
            c.ellipse(ex, ey, 0.05 * z * near, 0.042 * z, 30, thick=0.01 * z)
    nose = (x + shift * 1.35, y + 0.045 * z + drop * 1.2)
    c.line([(x + shift, y - 0.02 * z + drop), nose], p.skin * 0.8, 0.018 * z)
    c.ellipse(*nose, 0.022 * z, 0.014 * z, p.skin * 0.72)
    mx, my = x + shift * 0.95, y + (0.12 + 0.03 * pose.mouth) * z + drop
    c.ellipse(mx, my, (0.055 - 0.008 * pose.mouth) * z * p.lip, (0.011 + 0.062 * pose.mouth) * z, p.skin * 0.55)
    if pose.mouth > 0.12:
        c.ellipse(mx, my, 0.043 * z * p.lip, 0.058 * z * pose.mouth, 15)


def _face(pose: Driver, number: int, size: tuple[int, int]) -> Face:
    """Eyes drawn as a line are shut."""
    p, (height, width) = _person(number), size
    lids = 0.10 if pose.eyes <= SHUT else 0.14 + 0.13 * pose.eyes
    signals = Signals(lids, lids, 0.02 + 0.8 * pose.mouth, 45 * pose.yaw, 25 * pose.pitch, 0.0, 1.0)
    x, y = p.offset[0] + pose.x, p.offset[1] + pose.y - 0.06 + 0.03 * pose.pitch
    shift, drop = pose.yaw * 0.09, pose.pitch * 0.06
    turn = np.linspace(0, 2 * math.pi, points.COUNT)
    at = np.stack([p.wide * np.cos(turn), p.tall * np.sin(turn)], 1)  # the head's outline, then eyes and mouth
    places = ((points.LEFT_EYE, shift - 0.068, drop - 0.035), (points.RIGHT_EYE, shift + 0.068, drop - 0.035))
    for eye, ex, ey in places:
        at[list(eye)] = [(ex + 0.036 * a, ey + 0.036 * lids * b) for a, b in EYE]
    mx, my, open_ = shift * 0.95, drop + 0.12 + 0.03 * pose.mouth, 0.011 + 0.062 * pose.mouth
    at[list(points.MOUTH)] = [(mx - 0.05, my), (mx, my - open_), (mx + 0.05, my), (mx, my + open_)]
    flat = (at * p.zoom + (x, y)) * height + (width / 2, height / 2)
    known = points.face(np.column_stack([flat, np.zeros(points.COUNT)]).astype(np.float32), 1.0)
    return known._replace(signals=signals)


def _arm(c: Canvas, p: Person, reach: tuple[float, float], hand: tuple[float, float], z: float) -> None:
    c.line([reach, hand], p.shirt * 0.85, 0.1 * z)
    c.line([_towards(reach, hand, 0.7), hand], p.skin * 0.88, 0.07 * z)


def _towards(a: tuple[float, float], b: tuple[float, float], share: float) -> tuple[float, float]:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


# --- the street -----------------------------------------------------------------------------------------------------


class Walker(NamedTuple):
    """Angles: radians from straight down, + to the front."""

    x: float
    lean: float
    drop: float  # 0 upright .. 1 on the ground
    arm: float  # angle of the leading upper arm
    bend: float  # of its elbow
    step: float  # legs apart
    face: float  # which way it looks: -1 .. 1


class Crowd(NamedTuple):
    one: Walker
    two: Walker
    passer: float  # x of a third one, who walks by
    stride: float  # the passer's step


def _crowd(label: str, r: np.random.Generator) -> Callable[[float], Crowd]:
    u = r.uniform
    phase = r.uniform(0, 2 * math.pi, 6)
    middle, apart, pace = u(-0.2, 0.2), u(0.32, 0.75), u(0.8, 1.2)
    close, talk = u(0.13, 0.24), r.random() < 0.35
    way = -1 if r.random() < 0.5 else 1
    floored = u(0.6, 1.0) if r.random() < 0.3 else 0.0

    def wave(rate: float, which: int, time: float) -> float:
        return math.sin(2 * math.pi * rate * time + phase[which])

    def calm(time: float) -> Crowd:
        swing = wave(pace, 0, time)
        other = wave(pace, 1, time)
        passer = 1.2 * wave(0.05, 2, time)
        if talk:  # two people stand close and talk with their hands: nearness alone is no fight
            gap, hands = close + 0.08, 0.5 + 0.35 * wave(0.5, 3, time)
            one = Walker(middle - gap / 2, 0.02, 0, hands, 0.9, 0.12, 1)
            return Crowd(one, Walker(middle + gap / 2, -0.02, 0, 0.3, 0.5, 0.12, -1), passer, 0.45 * other)
        x = middle + 0.25 * wave(0.06, 4, time)
        one = Walker(x - apart / 2, 0.04, 0, 0.5 * swing, 0.25, 0.45 * swing, way)
        return Crowd(one, Walker(x + apart / 2, 0.04, 0, 0.5 * other, 0.25, 0.45 * other, -way), passer, 0.45 * swing)

    def fight(time: float) -> Crowd:
        jab, guard, kick = wave(1.7, 0, time), wave(1.9, 1, time), wave(0.9, 2, time)
        gap = close + 0.04 * wave(1.1, 3, time)
        x = middle + 0.05 * wave(0.3, 4, time)
        one = Walker(x - gap / 2, 0.28 + 0.15 * jab, 0, 1.6 + 0.7 * jab, 0.5 - 0.5 * jab, 0.5 + 0.45 * kick, 1)
        bend, step = 0.9 - 0.5 * guard, 0.55 + 0.2 * guard
        two = Walker(x + gap / 2, -0.1 + 0.2 * guard, floored, 1.5 + 0.8 * guard, bend, step, -1)
        return Crowd(one, two, 1.2 * wave(0.05, 5, time), 0.3)

    return fight if label == "Violence" else calm


def _meeting(label: str, r: np.random.Generator) -> Callable[[float], Crowd]:
    """Two people hold out their arms: slowly a handshake, fast a push.

    Both pass evenly through the same poses, so single frames do not tell them apart.
    """
    u = r.uniform
    middle, close, phase = u(-0.2, 0.2), u(0.16, 0.26), u(0, 1)
    pace = u(1.4, 1.8) if label == "Violence" else u(0.2, 0.35)  # strokes a second
    face, watcher = u(0.3, 0.7), u(-1.2, 1.2)  # a third one stands and looks on

    def at(time: float) -> Crowd:
        reach = 1 - abs(1 - 2 * ((pace * time + phase) % 1))  # a triangle: every value is as frequent
        gap = close + 0.1 * (1 - reach)
        one = Walker(middle - gap / 2, 0.25 * reach, 0, 0.5 + 1.1 * reach, 0.9 - 0.7 * reach, 0.2, 1)
        two = Walker(middle + gap / 2, -0.15 * reach, 0, 0.5 + 0.6 * reach, 0.7 - 0.4 * reach, 0.2, -1)
        return Crowd(one, two, watcher, face)

    return at


@lru_cache(maxsize=16)
def _backdrop(camera: int, height: int, width: int) -> Picture:
    r = np.random.default_rng([camera, 2])
    u = r.uniform

    def shade(low: float, high: float, tint: float = 25) -> Shade:
        base = u(low, high)
        return base + u(-tint, tint), base + u(-tint, tint), base + u(-tint, tint)

    c = Canvas((height, width), 3)
    c.image[:] = np.clip(shade(80, 180), 0, 255)
    ground = u(0.05, 0.16)
    c.polygon([(-2, ground), (2, ground + u(-0.05, 0.05)), (2, 1), (-2, 1)], shade(60, 140, 12))
    dark = shade(25, 70)
    step = u(0.24, 0.4)
    for column in range(-4, 5):
        c.polygon(_block(column * step + u(-0.02, 0.02), -0.3, 0.06, 0.1), dark)
    c.polygon(_block(u(-0.6, 0.6), ground - 0.14, 0.07, 0.15), shade(40, 110))
    if r.random() < 0.6:
        car, paint = u(-0.6, 0.6), shade(50, 200, 50)
        c.polygon(_block(car, ground - 0.02, 0.24, 0.06), paint)
        c.polygon(_block(car, ground - 0.1, 0.13, 0.05), paint)
        for wheel in (-0.14, 0.14):
            c.ellipse(car + wheel, ground + 0.04, 0.045, 0.045, (20, 20, 20))
    for _ in range(3):
        c.line([(u(-0.8, 0.8), 0.5), (u(-0.4, 0.4), ground)], shade(120, 190, 8), 0.008)
    return c.image


def _block(x: float, y: float, half: float, tall: float) -> list[tuple[float, float]]:
    return [(x - half, y - tall), (x + half, y - tall), (x + half, y + tall), (x - half, y + tall)]


def _street(
    pose: Crowd, camera: int, size: tuple[int, int], chance: np.random.Generator, grain: np.random.Generator
) -> Picture:
    c = Canvas(size, 3)
    c.image[:] = _backdrop(camera, *size)
    r = np.random.default_rng([camera, 3])
    tall, floor = r.uniform(0.42, 0.6), r.uniform(0.3, 0.4)
    dressed = np.random.default_rng([camera, 4])
    coats: list[Shade] = [(r, g, b) for r, g, b in dressed.uniform(20, 230, (6, 3)).tolist()]
    passer = Walker(pose.passer, 0.04, 0.0, 0.45 * math.sin(pose.stride), 0.25, pose.stride, 1.0)
    _figure(c, passer, floor - 0.12, tall * 0.75, (coats[4], coats[5]))
    _figure(c, pose.one, floor, tall, (coats[0], coats[1]))
    _figure(c, pose.two, floor, tall, (coats[2], coats[3]))
    light = (chance.uniform(0.75, 1.15), chance.uniform(-0.15, 0.15), chance.uniform(-0.1, 0.1))
    return c.done(grain, light, blur=chance.uniform(0.3, 0.9), noise=chance.uniform(4, 10))


def _figure(c: Canvas, act: Walker, floor: float, tall: float, coat: tuple[Shade, Shade]) -> None:
    """coat: and trousers."""
    x, lean, drop, arm, bend, step, face = act
    fallen = drop * math.pi / 2 * -face
    leg, trunk, limb = 0.46 * tall, 0.34 * tall, 0.2 * tall

    def reach(start: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
        return _polar(start, face * angle + fallen, length)

    def rise(start: tuple[float, float], length: float) -> tuple[float, float]:
        return _polar(start, math.pi - face * lean + fallen, length)

    hip = (x + 0.1 * drop * -face, floor - leg * (math.cos(step / 2) * (1 - drop) + 0.12 * drop))
    shoulder = rise(hip, trunk)
    skin = (205.0, 165.0, 140.0)
    for side in (-0.5, 0.5):
        knee = reach(hip, side * step + 0.05, leg / 2)
        c.line([hip, knee, reach(knee, side * step - 0.12 * abs(step), leg / 2)], coat[1], 0.075 * tall)
    far = reach(shoulder, -arm * 0.7, limb)
    c.line([shoulder, far, reach(far, -arm * 0.7 + bend, limb)], _darker(coat[0], 0.7), 0.055 * tall)
    c.line([hip, shoulder], coat[0], 0.13 * tall)
    c.ellipse(*rise(shoulder, 0.1 * tall), 0.062 * tall, 0.075 * tall, skin)
    elbow = reach(shoulder, arm, limb)
    hand = reach(elbow, arm + bend, limb)
    c.line([shoulder, elbow, hand], _darker(coat[0], 0.85), 0.055 * tall)
    c.ellipse(*hand, 0.035 * tall, 0.035 * tall, skin)


def _darker(shade: Shade, share: float) -> Shade:
    return shade[0] * share, shade[1] * share, shade[2] * share


def _polar(start: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
    return start[0] + length * math.sin(angle), start[1] + length * math.cos(angle)


SCENES: dict[str, Scene] = {
    "cabin": (_drive, _cabin),
    "street": (_crowd, _street),
    "meeting": (_meeting, _street),
}
