"""A net's answer and the driver's face, fused by a log-linear head. Pure."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillwatch.rules.normal import Deviation

FLOOR = 1e-4  # of a probability
FACE = 16  # features of a face: its traits now, and their running mean


def features(p: ArrayLike, deviation: Deviation) -> NDArray[np.float64]:
    """p: (K,) probabilities -> (K+FACE,)."""
    logs = np.log(np.clip(np.asarray(p, np.float64), FLOOR, 1))
    now = deviation.traits
    return np.concatenate([logs, now, deviation.past or now])


def fuse(p: ArrayLike, deviation: Deviation, weight: ArrayLike, bias: ArrayLike) -> NDArray[np.float64]:
    """Softmax(weight · features + bias), (K,). weight: (K,K+FACE), or fewer columns in an older head. bias: (K,)."""
    weight = np.asarray(weight)
    logits = weight @ features(p, deviation)[: weight.shape[1]] + np.asarray(bias)
    e = np.exp(logits - logits.max())
    return np.asarray(e / e.sum())
