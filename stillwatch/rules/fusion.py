"""A net's answer and the driver's face, fused by a log-linear head. Pure."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillwatch.rules.normal import Deviation

FLOOR = 1e-4  # of a probability
FACE = 16  # features of a face: its traits now, and their running mean


def features(p: ArrayLike, deviation: Deviation) -> NDArray[np.float64]:
    """p: (K,) probabilities -> (K+FACE,), or (K+FACE+K,) where a net sees the face alone."""
    p, said = (np.log(np.clip(np.asarray(x, np.float64), FLOOR, 1)) for x in (p, deviation.said))
    now = deviation.traits
    return np.concatenate([p, now, deviation.past or now, said])


def fuse(p: ArrayLike, deviation: Deviation, weight: ArrayLike, bias: ArrayLike) -> NDArray[np.float64]:
    """Softmax(weight · features + bias), (K,). bias: (K,).

    weight: (K,K+FACE), or fewer columns in an older head; with K more, the face's own net speaks, where there is one.
    """
    weight = np.asarray(weight)
    x = features(p, deviation)[: weight.shape[1]]
    logits = weight[:, : len(x)] @ x + np.asarray(bias)
    e = np.exp(logits - logits.max())
    return np.asarray(e / e.sum())
