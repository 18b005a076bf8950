"""Augmentation: exact replay, each op's meaning, and words for what is wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillwatch.errors import UserError
from stillwatch.lab.data import augment
from stillwatch.lab.data.augment import AUGMENTS, draws, number, plan

ALL = [{"name": name, "p": 1.0} for name in AUGMENTS]


def batch(n: int = 6, t: int = 1, c: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, t, 16, 20, c), dtype=np.uint8))


def names(n: int = 6) -> np.ndarray:
    return np.array([number(f"picture-{i}") for i in range(n)], np.uint64)


def test_the_same_seed_sample_and_view_give_the_same_picture_in_any_company() -> None:
    change = plan(ALL, seed=3)
    x, ids = batch(), names()
    whole = change(x, ids, view=2)
    assert whole.dtype == torch.uint8
    assert whole.shape == x.shape
    order = [4, 1, 5]
    assert torch.equal(change(x[order], ids[order], view=2), whole[order])
    assert not torch.equal(change(x, ids, view=3), whole)
    assert not torch.equal(plan(ALL, seed=4)(x, ids, view=2), whole)


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  the legacy state is what is watched here
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    plan(ALL, 0)(batch(), names(), 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_a_number_is_the_same_on_every_machine() -> None:
    assert number("picture-0") == 12256953989457480547
    assert draws(0, np.array([1], np.uint64), 0, "x", 2).shape == (1, 2)


def test_draws_are_uniform_and_unlike_each_other() -> None:
    ids = np.array([number(str(i)) for i in range(4000)], np.uint64)
    u = draws(1, ids, 0, "crop", 3)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02
    for other in (draws(2, ids, 0, "crop", 3), draws(1, ids, 1, "crop", 3), draws(1, ids, 0, "flip", 3)):
        assert abs(np.corrcoef(u[:, 0], other[:, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.06


def test_the_frames_of_a_clip_are_changed_alike() -> None:
    still = batch(4, 1)
    clip = still.repeat(1, 5, 1, 1, 1)
    out = plan([{"name": "crop", "p": 1}, {"name": "gamma", "p": 1}, {"name": "flip", "p": 1}], 0)(clip, names(4), 0)
    for t in range(1, 5):
        assert torch.equal(out[:, 0], out[:, t])


def test_flip_is_a_mirror_and_p_is_a_share() -> None:
    x = batch()
    assert torch.equal(plan([{"name": "flip", "p": 1.0}], 0)(x, names(), 0), x.flip(3))
    assert torch.equal(plan([{"name": "flip", "p": 0.0}], 0)(x, names(), 0), x)
    many = names(2000)
    small = torch.zeros(2000, 1, 8, 8, 1, dtype=torch.uint8)
    small[..., 0, :] = 255
    flipped = plan(["flip"], 0)(small, many, 0)[:, 0, 0, 0, 0] == 0
    assert 0.45 < flipped.float().mean() < 0.55


def test_regions_move_with_the_picture() -> None:
    """A bright block stays under its region, through crop and flip; nothing else moves it."""
    change = plan([{"name": "crop", "scale": 0.5, "ratio": 0.3}, "flip", "gamma", {"name": "noise", "std": 2}], 3)
    x, ids = torch.zeros(40, 1, 64, 96, 1, dtype=torch.uint8), names(40)
    x[:, :, 26:38, 40:52] = 255
    at = torch.tensor([46 / 96, 32 / 64, 6 / 96, 6 / 64]).repeat(40, 2, 1)
    bright, moved = change(x, ids, 1)[:, 0, :, :, 0].float(), change.moved(at, ids, 1)
    assert torch.equal(moved, change.moved(at, ids, 1)) and not torch.equal(moved, change.moved(at, ids, 2))
    for picture, (where, _) in zip(bright > 128, moved, strict=True):
        rows, cols = torch.nonzero(picture.any(1))[:, 0], torch.nonzero(picture.any(0))[:, 0]
        seen = [(float(p.min()) + float(p.max()) + 1) / 2 for p in (cols, rows)] + [len(cols) / 2, len(rows) / 2]
        assert seen == pytest.approx((where * torch.tensor([96.0, 64, 96, 64])).tolist(), abs=1)
    still = plan(["contrast", "erase"], 0)
    assert torch.equal(still.moved(at, ids, 0), at)


def test_each_op_does_what_its_name_says() -> None:
    x = torch.full((3, 1, 16, 16, 1), 100, dtype=torch.uint8)
    ids = names(3)

    def only(**spec: float | str) -> torch.Tensor:
        return plan([{"p": 1.0, **spec}], 0)(x, ids, 0)[:, 0, :, :, 0]

    assert torch.equal(only(name="crop"), x[:, 0, :, :, 0])  # a flat picture stays flat under any window
    assert torch.equal(only(name="contrast"), x[:, 0, :, :, 0])  # nothing differs from the mean
    assert torch.equal(only(name="blur"), x[:, 0, :, :, 0])
    bright = only(name="brightness", by=0.5).float()
    assert bright.std((1, 2)).max() == 0
    assert bright.min() >= 50
    assert bright.max() <= 150
    assert only(name="gamma").float().std((1, 2)).max() == 0
    grain = only(name="noise", std=30).float()
    assert grain.std() > 3
    assert abs(grain.mean() - 100) < 5
    hole = only(name="erase", area=0.3) != 100
    assert 0.02 < hole.float().mean() < 0.4


def test_mixup_partners_replay_and_keep_at_least_half() -> None:
    change = plan([{"name": "mixup", "alpha": 0.4}], 5)
    assert change.mixup == 0.4
    ids = names(500)
    rows, share = change.partners(ids, 1, 50)
    again, _ = change.partners(ids[7:9], 1, 50)
    assert (again == rows[7:9]).all()
    assert rows.min() >= 0
    assert rows.max() < 50
    assert len(set(rows.tolist())) > 40
    assert share.min() >= 0.5
    assert share.max() <= 1
    black, white = torch.zeros(2, 4, dtype=torch.uint8), torch.full((2, 4), 200, dtype=torch.uint8)
    assert augment.mix(black, white, torch.tensor([1.0, 0.75])).tolist() == [[0] * 4, [50] * 4]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("flop", "fit.augment = 'flop': unknown; did you mean 'flip'"),
        ({"name": "crop", "scal": 1}, "fit.augment.crop.scal = 1: unknown option; did you mean 'scale'"),
        ({"name": "crop", "scale": 7}, "fit.augment.crop.scale = 7: Input should be less than or equal to 1"),
        ({"name": "flip", "p": 2}, "flip.p = 2: Input should be less than or equal to 1"),
        ({"name": "noise", "std": "much"}, "noise.std = 'much': Input should be a valid number"),
        ({"name": "mixup", "alpha": 0}, "mixup.alpha = 0: Input should be greater than 0"),
    ],
)
def test_mistakes_are_named(spec: str | dict, words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        plan([spec], 0)


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(8, 24), st.integers(8, 24), st.sampled_from([1, 3]))
def test_every_shape_survives(b: int, t: int, h: int, w: int, c: int) -> None:
    x = torch.randint(0, 256, (b, t, h, w, c), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = plan(ALL, 1)(x, names(b), 0)
    assert out.shape == x.shape
    assert out.dtype == torch.uint8
