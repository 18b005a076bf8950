import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from stillwatch import metrics

LABELS = ("safe", "phone", "yawn")


def draw(seed: int, n: int = 200, k: int = 3, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(k, size=n)
    z = rng.normal(size=(n, k))
    z[np.arange(n), y] += skill
    return y, np.exp(z) / np.exp(z).sum(1, keepdims=True)


@st.composite
def wild(draw_: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Any y and p, classes absent, ties, zeros and rows that do not sum to 1 included."""
    n, k = draw_(st.integers(1, 40)), draw_(st.integers(2, 5))
    y = draw_(arrays(np.int64, n, elements=st.integers(0, k - 1)))
    p = draw_(arrays(np.float32, (n, k), elements=st.floats(0, 1, width=32) | st.sampled_from([0, 0.5, 1])))
    return y, p


def test_by_hand() -> None:
    y = np.array([0, 0, 1, 1, 2])
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.5, 0.25, 0.25]])
    found = metrics.scores(y, p, LABELS, ["safe"])
    assert found["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    assert found["loss"] == pytest.approx(-np.log([0.8, 0.2, 0.9, 0.7, 0.25]).mean())
    # five bins of one sample each: 0.8 right, 0.6 wrong, 0.9 right, 0.7 right, 0.5 wrong
    assert found["ece"] == pytest.approx((0.2 + 0.6 + 0.1 + 0.3 + 0.5) / 5)
    assert found["n"] == 5
    assert found["per_class"]["phone"] == {
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "f1": pytest.approx(4 / 5),
        "support": 2,
    }
    # alarm scores: safe 0.2, 0.8; the rest 0.9, 0.7, 0.5. No false alarm allowed: only 0.9 lies above 0.8
    assert found["recall_at_1pct_fa"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_agrees_with_scikit_learn(k: int) -> None:
    y, p = draw(k, k=k)
    said = p.argmax(1)
    names = [str(i) for i in range(k)]
    found = metrics.scores(y, p, names)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, said))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, said))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, said, average="macro"))
    assert found["loss"] == pytest.approx(sk.log_loss(y, p))
    assert found["confusion"] == sk.confusion_matrix(y, said).tolist()
    area = sk.roc_auc_score(y, p[:, 1] if k == 2 else p, multi_class="ovr")
    assert found["auroc"] == pytest.approx(area)
    theirs = sk.precision_recall_fscore_support(y, said)
    for i, name in enumerate(names):
        row = found["per_class"][name]
        assert list(row.values()) == pytest.approx([column[i] for column in theirs])


def test_a_class_nobody_saw_or_said_is_left_out_of_macro_f1() -> None:
    y = np.array([0, 1, 1])
    p = np.eye(4)[[0, 1, 0]]
    assert metrics.macro_f1(y, p) == pytest.approx(sk.f1_score(y, p.argmax(1), average="macro"))
    assert metrics.scores(y, p, "abcd")["auroc"] is None


def test_auroc_counts_ties_half() -> None:
    y, p = draw(3, k=2)
    coarse = np.round(p, 1)
    assert metrics.scores(y, coarse, "ab")["auroc"] == pytest.approx(sk.roc_auc_score(y, coarse[:, 1]))


def test_sigmoid_rows_are_divided_by_their_sum() -> None:
    y = np.array([0, 1])
    p = np.array([[0.9, 0.9], [0.0, 0.0]])
    assert metrics.loss(y, p) == pytest.approx(np.log(2))
    assert metrics.ece(y, p) == pytest.approx(0.0)  # both are unsure by a half, and half of them are right


def test_the_loss_of_a_certain_mistake_is_finite() -> None:
    assert metrics.loss(np.array([0]), np.array([[0.0, 1.0]])) == pytest.approx(-np.log(1e-7))


def test_reliability_sums_up_to_the_error() -> None:
    y, p = draw(5, n=500)
    bins = metrics.reliability(y, p)
    assert sum(b["count"] for b in bins) == 500
    gap = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 500
    assert gap == pytest.approx(metrics.ece(y, p))


def test_recall_at_one_percent_false_alarms_against_every_threshold() -> None:
    for seed in range(20):
        y, p = draw(seed, n=750, k=3)
        p = np.round(p, 2) + 0.001  # ties
        score, safe = 1 - metrics.normalised(p)[:, 0], y == 0
        allowed = [t for t in [*score, np.inf] if (score[safe] >= t).mean() <= 0.01]
        expected = (score[~safe] >= min(allowed)).mean()
        # the smallest threshold lies just above the first safe score that is one too many, so it may catch more than
        # the smallest score that is itself a threshold
        too_many = max(t for t in score[safe] if (score[safe] >= t).mean() > 0.01)
        found = metrics.scores(y, p, LABELS, ["safe"])["recall_at_1pct_fa"]
        assert found == pytest.approx((score[~safe] > too_many).mean())
        assert found >= expected - 1e-12


def test_recall_at_one_percent_false_alarms_is_none_where_it_means_nothing() -> None:
    y, p = draw(0)
    for truth, safe in ((y, []), (y, LABELS), (np.ones_like(y), ["safe"]), (np.zeros_like(y), ["safe"])):
        assert metrics.scores(truth, p, LABELS, safe)["recall_at_1pct_fa"] is None


@pytest.mark.parametrize(
    "y, p",
    [
        (np.array([], int), np.zeros((0, 3))),
        (np.array([3]), np.ones((1, 3))),
        (np.array([-1]), np.ones((1, 3))),
        (np.array([0.5]), np.ones((1, 3))),
        (np.array([0, 1]), np.ones((1, 3))),
        (np.array([0]), np.full((1, 3), np.nan)),
        (np.array([0]), np.array([[1.5, -0.5]])),
        (np.array([0]), np.ones((1, 1))),
    ],
)
def test_nonsense_is_refused(y: np.ndarray, p: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        metrics.accuracy(y, p)


@settings(max_examples=80)
@given(wild(), st.randoms())
def test_bounds_and_order_does_not_matter(sample: tuple[np.ndarray, np.ndarray], chance: object) -> None:
    y, p = sample
    labels = [str(k) for k in range(p.shape[1])]
    found = metrics.scores(y, p, labels, labels[:1])
    for name in metrics.METRICS:
        value = found[name]
        assert value is None or (np.isfinite(value) and 0 <= value <= (17 if name == "loss" else 1 + 1e-9)), name
    assert np.sum(found["confusion"]) == len(y)
    assert sum(row["support"] for row in found["per_class"].values()) == len(y)
    order = np.random.default_rng(chance.randint(0, 99)).permutation(len(y))  # type: ignore[attr-defined]
    again = metrics.scores(y[order], p[order], labels, labels[:1])
    for name in metrics.METRICS:
        assert again[name] == pytest.approx(found[name], abs=1e-9), name


@settings(max_examples=60)
@given(wild(), st.integers(1, 4))
def test_intervals_are_ordered_and_never_nan(sample: tuple[np.ndarray, np.ndarray], number: int) -> None:
    y, p = sample
    groups = [f"g{i % number}" for i in range(len(y))]
    found = metrics.interval(metrics.METRICS, y, p, groups, draws=40, safe=[0])
    assert list(found) == list(metrics.METRICS)
    for name, ends in found.items():
        assert ends is None or (np.isfinite(ends).all() and ends[0] <= ends[1]), name
    if number == 1 or len(y) == 1:
        assert set(found.values()) == {None}


def test_each_sample_without_a_group_is_its_own() -> None:
    codes, number = metrics.clusters(["b", "", "a", "", "b"])
    assert number == 4
    assert codes.tolist() == [1, 2, 0, 3, 1]
    assert metrics.clusters(["x", "x"])[1] == 1


def test_the_fast_bootstrap_is_the_plain_one() -> None:
    """Every metric, draw by draw, against the figure of the samples written out as often as they were drawn."""
    y, p = draw(1, n=60)
    codes, number = metrics.clusters([f"g{i % 7}" for i in range(60)])
    weights = np.random.default_rng(0).multinomial(number, [1 / number] * number, size=25).astype(float)
    compared = 0
    for name in metrics.METRICS:
        drawn, _ = metrics._drawn(name, y, p, codes, weights, [0])
        for d, row in enumerate(weights):
            index = np.repeat(np.arange(60), row[codes].astype(int))
            plain = metrics.scores(y[index], p[index], LABELS, ["safe"])[name]
            assert drawn[0, d] == pytest.approx(plain), name
            compared += 1
    assert compared == 25 * len(metrics.METRICS) == 175


def test_groups_widen_the_interval() -> None:
    """Ten people of 100 frames, each all right or all wrong: ten facts, not a thousand."""
    y = np.zeros(1000, int)
    groups = [f"p{i // 100}" for i in range(1000)]
    right = (np.arange(1000) // 100) % 2
    p = np.stack([right * 0.8 + 0.1, 0.9 - right * 0.8], axis=1)
    by_person = metrics.interval(["accuracy"], y, p, groups)["accuracy"]
    by_frame = metrics.interval(["accuracy"], y, p, [""] * 1000)["accuracy"]
    assert by_person is not None and by_frame is not None
    assert by_person == pytest.approx([0.12, 0.88], abs=0.06)  # Student's t: 0.5 ± 2.26 · 0.5 / sqrt(9)
    assert by_frame == pytest.approx([0.469, 0.531], abs=0.01)  # binomial, n = 1000


@pytest.mark.slow
@pytest.mark.parametrize("number, least", [(5, 0.91), (9, 0.93), (43, 0.93)])
@pytest.mark.parametrize("seeds, luck", [(1, 0.0), (3, 0.15)])
def test_the_interval_covers_the_truth_as_often_as_it_says(number: int, least: float, seeds: int, luck: float) -> None:
    """Two nets of the same skill meet people whom each knows more or less well, after more or less lucky trainings."""
    rng, trials, n = np.random.default_rng(0), {5: 1500, 9: 800, 43: 400}[number], 12
    groups, inside = np.repeat([f"g{i}" for i in range(number)], n), 0
    for trial in range(trials):
        y, said = rng.integers(3, size=number * n), []
        for skill in 1 + 0.8 * rng.normal(size=(2, number)):
            z = rng.normal(size=(seeds, number * n, 3))
            z[:, np.arange(number * n), y] += np.repeat(skill, n) + luck * rng.normal(size=(seeds, 1))
            said.append(np.exp(z) / np.exp(z).sum(-1, keepdims=True))
        ends = metrics.paired(y, *said, groups, draws=1000, seed=trial).ci95
        assert ends is not None
        inside += ends[0] <= 0 <= ends[1]
    assert least <= inside / trials <= 0.99


def test_students_t_is_scipys() -> None:
    for free in (1.0, 1.7, 2.0, 5.0, 42.0, 1e6):
        assert metrics._student(free) == pytest.approx(stats.t.ppf(0.975, free), rel=1e-3)


def test_one_training_has_hesterbergs_quantiles() -> None:
    y, p = draw(7, n=90)
    groups = [f"g{i % 9}" for i in range(90)]
    ends = metrics.interval(["accuracy"], y, p, groups)["accuracy"]
    weights, codes, _ = metrics.bootstrap_weights(groups, 1, metrics.DRAWS, 0)
    right = np.bincount(codes, p.argmax(1) == y) / np.bincount(codes)
    tail = stats.norm.cdf(-np.sqrt(9 / 8) * stats.t.ppf(0.975, 8))
    assert ends == pytest.approx(np.quantile(weights @ right / 9, [tail, 1 - tail]), abs=1e-3)


def test_what_sorts_is_taken_fold_by_fold() -> None:
    """The second fold's net is as good but shifted: pooled, its safe samples would stand above the first's dangers."""
    y = np.tile([0, 0, 0, 1, 1, 1], 2)
    danger = np.array([0.1, 0.2, 0.35, 0.3, 0.4, 0.45, 0.6, 0.7, 0.85, 0.8, 0.9, 0.95])
    p, folds, labels = np.stack([1 - danger, danger], 1), np.repeat([0, 1], 6), ["safe", "danger"]
    found = metrics.scores(y, p, labels, ["safe"], folds)
    assert found["auroc"] == pytest.approx(8 / 9) and found["recall_at_1pct_fa"] == pytest.approx(2 / 3)
    pooled = metrics.scores(y, p, labels, ["safe"])
    assert pooled["auroc"] < 0.8 and pooled["recall_at_1pct_fa"] == pytest.approx(1 / 3)
    only = metrics.scores(np.append(y, 0), np.append(p, [[0.5, 0.5]], 0), labels, ["safe"], np.append(folds, 2))
    assert only["auroc"] == found["auroc"]  # a fold without dangers has none
    groups = [f"g{i // 3}" for i in range(12)]
    ends = metrics.interval(["auroc"], y, p, groups, folds=folds)["auroc"]
    assert ends is not None and ends[0] <= 8 / 9 <= ends[1]


def test_the_same_seed_gives_the_same_interval() -> None:
    y, p = draw(2)
    groups = [str(i % 9) for i in range(200)]
    one = metrics.interval(metrics.METRICS, y, p, groups, draws=100, seed=4)
    assert one == metrics.interval(metrics.METRICS, y, p, groups, draws=100, seed=4)
    assert one != metrics.interval(metrics.METRICS, y, p, groups, draws=100, seed=5)


def test_paired_is_surer_than_two_intervals() -> None:
    """b is a with one wrong frame in ten put right in every group: small, and certain."""
    y, a = draw(3, n=600, skill=0.5)
    b = a.copy()
    wrong = np.flatnonzero(a.argmax(1) != y)[::5]
    b[wrong] = np.eye(3)[y[wrong]]
    groups = [f"g{i % 12}" for i in range(600)]
    found = metrics.paired(y, a, b, groups, "accuracy", draws=400)
    assert found.difference == pytest.approx(len(wrong) / 600)
    assert found.p_better == 1.0
    assert found.ci95 is not None
    low, high = found.ci95
    assert 0 < low < found.difference < high
    alone = metrics.interval(["accuracy"], y, a, groups, draws=400)["accuracy"]
    assert alone is not None and high - low < (alone[1] - alone[0]) / 1.5


def test_paired_with_itself_is_nothing() -> None:
    y, p = draw(3)
    found = metrics.paired(y, p, p, [str(i % 9) for i in range(200)])
    assert found == metrics.Paired(0.0, [0.0, 0.0], 0.5)


def test_paired_says_nothing_of_one_group() -> None:
    y, a = draw(3)
    _, b = draw(3, skill=3.0)
    found = metrics.paired(y, a, b, ["one"] * 200)
    assert found.difference > 0.2
    assert found.ci95 is None and found.p_better is None


def test_several_trainings_are_averaged_and_drawn_too() -> None:
    y, a = draw(4)
    _, b = draw(4, skill=2.0)
    groups = [str(i % 20) for i in range(200)]
    steady = metrics.interval(["accuracy"], y, np.stack([a, a]), groups)["accuracy"]
    shaky = metrics.interval(["accuracy"], y, np.stack([a, b]), groups)["accuracy"]
    assert steady is not None and shaky is not None
    assert shaky[1] - shaky[0] > 1.5 * (steady[1] - steady[0])
    gain = metrics.paired(y, np.stack([a, a]), np.stack([a, b]), groups, "accuracy")
    assert gain.difference == pytest.approx((metrics.accuracy(y, b) - metrics.accuracy(y, a)) / 2)


def test_ten_thousand_samples_take_no_time() -> None:
    y, p = draw(6, n=10_000, k=10)
    found = metrics.interval(["accuracy", "macro_f1", "loss", "ece"], y, p, [""] * 10_000)
    exact = 1.96 * np.sqrt(metrics.accuracy(y, p) * (1 - metrics.accuracy(y, p)) / 10_000)
    ends = found["accuracy"]
    assert ends is not None and (ends[1] - ends[0]) / 2 == pytest.approx(exact, rel=0.1)


def test_clips_are_the_mean_of_their_frames() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    found = metrics.by_sequence(["v1", "v2", "v1", ""], np.array([0, 1, 0, 1]), p)
    assert found is not None
    y, clips, first = found
    assert y.tolist() == [0, 1, 1]
    assert clips == pytest.approx(np.array([[0.6, 0.4], [0.2, 0.8], [0.6, 0.4]]))
    assert first.tolist() == [0, 1, 3]
    stacked = metrics.by_sequence(["v1", "v2", "v1", ""], np.array([0, 1, 0, 1]), np.stack([p, p]))
    assert stacked is not None and stacked[1] == pytest.approx(np.stack([clips, clips]))


def test_no_clips_of_single_frames_or_of_mixed_labels() -> None:
    p = np.full((2, 2), 0.5)
    assert metrics.by_sequence(["v1", "v2"], np.array([0, 1]), p) is None
    assert metrics.by_sequence(["v1", "v1"], np.array([0, 1]), p) is None


def test_temperature_sharpens_what_is_too_unsure_and_softens_what_is_too_sure() -> None:
    # Three of four right at 0.9 each: the loss is least where p = 3/4, so logits ln 9 are divided by ln 9 / ln 3 = 2
    y, p = [0, 0, 0, 1], np.tile([0.9, 0.1], (4, 1))
    assert metrics.temperature(y, p) == pytest.approx(2.0, rel=1e-3)
    assert metrics.apply_temperature(p, 2.0)[0] == pytest.approx([0.75, 0.25])
    unsure = np.tile([0.7, 0.3], (4, 1))
    assert metrics.temperature(y, unsure) == pytest.approx(np.log(7 / 3) / np.log(3), rel=1e-3)
    assert metrics.ece(y, metrics.apply_temperature(p, metrics.temperature(y, p))) == pytest.approx(0, abs=1e-3)


def test_a_sigmoid_head_is_tempered_class_by_class() -> None:
    p = metrics.apply_temperature([[0.9, 0.5, 0.1]], 2.0, "sigmoid")
    assert p[0] == pytest.approx([0.75, 0.5, 0.25])


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 5), st.sampled_from(["softmax", "sigmoid"]))
def test_tempering_keeps_the_order_and_can_be_undone(seed: int, heat: float, head: str) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, (5, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) if head == "softmax" else 1 / (1 + np.exp(-logits))
    warm = metrics.apply_temperature(p, heat, head)
    assert np.array_equal(warm.argmax(1), p.argmax(1))
    assert metrics.apply_temperature(warm, 1 / heat, head) == pytest.approx(p, abs=1e-6)


def test_the_operating_point_is_the_lowest_threshold_within_the_rate() -> None:
    # Safe samples score 0.1 0.2 0.3 0.8, dangers 0.25 0.6 0.9; class 0 is safe
    score = np.array([0.1, 0.2, 0.3, 0.8, 0.25, 0.6, 0.9])
    y, p = [0, 0, 0, 0, 1, 1, 1], np.stack([1 - score, score], 1)
    point = metrics.operating_point(y, p, [0], 0.25)
    assert point is not None
    assert 0.3 < point["threshold"] < 0.6  # at 0.6 one safe sample of four alarms, at 0.3 two would
    assert (point["false_alarm_rate"], point["recall"]) == (0.25, pytest.approx(2 / 3))
    none = metrics.operating_point(y, p, [0], 0.1)
    assert none is not None
    assert 0.8 < none["threshold"] < 0.9
    assert (none["false_alarm_rate"], none["recall"]) == (0.0, pytest.approx(1 / 3))


@settings(max_examples=120)
@given(
    st.integers(2, 30).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n)] * 2)),
    st.sampled_from([0.0, 0.01, 0.1, 1 / 3, 0.5]),
    st.sampled_from([1.0, 1e-8, 1e-16, 1e-17]),
    st.booleans(),
)
def test_the_operating_point_never_exceeds_its_rate(
    drawn: tuple[list[int], list[int]], rate: float, scale: float, grouped: bool
) -> None:
    """Also where scores are coarse, tied, or neighbours between which there is no number."""
    score = 0.5 + scale * np.array(drawn[0]) / 12
    y, groups = np.array(drawn[1]) % 2, np.array([f"g{i % 3}" for i in range(len(score))])
    p = np.stack([1 - score, score], 1)
    point = metrics.operating_point(y, p, [0], rate, groups if grouped else None)
    assert (point is None) == (len(set(y)) < 2)
    if point is None:
        return
    alarm = metrics.alarm_score(p, [0]) >= point["threshold"]
    assert alarm[y == 0].mean() == point["false_alarm_rate"] <= rate + 1e-9
    assert alarm[y == 1].mean() == point["recall"]
    if grouped:
        assert all(alarm[(y == 0) & (groups == g)].mean() <= 2 * rate + 1e-9 for g in set(groups[y == 0]))


def test_one_person_of_many_alarms_does_not_hide_behind_the_others() -> None:
    """Five people of a hundred safe frames; one of them looks dangerous in ten: 2 % of all, and 10 % of his."""
    score = np.concatenate([np.full(490, 0.1), np.linspace(0.5, 0.6, 10), np.full(100, 0.9)])
    y, groups = np.repeat([0, 1], [500, 100]), [*np.repeat(list("abcde"), 100), *"a" * 100]
    p, safe = np.stack([1 - score, score], 1), y == 0
    plain = metrics.operating_point(y, p, [0], 0.02)
    assert plain is not None
    found = metrics.false_alarms(p[safe], [0], plain["threshold"], np.array(groups)[safe])
    assert plain["false_alarm_rate"] == 0.02 and found.worst == pytest.approx(0.1) and found.groups == 5
    assert found.upper is not None and 0.04 < found.upper <= 0.1
    six = metrics.false_alarms(p[safe], [0], 0.7, np.array(groups)[safe])
    assert six.worst == 0 and six.upper == pytest.approx(3 / 500)  # none in 500: at most 3 in 500
    assert metrics.false_alarms(p[:100], [0], 0.7, ["a"] * 100).upper is None


def test_where_a_safe_sample_scores_highest_nothing_may_alarm() -> None:
    point = metrics.operating_point([0, 1], [[0.1, 0.9], [0.5, 0.5]], [0], 0.1)
    assert point is not None
    assert point["threshold"] > 0.9
    assert (point["false_alarm_rate"], point["recall"]) == (0.0, 0.0)
    for safe, y in (((), [0, 1]), ((0, 1), [0, 1]), ((0,), [1, 1])):
        assert metrics.operating_point(y, [[0.1, 0.9], [0.5, 0.5]], safe, 0.1) is None


def test_agreement_counts_other_answers_and_other_alarms() -> None:
    a = [[0.6, 0.4], [0.45, 0.55], [0.2, 0.8]]
    b = [[0.6, 0.4], [0.55, 0.45], [0.3, 0.7]]
    said = metrics.agreement(a, b, [0], 0.5)
    assert said["n"] == 3
    assert said["max_difference"] == pytest.approx(0.1)
    assert said["top1_agreement"] == pytest.approx(2 / 3)
    assert said["decision_flips"] == 1
    assert metrics.agreement(a, b)["decision_flips"] is None
    with pytest.raises(ValueError, match="must be the same"):
        metrics.agreement(a, b[:2])


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("right", "of", "expected"), [(3, 4, 2.0), (9, 10, 1.0), (27, 28, 2 / 3), (4, 4, 0.25), (0, 4, 20)]
)
def test_the_temperature_makes_it_as_sure_as_it_is_right(head: str, right: int, of: int, expected: float) -> None:
    """It says 9 to 1; right 27 times of 28, ln 9 / ln 27. Never wrong: no temperature is low enough."""
    y, p = (np.arange(of) >= right).astype(int), np.tile([0.9, 0.1], (of, 1))
    assert metrics.temperature(y, p, head) == pytest.approx(expected, rel=1e-6)


def test_no_other_temperature_surprises_less() -> None:
    y, p = draw(8, n=2000, k=6)
    sharp = metrics.apply_temperature(p, 0.3)
    found = metrics.temperature(y, sharp)
    least = metrics.loss(y, metrics.apply_temperature(sharp, found))
    for other in (0.9 * found, 0.99 * found, 1.01 * found, 1.1 * found, 20.0):
        assert metrics.loss(y, metrics.apply_temperature(sharp, other)) > least
    assert metrics.ece(y, metrics.apply_temperature(sharp, found)) < metrics.ece(y, sharp)


def test_what_a_float32_can_hold_is_tempered_exactly() -> None:
    far = metrics.apply_temperature(np.array([[1.0, 1e-30]], np.float32), 5)  # a net's logits may well be 69 apart
    assert far[0, 1] == pytest.approx(1e-6, rel=1e-3)
    for head in ("softmax", "sigmoid"):
        assert np.isfinite(metrics.apply_temperature(np.array([[0, 1], [1, 0]], np.float32), 0.25, head)).all()


def test_the_operating_point_catches_what_the_metric_says() -> None:
    y, p = draw(9, n=500, k=4)
    point = metrics.operating_point(y, p, [0, 1], 0.01)
    assert point is not None
    assert point["recall"] == metrics.scores(y, p, "abcd", "ab")["recall_at_1pct_fa"]
    assert point["false_alarm_rate"] <= 0.01
    with pytest.raises(ValueError, match="rate 1"):
        metrics.operating_point(y, p, [0], 1)
