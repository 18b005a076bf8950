"""Where in the picture the evidence is: a map beside an exported net's probabilities."""

import torch
from torch import Tensor, nn

from stillwatch.errors import UserError
from stillwatch.lab.models.classifier import Classifier


class ActivationMap(nn.Module):
    """The last map (B,C,h,w) of the newest picture and p (B,K) -> (B,h·w), from 0 up.

    Class activation (Zhou et al. 2016, arXiv 1512.04150): evidence for `marks`, weighed by p, less that for others. For
    a head that is not linear in it: its energy above that of its calmest place.
    """

    def __init__(self, net: Classifier, shape: tuple[int, ...]):
        """shape: of a sample. Raises UserError for a net without a last map."""
        super().__init__()
        x = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        last, _ = net.last_map(x)
        if last.ndim != 4 or min(last.shape[2:]) < 2:
            found = ",".join(map(str, last.shape[1:]))
            raise UserError(f"export.map: {net.name} has no last map (C,h,w) but ({found}); leave it out")
        self.size = (last.shape[2], last.shape[3])
        mean = last.mean((2, 3))
        pooled = net.pooled(last)
        self.linear = net.temporal.plain and pooled.shape == mean.shape and torch.allclose(pooled, mean, 1e-4, 1e-5)
        marked = torch.zeros(len(net.head.weight)).index_fill(0, torch.tensor(net.marks), 1.0)
        self.register_buffer("marked", marked)
        self.register_buffer("weight", net.head.weight.detach().clone())

    def forward(self, last: Tensor, p: Tensor) -> Tensor:
        if not self.linear:
            energy = last.square().mean(1).sqrt().flatten(1)
            return energy - energy.amin(1, keepdim=True)
        marked = self.get_buffer("marked")
        shares = [part / part.sum(1, keepdim=True).clamp(min=1e-6) for part in (p * marked, p * (1 - marked))]
        weight = (shares[0] - shares[1]) @ self.get_buffer("weight")  # (B,C)
        return (weight[:, :, None] * last.flatten(2)).sum(1).relu()
