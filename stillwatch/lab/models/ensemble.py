"""Ensemble: several finished nets as one teacher. Imports no data, loss or run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillwatch.errors import UserError
from stillwatch.lab.models.classifier import Classifier, ModelOutput


class Ensemble(nn.Module):
    """Logits of the members' weighted mean, of probabilities or of logits; `feature`: concatenated; no maps.

    weights: (M,); none: equal.
    """

    def __init__(self, members: Sequence[Classifier], weights: Sequence[float] = (), average: str = "probabilities"):
        super().__init__()
        self.members, self.kind, self.average = nn.ModuleList(members), members[0].kind, average
        self.name = "mean of " + ", ".join(net.name for net in members)
        self.key = f"{average} {'+'.join(net.key for net in members)}"
        self.dim, self.channels = sum(net.dim for net in members), dict[int, int]()
        shares = torch.tensor(weights or [1.0] * len(members))
        self.register_buffer("weights", shares / shares.sum())

    def forward(self, x: Tensor, maps: tuple[int, ...] = ()) -> ModelOutput:
        if maps:
            raise UserError(f"{self.name}: an ensemble has no maps; leave out the losses that look at them")
        found = [net(x) for net in self.members]
        logits = mean(torch.stack([out.logits for out in found]), self.get_buffer("weights"), self.average, self.kind)
        return ModelOutput(logits, torch.cat([out.feature for out in found], 1), {})

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.kind == "sigmoid" else logits.softmax(-1)


def mean(logits: Tensor, weights: Tensor, average: str, head: str) -> Tensor:
    """Logits (M,B,K) -> (B,K). average: "logits" or "probabilities". head: softmax or sigmoid."""
    weights = weights.view(-1, 1, 1)
    if average == "logits":
        return (weights * logits).sum(0)
    if head == "sigmoid":
        return torch.logit((weights * logits.sigmoid()).sum(0), 1e-6)
    return (weights * logits.softmax(-1)).sum(0).clamp(min=1e-6).log()


def by_validation(
    logits: Tensor, y: Tensor, groups: Sequence[str], average: str, head: str
) -> tuple[tuple[float, ...], str]:
    """(weights of the lowest loss, ""), or ((), why equal ones stay). logits: (M,N,K)."""
    # They stay unless weights fitted on either half of the groups also help the other: few people choose badly

    def loss(weights: Tensor, rows: Tensor) -> Tensor:
        z = mean(logits[:, rows], weights, average, head)
        if head == "sigmoid":
            return F.binary_cross_entropy_with_logits(z, F.one_hot(y[rows], z.shape[1]).to(z.dtype))
        return F.cross_entropy(z, y[rows])

    def fitted(rows: Tensor) -> Tensor:
        free = torch.zeros(len(logits), dtype=logits.dtype, requires_grad=True)
        search = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

        def step() -> float:
            search.zero_grad()
            value = loss(free.softmax(0), rows)
            value.backward()
            return float(value.detach())

        search.step(step)
        return free.detach().softmax(0)

    names = sorted(set(groups))
    place = [names.index(group) % 2 for group in groups]
    half = torch.tensor(place if len(names) > 1 else [2 * row // len(y) for row in range(len(y))], dtype=torch.bool)
    equal = torch.full((len(logits),), 1 / len(logits), dtype=logits.dtype)
    gains = [float(loss(equal, b) - loss(fitted(a), b)) for a, b in ((half, ~half), (~half, half))]
    if min(gains) > 0:
        return tuple(fitted(torch.ones_like(half)).tolist()), ""
    lost = f"chosen on one half of validation they change the other's loss by {-gains[0]:+.4f} and {-gains[1]:+.4f}"
    return (), f"{lost} ({len(names)} group{'s' * (len(names) != 1)}, {len(y):,} samples)"


Teacher = Classifier | Ensemble
