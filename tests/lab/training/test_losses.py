"""Losses: each against numbers worked by hand and against its paper's formula, written again in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from stillwatch.errors import UserError
from stillwatch.lab.models.classifier import ModelOutput
from stillwatch.lab.training.losses import LOSSES, Shape, Task, mask, parts

LN2 = math.log(2)
LN3 = math.log(3)


def task(labels: int = 3, head: Any = "softmax", counts: tuple[int, ...] = (), teacher: bool = True) -> Task:
    theirs = Shape(7, {4: 2, 16: 3, 32: 5})
    names = ("Safe", "Yawn", "Sleepy", "d", "e")[:labels]
    return Task(
        labels, counts or (10,) * labels, head, Shape(4, {8: 2, 16: 2, 32: 3}), theirs if teacher else None, names
    )


def one(spec: Any, of: Task) -> Any:
    ((_, part),) = parts([spec], of).values()
    return part


def out(logits: Any, feature: Tensor | None = None, maps: dict[int, Tensor] | None = None) -> ModelOutput:
    logits = torch.as_tensor(logits, dtype=torch.float32)
    return ModelOutput(logits, torch.zeros(len(logits), 4) if feature is None else feature, maps or {})


def value(spec: Any, student: Any, teacher: Any = None, y: Any = None, progress: float = 0.0, **of: Any) -> float:
    """One part on plain lists of logits."""
    y = torch.zeros(len(student), dtype=torch.int64) if y is None else torch.tensor(y)
    part = one(spec, task(len(student[0]), **of))
    return float(part(out(student), None if teacher is None else out(teacher), y, progress))


def softmax(z: Any, t: float = 1.0) -> NDArray[np.float64]:
    e = np.exp(np.asarray(z, np.float64) / t)
    return e / e.sum(-1, keepdims=True)


def sigmoid(z: Any, t: float = 1.0) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.asarray(z, np.float64) / t))


RNG = np.random.default_rng(7)
ZS, ZT = RNG.normal(0, 2, (2, 8, 5)).tolist()
Y = RNG.integers(0, 5, 8).tolist()
SOFT = softmax(RNG.normal(0, 2, (8, 5))).astype(np.float32).tolist()


# ---- ce


def test_ce_by_hand() -> None:
    # p = softmax(0, ln 3) = (1/4, 3/4)
    assert value("ce", [[0, LN3]], y=[1]) == pytest.approx(-math.log(0.75))
    assert value("ce", [[0, LN3]], y=[0]) == pytest.approx(math.log(4))
    # half of each label: the mean of the two
    assert value("ce", [[0, LN3]], y=[[0.5, 0.5]]) == pytest.approx((math.log(4) - math.log(0.75)) / 2)


def test_ce_weighs_its_mean() -> None:
    # two samples, losses ln 4 (label 0, weight 3) and ln 4/3 (label 1, weight 1)
    wanted = (3 * math.log(4) + math.log(4 / 3)) / 4
    spec = {"name": "ce", "class_weights": [3, 1]}
    assert value(spec, [[0, LN3], [0, LN3]], y=[0, 1]) == pytest.approx(wanted)


def test_balanced_weights_are_n_over_k_times_n_c() -> None:
    # 12 samples, 3 labels: 12/(3·2) = 2, 12/(3·6) = 2/3, and none for a label that is not there
    part = one({"name": "ce", "class_weights": "balanced"}, task(3, counts=(2, 10, 0)))
    assert part.class_weights.tolist() == pytest.approx([2, 0.4, 0])


def test_ce_smoothing_by_hand() -> None:
    # K = 2, ε = 0.2: target (0.1, 0.9)
    wanted = 0.1 * math.log(4) - 0.9 * math.log(0.75)
    assert value({"name": "ce", "smoothing": 0.2}, [[0, LN3]], y=[1]) == pytest.approx(wanted)


def test_ce_focal_by_hand() -> None:
    # p_t = 3/4, γ = 2: (1/4)² · -ln(3/4)
    assert value({"name": "ce", "focal": 2}, [[0, LN3]], y=[1]) == pytest.approx(-math.log(0.75) / 16)
    # sigmoid: p = (1/2, 3/4), label 1: p₀² · -ln(1-p₀) + (1-p₁)² · -ln p₁
    wanted = 0.25 * LN2 - math.log(0.75) / 16
    assert value({"name": "ce", "focal": 2}, [[0, LN3]], y=[1], head="sigmoid") == pytest.approx(wanted)


@pytest.mark.parametrize("y", [Y, SOFT])
@pytest.mark.parametrize("options", [{}, {"smoothing": 0.1}, {"class_weights": [1, 2, 3, 0.5, 1], "smoothing": 0.1}])
def test_ce_is_torchs(options: dict[str, Any], y: Any) -> None:
    weight = torch.tensor(options.get("class_weights", [1.0] * 5))
    soft = torch.nn.functional.one_hot(torch.tensor(y), 5).float() if y is Y else torch.tensor(y)
    smoothed = options.get("smoothing", 0.0)
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(ZS), torch.tensor(y), weight, label_smoothing=smoothed, reduction="sum" if y is SOFT else "mean"
    )
    if y is SOFT:  # torch divides a soft target's loss by the batch; here a mean is weighted whatever the label
        wanted = wanted / (soft @ weight).sum()
    assert value({"name": "ce", **options}, ZS, y=y) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("y", [Y, SOFT])
def test_ce_with_a_sigmoid_head_is_the_binary_cross_entropy_summed_over_classes(y: Any) -> None:
    q, p = np.eye(5)[Y] if y is Y else np.array(SOFT, np.float64), sigmoid(ZS)
    wanted = -(q * np.log(p) + (1 - q) * np.log(1 - p)).sum(1).mean()
    assert value("ce", ZS, y=y, head="sigmoid") == pytest.approx(wanted, rel=1e-5)
    w = np.array([1, 2, 3, 0.5, 1])
    each = -(q * np.log(p) + (1 - q) * np.log(1 - p)).sum(1)
    spec = {"name": "ce", "class_weights": w.tolist()}
    assert value(spec, ZS, y=y, head="sigmoid") == pytest.approx((each * (q @ w)).sum() / (q @ w).sum(), rel=1e-5)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-300, 300, width=32), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from(["softmax", "sigmoid"]),
)
def test_ce_and_its_gradient_are_finite_for_any_logits(z: list[float], focal: float, head: Any) -> None:
    logits = torch.tensor([z], requires_grad=True)
    part = one({"name": "ce", "focal": focal, "smoothing": 0.1}, task(3, head))
    loss = part(ModelOutput(logits, torch.zeros(1, 4), {}), None, torch.tensor([1]), 0.0)
    loss.backward()
    assert loss.isfinite()
    assert loss >= 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# ---- kd


def test_kd_by_hand() -> None:
    # T = 1: teacher (1/4, 3/4), student (1/2, 1/2): 1/4·ln(1/2) + 3/4·ln(3/2)
    wanted = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert value({"name": "kd", "temperature": 1}, [[0, 0]], [[0, LN3]]) == pytest.approx(wanted)
    # T = 2 and logits twice as large: the same answers, times T² = 4
    assert value({"name": "kd", "temperature": 2}, [[0, 0]], [[0, 2 * LN3]]) == pytest.approx(4 * wanted)
    # the cross-entropy form: -(1/4 + 3/4)·ln(1/2)
    assert value({"name": "kd", "temperature": 1, "form": "ce"}, [[0, 0]], [[0, LN3]]) == pytest.approx(LN2)
    # each class a yes or no, sigmoid(ln 3) = 3/4 against 1/2; the other class agrees and adds 0
    spec = {"name": "kd", "temperature": 1}
    assert value(spec, [[0, 0]], [[0, LN3]], head="sigmoid") == pytest.approx(wanted)


@pytest.mark.parametrize("form", ["kl", "ce"])
def test_kd_is_its_formula(form: str) -> None:
    spec = {"name": "kd", "temperature": 3, "form": form}
    ps, pt = softmax(ZS, 3), softmax(ZT, 3)
    own = (pt * np.log(pt)).sum(1) if form == "kl" else 0
    assert value(spec, ZS, ZT) == pytest.approx(9 * (own - (pt * np.log(ps)).sum(1)).mean(), rel=1e-5)
    assert value({**spec, "head": "softmax"}, ZS, ZT, head="sigmoid") == pytest.approx(value(spec, ZS, ZT))
    ps, pt = (np.stack([sigmoid(z, 3), 1 - sigmoid(z, 3)]) for z in (ZS, ZT))
    own = (pt * np.log(pt)).sum((0, 2)) if form == "kl" else 0
    wanted = 9 * (own - (pt * np.log(ps)).sum((0, 2))).mean()
    assert value(spec, ZS, ZT, head="sigmoid") == pytest.approx(wanted, rel=1e-5)


def test_kd_standardised_is_its_formula() -> None:
    def standard(z: Any) -> NDArray[np.float64]:
        z = np.asarray(z, np.float64)
        return (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True)

    ps, pt = softmax(standard(ZS), 2), softmax(standard(ZT), 2)
    spec = {"name": "kd", "temperature": 2, "standardise": True}
    assert value(spec, ZS, ZT) == pytest.approx(4 * (pt * np.log(pt / ps)).sum(1).mean(), rel=1e-4)
    # the logits' scale no longer matters
    assert value(spec, (3 * np.array(ZS) + 1).tolist(), ZT) == pytest.approx(value(spec, ZS, ZT), rel=1e-4)


@pytest.mark.parametrize(("temperature", "at"), [
    (5, {0: 5, 0.5: 5, 1: 5}),
    ({"from": 5, "by": "constant"}, {0: 5, 1: 5}),
    ({"from": 2, "to": 20}, {0: 2, 0.5: 11, 1: 20}),
    ({"from": 20, "to": 2, "by": "linear"}, {0: 20, 0.25: 15.5, 1: 2}),
    ({"from": 2, "to": 20, "by": "cosine"}, {0: 2, 0.5: 11, 0.25: 2 + 9 * (1 - math.sqrt(0.5)), 1: 20}),
])  # fmt: skip
def test_temperature_follows_its_schedule(temperature: Any, at: dict[float, float]) -> None:
    part = one({"name": "kd", "temperature": temperature}, task())
    assert {p: part.temperature(p) for p in at} == pytest.approx(at)
    for progress, t in at.items():
        fixed = value({"name": "kd", "temperature": t}, ZS, ZT)
        assert value({"name": "kd", "temperature": temperature}, ZS, ZT, progress=progress) == pytest.approx(fixed)


# ---- dkd


def test_dkd_by_hand() -> None:
    # T = 1, label 0. teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2)
    spec = {"name": "dkd", "alpha": 2, "beta": 3, "temperature": 1}
    teacher, student = [[LN2, 0, 0]], [[0, 0, LN2]]
    tckd = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # (1/2, 1/2) against (1/4, 3/4)
    nckd = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))  # (1/2, 1/2) against (1/3, 2/3)
    assert value(spec, student, teacher, [0]) == pytest.approx(2 * tckd + 3 * nckd)


def test_dkd_is_kd_where_the_others_weigh_what_the_teacher_leaves_them() -> None:
    # eq. of the paper: KD = TCKD + (1 - p_target)·NCKD, for one sample
    t = 4.0
    for zs, zt, y in zip(ZS, ZT, Y, strict=True):
        left = 1 - softmax(zt, t)[y]
        whole = value({"name": "dkd", "alpha": 1, "beta": float(left), "temperature": t}, [zs], [zt], [y])
        assert whole == pytest.approx(value({"name": "kd", "temperature": t}, [zs], [zt]), rel=1e-4, abs=1e-5)


def test_dkd_takes_a_mixed_samples_heaviest_label() -> None:
    mixed = (0.7 * np.eye(5)[Y] + 0.3 * np.eye(5)[Y[::-1]]).astype(np.float32).tolist()
    assert value("dkd", ZS, ZT, mixed) == pytest.approx(value("dkd", ZS, ZT, Y))


# ---- dist


def test_dist_is_its_formula() -> None:
    ps, pt = softmax(ZS, 2), softmax(ZT, 2)
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ps, pt, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ps.T, pt.T, strict=True)])
    spec = {"name": "dist", "beta": 3, "gamma": 0.5, "temperature": 2}
    assert value(spec, ZS, ZT) == pytest.approx(4 * (3 * inter + 0.5 * intra), rel=1e-4)


def test_dist_by_hand_and_with_a_batch_of_one() -> None:
    # p = (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2): less their means (2, -1, -1)/12 and (-1, -1, 2)/12: r = -3/6
    teacher, student = [[LN2, 0, 0]], [[0, 0, LN2]]
    assert value("dist", student, teacher) == pytest.approx(1.5)
    # two samples with their answers swapped: every class but the middle one moves the other way, the middle not at all
    spec = {"name": "dist", "beta": 0, "gamma": 1}
    assert value(spec, student + teacher, teacher + student) == pytest.approx((2 + 1 + 2) / 3)


# ---- feature


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_feature_is_the_mse_behind_its_projector() -> None:
    torch.manual_seed(0)
    part = one({"name": "feature", "stage": 32}, task())
    assert part.maps == (32,)
    assert sum(p.numel() for p in part.parameters()) == 3 * 5 + 2 * 5
    s, t = maps(1, 4, 3, 2, 3), 3 * maps(2, 4, 5, 2, 3) + 1
    weight = part.projector[0].weight[:, :, 0, 0].detach().numpy()
    mine, theirs = np.einsum("oc,bchw->bohw", weight, s.numpy()), t.numpy()
    mine, theirs = (
        (m - m.mean((0, 2, 3), keepdims=True)) / np.sqrt(m.var((0, 2, 3), keepdims=True) + 1e-5) for m in (mine, theirs)
    )
    got = part(out(torch.zeros(4, 3), maps={32: s}), out(torch.zeros(4, 3), maps={32: t}), torch.zeros(4).long(), 0.0)
    assert float(got.detach()) == pytest.approx(((mine - theirs) ** 2).mean(), rel=1e-4)


def test_feature_pools_to_the_smaller_map() -> None:
    torch.manual_seed(0)
    part = one({"name": "feature", "stage": 16}, task()).eval()
    s, t = maps(1, 2, 2, 4, 4), maps(2, 2, 3, 2, 2)
    small = torch.nn.functional.avg_pool2d(s, 2)
    got, wanted = (
        part(out(torch.zeros(2, 3), maps={16: m}), out(torch.zeros(2, 3), maps={16: t}), torch.zeros(2).long(), 0.0)
        for m in (s, small)
    )
    assert float(got.detach()) == pytest.approx(float(wanted.detach()))


# ---- embedding


def test_embedding_by_hand() -> None:
    part = one("embedding", task())
    assert part.projector.weight.shape == (7, 4)
    with torch.no_grad():
        part.projector.weight.copy_(torch.eye(7)[:, :4])
        part.projector.bias.zero_()
    # at 60°: cos = 1/2, ‖a - b‖² = 1; and in one line: 0. Lengths do not matter
    student = out(torch.zeros(2, 3), torch.tensor([[2.0, 0, 0, 0], [0, 5, 0, 0]]))
    theirs = torch.zeros(2, 7)
    theirs[0, :2] = torch.tensor([0.5, math.sqrt(0.75)])
    theirs[1, 1] = 9
    for distance, wanted in (("mse", 1.0), ("cosine", 0.5)):
        again = one({"name": "embedding", "distance": distance}, task())
        again.load_state_dict(part.state_dict())
        got = again(student, out(torch.zeros(2, 3), theirs), torch.zeros(2).long(), 0.0)
        assert float(got.detach()) == pytest.approx(wanted / 2)


# ---- attention


def test_attention_by_hand() -> None:
    # student looks at the left alone, teacher at both alike: (1, 0) against (1, 1)/√2: 2 - √2, at whatever loudness
    s = torch.tensor([[[[3.0, 0.0]], [[-4.0, 0.0]]]])  # (1,2,1,2)
    t = torch.tensor([[[[2.0, -2.0]]] * 5])[0][None]  # (1,5,1,2)
    part = one({"name": "attention", "stages": [32]}, task())
    assert list(part.parameters()) == []
    got = part(out([[0, 0, 0]], maps={32: s}), out([[0, 0, 0]], maps={32: t}), torch.tensor([0]), 0.0)
    assert float(got) == pytest.approx(2 - math.sqrt(2))


def test_attention_is_its_formula_over_two_stages_and_pools() -> None:
    def look(m: Tensor) -> NDArray[np.float64]:
        a = (m.numpy().astype(np.float64) ** 2).mean(1).reshape(len(m), -1)
        return a / np.sqrt((a**2).sum(1, keepdims=True))

    part = one("attention", task())
    assert part.maps == (16, 32)
    s16, t16, s32, t32 = maps(1, 4, 2, 4, 4), maps(2, 4, 3, 4, 4), maps(3, 4, 3, 2, 2), maps(4, 4, 5, 4, 4)
    pooled = t32.square().mean(1, keepdim=True).reshape(4, 1, 2, 2, 2, 2).mean((3, 5)).sqrt()
    wanted = np.mean([((look(a) - look(b)) ** 2).sum(1).mean() for a, b in ((s16, t16), (s32, pooled))])
    student, teacher = out(torch.zeros(4, 3), maps={16: s16, 32: s32}), out(torch.zeros(4, 3), maps={16: t16, 32: t32})
    assert float(part(student, teacher, torch.zeros(4).long(), 0.0)) == pytest.approx(wanted, rel=1e-5)


EYES = torch.tensor([[[0.25, 0.25, 0.1, 0.2]] * 2 + [[0.25, 0.75, 0.2, 0.1]]])  # (1,3,4): mouth below


def test_a_mask_is_the_highest_of_its_gaussians_at_the_nearest_point_of_each_cell() -> None:
    found = mask(EYES, (2, 4))[0].reshape(2, 4)
    away = lambda right, down: math.exp(-0.5 * (right**2 + down**2))  # noqa: E731  in spreads
    assert found[0].tolist() == pytest.approx([1, 1, away(2.5, 0), away(2.5, 2.5)], abs=1e-6)
    assert found[1].tolist() == pytest.approx([1, 1, away(1.25, 0), away(2.5, 0)], abs=1e-6)
    fine = mask(EYES, (200, 200))[0].reshape(200, 200)
    assert float(fine[50, 70]) == pytest.approx(away(1, 0), abs=0.03)
    assert float(fine[90, 50]) == pytest.approx(away(0, 1), abs=0.03)


@pytest.mark.parametrize("regions", ["face", "random"])
def test_attention_under_a_mask_of_ones_is_attention(regions: str) -> None:
    y, s, t = torch.zeros(4).long(), full(1, 4, {16: 2, 32: 3}), full(2, 7, {16: 3, 32: 5})
    everywhere = torch.tensor([0.5, 0.5, 1e6, 1e6]).expand(4, 3, 4)
    wanted = one("attention", task())(s, t, y, 1.0)
    spec = {"name": "attention", "regions": regions, "stages": [16, 32]}
    assert float(one(spec, task())(s._replace(regions=everywhere), t, y, 1.0)) == pytest.approx(float(wanted), rel=1e-6)


def test_attention_with_regions_by_hand() -> None:
    # 1×2 maps: the student looks right, the teacher left, where the face is; the mask reaches the right cell's edge
    s, t = torch.tensor([[[[0.0, 3.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    at = torch.tensor([[[0.25, 0.5, 0.25, 1.0]] * 3])
    part = one({"name": "attention", "stages": [16], "regions": "face"}, task())
    student = out([[0, 0, 0]], maps={16: s})._replace(regions=at)
    edge = math.exp(-0.5)
    got = part(student, out([[0, 0, 0]], maps={16: t}), torch.tensor([0]), 1.0)
    assert float(got) == pytest.approx(1 + edge + 0.25 * (1 - edge))
    # the teacher itself: half of its look in each cell
    part = one({"name": "attention", "stages": [16], "regions": "face"}, task(teacher=False))
    own = out([[0, 0, 0]], maps={16: torch.tensor([[[[1.0, -1.0]]]])})._replace(regions=at)
    assert float(part(own, None, torch.tensor([0]), 1.0)) == pytest.approx(-math.log((1 + edge) / 2))


def test_attention_counts_faces_that_are_there_and_a_teacher_the_classes_of_the_face() -> None:
    y, at = torch.tensor([0, 1, 1, 2]), EYES.repeat(4, 1, 1)
    at[2], at[3, :, 0] = math.nan, -0.2  # nobody; cropped away
    s, t = full(1, 4, {16: 2}), full(2, 7, {16: 3})
    spec = {"name": "attention", "stages": [16], "regions": "face", "classes": ["Yawn"]}
    for teacher, rows in ((t, [0, 1]), (None, [1])):
        part, student = one(spec, task(teacher=teacher is not None)), s._replace(regions=at)
        pick = lambda o, rows=rows: out(o.logits[rows], maps={16: o.maps[16][rows]})  # noqa: E731
        few = pick(s)._replace(regions=at[rows])
        wanted = part(few, teacher and pick(teacher), y[rows], 1.0)
        assert float(part(student, teacher, y, 1.0)) == pytest.approx(float(wanted), rel=1e-6)
        none = part(s._replace(regions=at[[2] * 4]), teacher, y, 1.0)
        assert float(none) == 0


def test_a_mask_at_random_is_as_large_and_elsewhere() -> None:
    part = one({"name": "attention", "stages": [16], "regions": "random"}, task(teacher=False))
    loud = torch.zeros(64, 1, 8, 8)
    loud[:, :, 1, 1] = 1  # where the eyes are
    student = out(torch.zeros(64, 3), maps={16: loud})._replace(regions=EYES.repeat(64, 1, 1))
    torch.manual_seed(0)
    first = part(student, None, torch.zeros(64).long(), 1.0)
    torch.manual_seed(0)
    assert float(first) == float(part(student, None, torch.zeros(64).long(), 1.0)) > 1
    face = one({"name": "attention", "stages": [16], "regions": "face"}, task(teacher=False))
    assert float(face(student, None, torch.zeros(64).long(), 1.0)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["feature", "embedding", "attention"])
def test_warmup_grows_from_nothing(name: str) -> None:
    torch.manual_seed(0)
    part = one({"name": name, "warmup": 0.5}, task()).eval()
    y, s, t = torch.zeros(4).long(), full(1, 4, {8: 2, 16: 2, 32: 3}), full(2, 7, {4: 2, 16: 3, 32: 5})
    values = [float(part(s, t, y, progress).detach()) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert values == pytest.approx([0, values[3] / 2, values[3], values[3]])
    assert values[3] > 0


# ---- all of them


def full(seed: int, feature: int, channels: dict[int, int], grad: bool = False) -> ModelOutput:
    made = ModelOutput(
        maps(seed, 4, 3), maps(seed + 10, 4, feature), {s: maps(seed + s, 4, c, 2, 2) for s, c in channels.items()}
    )
    for tensor in (made.logits, made.feature, *made.maps.values()):
        tensor.requires_grad_(grad)
    return made


TEACHERS = [name for name, factory in LOSSES.items() if getattr(factory, "needs_teacher", False)]


def test_all_are_here() -> None:
    assert sorted(LOSSES) == ["attention", "ce", "dist", "dkd", "embedding", "feature", "kd"]
    assert len(TEACHERS) == 6


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_flow_to_the_student_alone(name: str, soft: bool, head: Any) -> None:
    if head == "sigmoid" and name in ("dkd", "dist"):
        with pytest.raises(UserError, match=rf"fit.loss.{name}: .* with a sigmoid head use kd or embedding"):
            one(name, task(head=head))
        return
    part = one(name, task(head=head))
    student, teacher = full(1, 4, {8: 2, 16: 2, 32: 3}, grad=True), full(2, 7, {4: 2, 16: 3, 32: 5}, grad=True)
    y = torch.tensor([[0.3, 0.7, 0]] * 4) if soft else torch.tensor([0, 1, 2, 0])
    loss = part(student, teacher, y, 0.5)
    assert loss.shape == ()
    assert loss > 0
    loss.backward()
    reached = [t for t in (student.logits, student.feature, *student.maps.values()) if t.grad is not None]
    assert len(reached) == max(1, len(part.maps))
    assert all(t.grad.abs().sum() > 0 for t in reached)
    assert all(p.grad is not None for p in part.parameters())
    assert all(t.grad is None for t in (teacher.logits, teacher.feature, *teacher.maps.values()))


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "attention"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name: str) -> None:
    student = full(1, 4, {16: 2, 32: 3}, grad=True)
    loss = one(name, task())(student, full(1, 4, {16: 2, 32: 3}), torch.tensor([0, 1, 2, 0]), 0.0)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teachers_half_precision_outputs_are_taken(name: str) -> None:
    torch.manual_seed(0)
    part = one(name, task()).eval()
    student, t = full(1, 4, {8: 2, 16: 2, 32: 3}), full(2, 7, {4: 2, 16: 3, 32: 5})
    halved = ModelOutput(t.logits.half(), t.feature.half(), {s: m.half() for s, m in t.maps.items()})
    got, wanted = (part(student, each, torch.tensor([0, 1, 2, 0]), 0.0) for each in (halved, t))
    assert got.dtype == torch.float32
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-2)


@settings(max_examples=40)
@given(
    st.sampled_from(["kd", "dkd", "dist"]),
    st.lists(st.floats(-80, 80, width=32), min_size=12, max_size=12),
    st.floats(0.5, 20),
)
def test_logit_losses_and_their_gradients_are_finite(name: str, z: list[float], t: float) -> None:
    logits, teacher = torch.tensor(z).view(2, 2, 3)
    logits.requires_grad_()
    student = ModelOutput(logits, torch.zeros(2, 4), {})
    loss = one({"name": name, "temperature": t}, task())(student, out(teacher), torch.tensor([0, 1]), 0.0)
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert loss >= -1e-3 * t**2
    assert slope.isfinite().all()


# ---- guards


@pytest.mark.parametrize(("spec", "told"), [
    ("dkd", r"fit.loss.dkd: with two classes its NCKD term is 0 .* use kd or embedding"),
    ("dist", r"fit.loss.dist.beta = 1.0: with two classes .* 1 or -1 .* set beta = 0, or use kd or embedding"),
    ({"name": "kd", "standardise": True}, r"fit.loss.kd.standardise = true: .* no gradient once the argmax agrees"),
])  # fmt: skip
def test_two_classes_are_guarded(spec: Any, told: str) -> None:
    parts([spec], task(3))
    with pytest.raises(UserError, match=told):
        parts([spec], task(2))


def test_what_works_for_two_classes_works() -> None:
    assert len(parts(["ce", "kd", "embedding", {"name": "dist", "beta": 0}], task(2))) == 4


def test_the_guards_are_true() -> None:
    """What they claim: with two classes a standardised pair is the same whatever the net says."""
    z = torch.tensor([[0.1, 3.0], [-7.0, 0.2]], requires_grad=True)
    part = one({"name": "kd", "standardise": True}, task(3))
    (slope,) = torch.autograd.grad(part(out_of(z), out([[1, 2], [0, 9]]), torch.tensor([1, 1]), 0.0), z)
    assert slope.abs().max() < 1e-5
    part = one({"name": "dkd", "alpha": 0}, task(3))
    assert float(part(out([[1, 2]]), out([[5, 0]]), torch.tensor([1]), 0.0)) == 0
    part = one({"name": "dist", "gamma": 0}, task(3))
    assert float(part(out([[1, 2]]), out([[0, 9]]), torch.tensor([1]), 0.0)) == pytest.approx(0, abs=1e-5)
    assert float(part(out([[2, 1]]), out([[0, 9]]), torch.tensor([1]), 0.0)) == pytest.approx(2, abs=1e-5)


def out_of(logits: Tensor) -> ModelOutput:
    return ModelOutput(logits, torch.zeros(len(logits), 4), {})


@pytest.mark.parametrize("name", TEACHERS)
def test_a_part_that_needs_a_teacher_says_so(name: str) -> None:
    with pytest.raises(UserError, match=rf"fit.loss.{name}: there is no teacher to learn from; use ce"):
        parts([name], task(teacher=False))


# ---- options


@pytest.mark.parametrize(("spec", "told"), [
    ("kdd", r"fit.loss = 'kdd': unknown; did you mean 'd?kd'\?"),
    ({"name": "kd", "temprature": 4}, r"fit.loss.kd.temprature = 4: unknown option; did you mean 'temperature'\?"),
    ({"name": "kd", "wieght": 4}, r"fit.loss.kd.wieght = 4: unknown option; did you mean 'weight'\?"),
    ({"name": "attention", "regions": ["eyes"]}, r"attention.regions = \['eyes'\]: not allowed; known: face, random"),
    ({"name": "attention", "classes": ["a"]}, r"attention.classes = \['a'\]: a list of labels is wanted, and regions"),
    ({"name": "attention", "stages": [16], "regions": "face", "classes": ["Yawm"]}, r"classes = 'Yawm': .* 'Yawn'\?"),
    ({"name": "ce", "weight": -1}, r"fit.loss.ce.weight = -1: a number from 0 up"),
    ({"name": "ce", "weight": math.nan}, r"fit.loss.ce.weight = nan"),
    ({"name": "ce", "smoothing": "much"}, r"fit.loss.ce.smoothing = 'much': a number from 0 to 1"),
    ({"name": "ce", "focal": True}, r"fit.loss.ce.focal = True: a number"),
    ({"name": "ce", "class_weights": "balance"}, r"ce.class_weights = 'balance': .* did you mean 'balanced'\?"),
    ({"name": "ce", "class_weights": [1, 2]}, r"fit.loss.ce.class_weights = \[1, 2\]: .* a list of 3 numbers"),
    ({"name": "ce", "class_weights": [1, 2, 0]}, r"every label needs a weight above 0"),
    ({"name": "kd", "temperature": 0}, r"fit.loss.kd.temperature = 0: a number from 0.01 up"),
    ({"name": "kd", "temperature": {"from": 0, "to": 2}}, r"fit.loss.kd.temperature.from = 0: a number"),
    ({"name": "kd", "temperature": {"form": 2, "to": 3}}, r"kd.temperature.form = 2: .* did you mean 'from'\?"),
    ({"name": "kd", "temperature": {"from": 2}}, r"fit.loss.kd.temperature.to: missing; a schedule is \{from=2, to=20"),
    ({"name": "kd", "temperature": {"from": 2, "to": 3, "by": "cos"}}, r"temperature.by = 'cos': not allowed"),
    ({"name": "kd", "form": "kld"}, r"fit.loss.kd.form = 'kld': not allowed; did you mean 'kl'\?"),
    ({"name": "kd", "standardise": 1}, r"fit.loss.kd.standardise = 1: true or false"),
    ({"name": "feature", "stage": 8}, r"fit.loss.feature.stage = 8: no map at stride 8 in both nets; .*: 16, 32"),
    ({"name": "feature", "warmup": 2}, r"fit.loss.feature.warmup = 2: a number from 0 to 1"),
    ({"name": "attention", "stages": []}, r"fit.loss.attention.stages = \[\]: a list of strides is wanted"),
    ({"name": "attention", "stages": [16, 16]}, r"a list of strides is wanted"),
    ({"name": "embedding", "distance": "l2"}, r"fit.loss.embedding.distance = 'l2': not allowed; known: mse, cosine"),
])  # fmt: skip
def test_a_wrong_option_is_told_in_one_line(spec: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        parts([spec], task())
    assert "\n" not in str(caught.value)


def test_a_sigmoid_head_is_not_standardised() -> None:
    with pytest.raises(UserError, match=r"not for a sigmoid head"):
        parts([{"name": "kd", "standardise": True}], task(head="sigmoid"))


def test_parts_have_names_weights_and_their_own_options() -> None:
    specs = ["ce", {"name": "kd", "weight": 0.7}, {"name": "kd", "weight": 2, "temperature": 1}, "kd"]
    made = parts(specs, task())
    assert {name: weight for name, (weight, _) in made.items()} == {"ce": 1.0, "kd": 0.7, "kd-2": 2.0, "kd-3": 1.0}
    assert [made[name][1].temperature(0.0) for name in ("kd", "kd-2", "kd-3")] == [4.0, 1.0, 4.0]  # type: ignore[operator]
    assert specs[1] == {"name": "kd", "weight": 0.7}  # the recipe's own dict stays as it was
    with pytest.raises(UserError, match=r"fit.loss = \[\]: nothing to learn from"):
        parts([], task())


def test_a_part_of_ones_own_is_named_by_its_last_word() -> None:
    made = parts([{"name": "stillwatch.lab.training.losses:CrossEntropy", "smoothing": 0.1, "weight": 3}], task())
    assert {name: weight for name, (weight, _) in made.items()} == {"CrossEntropy": 3.0}
