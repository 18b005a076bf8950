"""A net's answer and the driver's face, fused by a log-linear head. Pure."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillwatch.rules.normal import Deviation

FLOOR = 1e-4  # of a probability
FAR = 4.0  # spreads from the usual beyond which a signal says no more
FACE = 8  # features of a face: five signals against normal, how far the lids fell, how far the head turned and nodded


def features(p: ArrayLike, deviation: Deviation) -> NDArray[np.float64]:
    """p: (K,) probabilities -> (K+FACE,)."""
    z = np.clip(deviation.z, -FAR, FAR)
    logs = np.log(np.clip(np.asarray(p, np.float64), FLOOR, 1))
    return np.concatenate([logs, z, [deviation.shut], np.abs(z[2:4])])


def fuse(p: ArrayLike, deviation: Deviation, weight: ArrayLike, bias: ArrayLike) -> NDArray[np.float64]:
    """Softmax(weight · features + bias), (K,). weight: (K,K+FACE), bias: (K,)."""
    logits = np.asarray(weight) @ features(p, deviation) + np.asarray(bias)
    e = np.exp(logits - logits.max())
    return np.asarray(e / e.sum())
