"""Ensemble: several finished nets as one teacher. Imports no data, loss or run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stillwatch.errors import UserError
from stillwatch.lab.models.classifier import Classifier, ModelOutput


class Ensemble(nn.Module):
    """Logits whose probabilities are the members' mean; `feature`: all of theirs, side by side. It has no maps."""

    def __init__(self, members: Sequence[Classifier]):
        super().__init__()
        self.members, self.kind = nn.ModuleList(members), members[0].kind
        self.name = "mean of " + ", ".join(net.name for net in members)
        self.key = "+".join(net.key for net in members)
        self.dim = sum(net.dim for net in members)

    def forward(self, x: Tensor, maps: tuple[int, ...] = ()) -> ModelOutput:
        """As Classifier.forward."""
        self.shape(maps)
        found = [net(x) for net in self.members]
        p = torch.stack([self.probabilities(out.logits) for out in found]).mean(0)
        logits = torch.logit(p, 1e-6) if self.kind == "sigmoid" else p.clamp(min=1e-6).log()
        return ModelOutput(logits, torch.cat([out.feature for out in found], 1), {})

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.kind == "sigmoid" else logits.softmax(-1)

    def shape(self, maps: tuple[int, ...] | None = None) -> tuple[int, dict[int, int]]:
        """(feature size, no maps). Raises UserError where maps are asked for."""
        if maps:
            raise UserError(f"{self.name}: an ensemble has no maps; leave out the losses that look at them")
        return self.dim, {}


Teacher = Classifier | Ensemble
