"""Several nets as one teacher: whose mean it is, and weights that validation may choose only where that holds."""

import numpy as np
import pytest
import torch

from stillwatch.lab.models.classifier import build
from stillwatch.lab.models.ensemble import Ensemble, by_validation, mean
from stillwatch.recipe import Net


def test_the_mean_is_the_one_asked_for() -> None:
    z = torch.randn(2, 5, 3, dtype=torch.float64)
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    p = mean(z, weights, "probabilities", "softmax").softmax(-1)
    assert torch.allclose(p, 0.75 * z[0].softmax(-1) + 0.25 * z[1].softmax(-1), atol=1e-5)
    assert torch.allclose(mean(z, weights, "logits", "softmax"), 0.75 * z[0] + 0.25 * z[1])
    yes = mean(z, weights, "probabilities", "sigmoid").sigmoid()
    assert torch.allclose(yes, 0.75 * z[0].sigmoid() + 0.25 * z[1].sigmoid(), atol=1e-5)


def test_weights_and_kind_of_mean_name_other_answers() -> None:
    """The cache of a teacher's answers is kept by its state and key."""
    nets = [build(Net(name="mnist-small"), 2, (16, 16), 1) for _ in range(2)]
    plain, tilted, logits = Ensemble(nets), Ensemble(nets, [3, 1]), Ensemble(nets, average="logits")
    assert plain.get_buffer("weights").tolist() == [0.5, 0.5] and tilted.get_buffer("weights").tolist() == [0.75, 0.25]
    assert "weights" in tilted.state_dict() and plain.key != logits.key


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_validation_chooses_where_one_member_knows_more(average: str, head: str) -> None:
    chance = np.random.default_rng(0)
    y = torch.from_numpy(chance.integers(0, 3, 300))
    right = torch.nn.functional.one_hot(y, 3).double()
    noise = torch.from_numpy(chance.normal(size=(2, 300, 3)))
    logits = torch.stack([3 * right + 0.5 * noise[0] - 1, noise[1]])
    weights, why = by_validation(logits, y, [f"g{n % 5}" for n in range(300)], average, head)
    assert not why and weights[0] > 0.9 and sum(weights) == pytest.approx(1)


def test_equal_weights_stay_where_the_halves_disagree() -> None:
    y = torch.zeros(8, dtype=torch.int64)
    good, bad = torch.tensor([2.0, 0.0]).double(), torch.tensor([0.0, 2.0]).double()
    groups = ["a"] * 4 + ["b"] * 4
    logits = torch.stack([torch.stack([good] * 4 + [bad] * 4), torch.stack([bad] * 4 + [good] * 4)])
    weights, why = by_validation(logits, y, groups, "probabilities", "softmax")
    assert weights == () and "2 groups, 8 samples" in why
