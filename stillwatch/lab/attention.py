"""Where a run's net and its teacher look, and where eyes and mouth are."""

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stillwatch.lab.data.contact_sheets import sheet
from stillwatch.lab.data.dataset import Dataset, load_dataset
from stillwatch.lab.faces import faces
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training.losses import mask
from stillwatch.lab.training.runs import TRAINED, Predict, load_net, load_teacher, predictor, teacher_of
from stillwatch.run import Run

SHOWN = 12  # samples in the picture, spread over the classes
STRIDE = 8  # of the maps that are shown, or the nearest that the net has


class Seen(NamedTuple):
    """For evaluation.report.occlusion.hiding, and a picture."""

    predict: Predict
    x: NDArray[np.uint8]  # (N,T,H,W,C)
    y: NDArray[np.int64]
    group: list[str]
    regions: NDArray[np.float32]  # (N,3,4)
    maps: NDArray[np.uint8]  # (H,W,3) RGB: frame, teacher's and student's energy, with the mask's outline


def seen(run: Run, split: str = "test") -> Seen | None:
    """None without faces in whole pictures, or without one net. Raises UserError where data or weights are gone."""
    looks = run.seen.data
    if not looks.faces or looks.region or run.info.kind not in TRAINED or run.info.members:
        return None
    data, net = load_dataset(run.seen), load_net(run)
    rows = data.rows[split]
    regions = faces(data.samples, data.store.content).regions(data.recipe.data)[rows]
    known = np.flatnonzero(~np.isnan(regions).any((1, 2)))
    if not len(known):
        return None
    classes = [known[data.y[rows[known]] == k] for k in np.unique(data.y[rows[known]])]
    some = max(1, SHOWN // len(classes))
    shown = np.concatenate([own[np.linspace(0, len(own) - 1, min(some, len(own))).astype(int)] for own in classes])
    nets: dict[str, Classifier] = {"teacher" if run.info.kind == "teacher" else "student": net}
    teacher = teacher_of(run)
    if teacher and isinstance(theirs := load_teacher(teacher), Classifier):
        nets = {"teacher": theirs, **nets}
    nets = {name: one for name, one in nets.items() if one.channels}
    picture = _maps(data, nets, rows[shown], regions[shown])
    group = [data.samples[row].group for row in rows]
    return Seen(predictor(net), data.store.pixels[rows], data.y[rows], group, regions, picture)


def energy(net: Classifier, x: torch.Tensor) -> NDArray[np.float32]:
    """uint8 (B,T,H,W,C) -> (B,h,w): the channels' mean square, at most 1."""
    stride = min(net.channels, key=lambda s: abs(s - STRIDE))
    with torch.inference_mode():
        found = net.eval()(x, (stride,)).maps[stride].square().mean(1)
    return (found / found.amax((1, 2), keepdim=True).clamp_min(1e-12)).numpy()


def _maps(
    data: Dataset, nets: dict[str, Classifier], rows: NDArray[np.int64], regions: NDArray[np.float32]
) -> NDArray[np.uint8]:
    x = data.picture(rows)
    theirs, their_rows = data.for_teacher(rows) if "teacher" in nets else (data, rows)
    found = {name: energy(net, theirs.picture(their_rows) if name == "teacher" else x) for name, net in nets.items()}
    high, wide = data.recipe.data.hw
    inside = mask(torch.from_numpy(regions), (high, wide)).reshape(-1, high, wide).numpy() > 0.5
    samples, tiles = [], []
    for n, row in enumerate(rows):
        frame = np.broadcast_to(x[n, -1].numpy(), (high, wide, 3))
        outline = cv2.findContours(inside[n].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        for name in ("frame", *nets):
            tile = frame.copy()
            if name != "frame":
                heat = np.round(255 * cv2.resize(found[name][n], (wide, high))).astype(np.uint8)
                tile = (tile // 2 + cv2.applyColorMap(heat, cv2.COLORMAP_JET)[:, :, ::-1] // 2).astype(np.uint8)
            tiles.append(cv2.drawContours(np.ascontiguousarray(tile), outline, -1, (255, 255, 255), 1))
            samples.append(replace(data.samples[row], group=name, split=data.samples[row].label))
    return sheet(samples, np.stack(tiles).astype(np.uint8)[:, None], "where it looks")[:, :, ::-1]
