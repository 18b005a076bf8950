"""Streamed nets: one new frame a call, and a state for each camera."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillwatch.errors import UserError

States: TypeAlias = list[NDArray[Any]]  # what a net remembers of n cameras: one array (n,...) a state


class State(NamedTuple):
    name: str
    shape: tuple[int, ...]  # of one camera
    dtype: Any


class Stream:
    """step() takes a new frame of each camera; a call with whole looks (n,T,H,W,C) starts anew."""

    def __init__(
        self, run: Callable[..., States], takes: int | None, states: tuple[State, ...], shape: tuple[int, ...]
    ):
        """run: (frames, *states) -> [p, *next states], of `takes` cameras a call (None: any). shape: (T,H,W,C)."""
        self._run, self._takes, self.states, self.shape = run, takes, states, shape
        # A picture made of several frames means nothing before they are there: until then only they are remembered
        self._back = next((state.shape[0] for state in states if state.name == "past_frames"), 0)
        p, _ = self.step(np.zeros((1, *shape[1:]), np.uint8), self.start(1), 0)
        if p.ndim != 2 or len(p) != 1:
            raise UserError(f"its answer to a frame is {p.dtype} {p.shape}; wanted: probabilities float (1,K)")

    def start(self, count: int) -> States:
        return [np.zeros((count, *state.shape), state.dtype) for state in self.states]

    def step(self, x: NDArray[np.uint8], states: States, seen: ArrayLike) -> tuple[NDArray[np.float32], States]:
        """x: (n,H,W,C), each camera's frame after `seen` others (n,). Returns p (n,K), states."""
        if x.dtype != np.uint8 or x.shape[1:] != self.shape[1:]:
            raise ValueError(f"the net takes uint8 (n,{','.join(map(str, self.shape[1:]))}), not {x.dtype} {x.shape}")
        parts, size = [], self._takes or len(x)
        for at in range(0, len(x), size):
            given = [part[at : at + size] for part in (x, *states)]
            count = len(given[0])
            if count < size:
                given = [np.pad(part, ((0, size - count), *[(0, 0)] * (part.ndim - 1))) for part in given]
            parts.append([part[:count] for part in self._run(*map(np.ascontiguousarray, given))])
        p, *after = [np.concatenate(found) if len(parts) > 1 else found[0] for found in zip(*parts, strict=True)]
        early = np.broadcast_to(np.asarray(seen) < self._back, len(x))
        for place, state in enumerate(self.states if early.any() else ()):
            if state.name != "past_frames":
                after[place] = np.where(early.reshape(-1, *[1] * len(state.shape)), states[place], after[place])
        return p.astype(np.float32, copy=False), after

    def __call__(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        if x.shape[1:] != self.shape:
            raise ValueError(f"the net takes uint8 (n,{','.join(map(str, self.shape))}), not {x.dtype} {x.shape}")
        states = self.start(len(x))
        for moment in range(self.shape[0]):
            p, states = self.step(x[:, moment], states, moment)
        return p


def one_look(predict: Callable[[NDArray[np.uint8]], Any], x: NDArray[np.uint8]) -> Callable[[], object]:
    """A camera's cost per frame: a call with x, of a streamed net with its newest frames."""
    if isinstance(predict, Stream):  # with a full memory
        return partial(predict.step, np.ascontiguousarray(x[:, -1]), predict.start(len(x)), predict.shape[0])
    return partial(predict, x)


class Memory:
    """Of one camera: a streamed net's states, or the newest frames."""

    def __init__(self, predict: Callable[..., Any], ticks: Sequence[int], gap: float = np.inf):
        """ticks: a look's moments, in frames before the newest. gap: seconds between frames that no look spans."""
        self._predict, self.ticks, self.gap = predict, ticks, gap
        self.clear()

    def clear(self) -> None:
        self.seen, self.last = 0, np.inf
        self.states = self._predict.start(1) if isinstance(self._predict, Stream) else []
        self.frames: deque[NDArray[np.uint8]] = deque(maxlen=self.ticks[0] + 1)

    @property
    def ready(self) -> bool:
        return self.seen > self.ticks[0]

    def whole(self) -> NDArray[np.uint8]:
        """The look (T,H,W,C), or a single frame (H,W,C)."""
        look = [self.frames[-1 - tick] for tick in self.ticks]
        return look[0] if len(look) == 1 else np.stack(look)


def look(
    predict: Callable[..., Any],
    frames: Sequence[NDArray[np.uint8]],
    memories: Sequence[Memory],
    seconds: Sequence[float],
) -> list[NDArray[np.float32] | None]:
    """Each camera's new frame (H,W,C) -> its probabilities (K,); None while its look is not whole.

    seconds: of each frame, on its camera's clock.
    """
    for frame, memory, at in zip(frames, memories, seconds, strict=True):
        if not 0 <= at - memory.last <= memory.gap:  # NaN and -inf at the first one
            memory.clear()
        memory.last = at
        memory.seen += 1
        if not memory.states:
            memory.frames.append(frame)
    if isinstance(predict, Stream) and memories:
        states = [np.concatenate(parts) for parts in zip(*(memory.states for memory in memories), strict=True)]
        p, states = predict.step(np.stack(frames), states, [memory.seen - 1 for memory in memories])
        for row, memory in enumerate(memories):
            memory.states = [part[row : row + 1] for part in states]
        return [p[row] if memory.ready else None for row, memory in enumerate(memories)]
    whole = [memory.whole() for memory in memories if memory.ready]
    answers = iter(predict(np.stack(whole)) if whole else ())
    return [next(answers) if memory.ready else None for memory in memories]
