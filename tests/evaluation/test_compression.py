"""What pruning and INT8 cost, whether pruning beats a narrower student, and whose run stands beside whose."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import Reader, fabricate

from stillwatch import metrics
from stillwatch.evaluation import pooling
from stillwatch.evaluation.report import report
from stillwatch.evaluation.report.html import page
from stillwatch.predictions import read
from stillwatch.run import Run

WIDTHS = {"before": {"stem": 16, "body": 64}, "after": {"stem": 8, "body": 24}}


def size(share: float, weights: int = 4) -> dict[str, int]:
    return {"params": int(1_000_000 * share), "macs": int(20_000_000 * share), "bytes": int(1e6 * share * weights)}


def step(number: int, share: float, f1: float) -> dict[str, Any]:
    return {"step": number, **size(share), "valid": {"macro_f1": f1, "accuracy": f1 + 0.1}}


def stage(name: str, drop: float, ms: float, why: str = "", precision: str = "int8") -> dict[str, Any]:
    figures = {"macro_f1": 0.7 - drop / 100, "accuracy": 0.8, "drop": drop, "flips": 3, "ms": ms, "fp32_ms": 1.0}
    return {"name": name, "precision": precision, **figures, "bytes": 500_000, "kept": not why, "why": why}


STAGES = [
    stage("fp32", 0, 1.0, precision="fp32"),
    stage("post-training", 4.125, 0.8, "macro-F1 falls by 4.12 points <b>"),
    stage("accuracy-aware", -0.25, 0.7),
    stage("quantisation-aware", 0.3, 0.9),
]


def line(root: Path, fold: int = 0, seed: int = 0, pruned: float = 1.5, narrow: float = 1.5, **more: Any) -> list[Run]:
    """Teacher, distilled, narrow, pruned and quantised, each made from the one that it should be; skills to choose."""
    more = {"groups": 6} | more
    teacher = fabricate(root, "teacher", fold, skill=2.2, **more)
    about = more | {"fold": fold, "seed": seed}
    distilled = fabricate(root, "distilled", skill=1.5, parent=teacher.path.name, cost=size(1), **about)
    steps = [step(1, 0.8, 0.71), step(2, 0.6, 0.7)]
    light = {"cost": size(0.6), "before": size(1), "steps": steps, "widths": WIDTHS, "parent": distilled.path.name}
    small = fabricate(root, "pruned", skill=pruned, **about, **light)
    slim = {"cost": size(0.62), "target": size(0.6)["macs"], "widths": {"after": {"stem": 8, "body": 40}}}
    rival = fabricate(root, "narrow", skill=narrow, parent=teacher.path.name, **about, **slim)
    told = {"stages": STAGES, "stage": "accuracy-aware", "kept": True, "why": "", "temperature": 1.4}
    parent = small.path.name
    int8 = fabricate(root, "quantised", skill=pruned, parent=parent, cost=size(0.6, weights=1), **about, **told)
    return [teacher, distilled, rival, small, int8]


def two(root: Path, **more: Any) -> list[Run]:
    """Two seeds of a line, under one teacher."""
    return line(root, seed=0, **more) + line(root, seed=1, **more)[1:]


def rows(runs: list[Run]) -> dict[tuple[str, str], dict[str, Any]]:
    found, _ = report.assess(runs)
    return {(row["base"], row["candidate"]): row for row in found["compression"]}


def paired(base: Run, candidate: Run) -> dict[str, Any]:
    one, two = read(base), read(candidate)
    return vars(metrics.paired(one.y, one.p, two.p, one.group, "macro_f1"))


def keys(models: list[pooling.Model]) -> dict[str, pooling.ModelKey]:
    return {model.name: model.key for model in models}


# ---- the pairs


def test_each_is_compared_with_what_it_came_of(tmp_path: Path) -> None:
    runs = line(tmp_path, pruned=1.0, narrow=1.5)
    _, distilled, narrow, pruned, int8 = runs
    found = rows(runs)
    wanted = {
        ("distilled", "narrow"): ("narrow", distilled, narrow),
        ("distilled", "pruned"): ("pruned", distilled, pruned),
        ("narrow", "pruned"): ("baseline", narrow, pruned),
        ("pruned", "quantised"): ("int8", pruned, int8),
        ("distilled", "quantised"): ("both", distilled, int8),
    }
    assert set(found) == set(wanted)
    for pair, (about, base, candidate) in wanted.items():
        told = paired(base, candidate)
        assert found[pair]["about"] == about
        assert {key: found[pair][key] for key in told} == told, pair
    assert found["distilled", "quantised"]["ratio"] == {"params": 0.6, "macs": 0.6, "bytes": pytest.approx(0.15)}


def test_the_old_keys_are_as_they_were(tmp_path: Path) -> None:
    """Compressed runs beside them change nothing for teacher, alone and distilled but the list of models."""
    teacher, *students = line(tmp_path)
    alone = fabricate(tmp_path, "alone", skill=0.8, groups=6)
    plain, _ = report.assess([teacher, alone, students[0]])
    whole, _ = report.assess([teacher, alone, *students])
    for key in ("verdict", "compression_ratio", "retention", "split", "labels"):
        assert whole[key] == plain[key], key
    assert plain["verdict"]["ci95"][0] > 0 and plain["compression"] == plain["stages"] == plain["steps"] == []
    for name, figures in plain["models"].items():
        assert whole["models"][name] == figures
    assert list(whole["models"]) == ["teacher", "alone", "distilled", "narrow", "pruned", "quantised"]


@pytest.mark.parametrize(
    "pruned, narrow, outcome, price, contest",
    [
        (0.6, 1.9, "worse", "Pruning cost ", "A narrower student beats pruning: its macro-F1 is "),
        (2.6, 0.7, "better", "Pruning cost nothing: macro-F1 rose by ", "Pruning beats a narrower student: its macro"),
    ],
)
def test_it_is_said_in_words(
    tmp_path: Path, pruned: float, narrow: float, outcome: str, price: str, contest: str
) -> None:
    found = rows(two(tmp_path, pruned=pruned, narrow=narrow))
    row, fight = found["distilled", "pruned"], found["narrow", "pruned"]
    assert row["outcome"] == fight["outcome"] == outcome
    low, high = sorted(abs(100 * end) for end in row["ci95"])
    assert row["sentence"].startswith(f"{price}{abs(100 * row['difference']):.1f} points")
    assert f"(95 % interval {low:.1f} to {high:.1f}, from the spread of" in row["sentence"]
    assert row["sentence"].endswith(
        " of 6 new people and 2 seeds). It has 60 % of the parameters, 60 % of the multiply-adds and 60 % of the "
        "bytes of student distilled."
    )
    assert fight["sentence"].startswith(contest)
    assert fight["sentence"].endswith("The pruned one does 97 % of the narrower one's arithmetic.")
    assert fight["question"] == "Does pruning beat a narrower student of the same arithmetic?"


def test_no_evidence_is_not_called_free(tmp_path: Path) -> None:
    found = rows(line(tmp_path))
    row = found["pruned", "quantised"]
    assert row["outcome"] == "unclear" and row["ci95"][0] < 0 < row["ci95"][1]
    assert row["sentence"].startswith("No evidence that INT8 cost anything: macro-F1 changed by ")
    # a net and its own INT8 share the chance of training
    assert "one seed" not in row["sentence"] and row["sentence"].endswith("25 % of the bytes of student pruned.")
    assert found["distilled", "quantised"]["question"] == "What did pruning and INT8 cost together?"
    assert "of one seed, whose chance in training" in found["distilled", "quantised"]["sentence"]


def test_the_same_answers_cost_nothing(tmp_path: Path) -> None:
    runs = line(tmp_path)
    predictions = (runs[3].path / "predictions" / "test.npz").read_bytes()
    (runs[4].path / "predictions" / "test.npz").write_bytes(predictions)
    (runs[2].path / "predictions" / "test.npz").write_bytes(predictions)
    found, models = report.assess(runs)
    row = next(row for row in found["compression"] if row["about"] == "int8")
    boxes = dict(re.findall(r'small (\w+)"><span[^>]*>=</span><p><b>(.*?)</b>', page(found, keys(models), {}, {})))
    assert boxes == {"unclear": "Does pruning beat a narrower student of the same arithmetic?", "yes": row["question"]}
    assert row["outcome"] == "same" and row["difference"] == 0 and row["ci95"] == [0, 0]
    assert row["sentence"].startswith("INT8 cost nothing: macro-F1 is the same, over 6 new people and one seed.")


def test_few_groups_cannot_tell(tmp_path: Path) -> None:
    few = rows(line(tmp_path / "few", pruned=0.3, groups=3))["distilled", "pruned"]
    assert few["ci95"][1] < -0.1 and few["outcome"] == "unclear"
    assert few["sentence"].startswith("Cannot tell what pruning cost: macro-F1 changed by −")
    assert "of 3 new people), but where there are fewer than 6" in few["sentence"]
    one = rows(line(tmp_path / "one", pruned=0.3, groups=1, per_group=120))["distilled", "pruned"]
    assert one["ci95"] is None and "there is no telling how the next one would do" in one["sentence"]


# ---- folds, seeds, several ways


def test_a_pair_is_judged_on_the_folds_that_it_shares(tmp_path: Path) -> None:
    first, second = line(tmp_path, 0), line(tmp_path, 1)
    found, _ = report.assess([*first, second[1]])  # the distilled student has two folds, what came of it one
    assert found["models"]["distilled"]["folds"] == [0, 1] and found["models"]["pruned"]["folds"] == [0]
    row = next(row for row in found["compression"] if row["about"] == "pruned")
    assert row["folds"] == [0] and row["groups"] == 6
    assert row["difference"] == paired(first[1], first[3])["difference"]


def test_seeds_are_averaged_and_enter_the_interval(tmp_path: Path) -> None:
    runs = line(tmp_path, seed=0, pruned=1.6) + line(tmp_path, seed=1, pruned=0.6)[1:]
    row = rows(runs)["distilled", "pruned"]
    each = [paired(runs[1], runs[3])["difference"], paired(runs[5], runs[7])["difference"]]
    assert row["seeds"] == 2 and row["pairs"] == 2
    assert row["difference"] == pytest.approx(np.mean(each))
    assert row["differences"]["macro_f1"]["by_seed"] == pytest.approx(each)
    assert "of 6 new people and 2 seeds" in row["sentence"]


def test_two_ways_of_one_kind_are_told_apart(tmp_path: Path) -> None:
    """Pruned to 60 % and to 30 %, and both of them and the distilled student in INT8."""
    runs = line(tmp_path)
    deep = {"change": {"prune": {"keep": 0.3}}, "groups": 6, "cost": size(0.3)}
    small = fabricate(tmp_path, "pruned", skill=1.2, parent=runs[1].path.name, **deep)
    rival = fabricate(tmp_path, "narrow", skill=1.2, **deep)
    int8 = [fabricate(tmp_path, "quantised", groups=6, parent=run.path.name) for run in (runs[1], small)]
    found, _ = report.assess([*runs, small, rival, *int8])
    assert list(found["models"])[2:] == [
        "narrow-0.6", "narrow-0.3", "pruned-0.6", "pruned-0.3",
        "quantised-pruned-0.6", "quantised-distilled", "quantised-pruned-0.3",
    ]  # fmt: skip
    pairs = {(row["base"], row["candidate"]): row for row in found["compression"]}
    assert ("narrow-0.6", "pruned-0.6") in pairs and ("narrow-0.3", "pruned-0.3") in pairs
    assert ("narrow-0.6", "pruned-0.3") not in pairs
    assert pairs["pruned-0.3", "quantised-pruned-0.3"]["question"] == "What did INT8 cost? (Student INT8 (pruned 0.3))"
    assert pairs["distilled", "quantised-distilled"]["about"] == "int8"
    assert ("distilled", "quantised-pruned-0.3") in pairs


def test_a_limit_on_the_parameters_is_in_the_name(tmp_path: Path) -> None:
    change = {"prune": {"keep": 0.25, "size": 0.5}}
    assert pooling.variant(fabricate(tmp_path, "pruned", change=change), {}) == "0.25-size-0.5"
    assert pooling.variant(fabricate(tmp_path, "distilled", change=change), {}) == ""
    twice = fabricate(tmp_path, "pruned", parent="toy-pruned-001")
    assert pooling.variant(twice, {}) == "0.6-pruned-0.25-size-0.5"


def test_several_recipes_keep_to_themselves(tmp_path: Path) -> None:
    runs = line(tmp_path) + line(tmp_path, change={"name": "other"})
    assert set(rows(runs)) == {
        (f"{recipe}/{base}", f"{recipe}/{candidate}")
        for recipe in ("toy", "other")
        for base, candidate in (
            ("distilled", "narrow"), ("distilled", "pruned"), ("narrow", "pruned"),
            ("pruned", "quantised"), ("distilled", "quantised"),
        )
    }  # fmt: skip


# ---- what to beware of


def warned(runs: list[Run]) -> list[str]:
    return list(report.assess(runs)[0]["warnings"])


def test_a_missing_baseline_is_missed(tmp_path: Path) -> None:
    teacher, distilled, narrow, pruned, _ = line(tmp_path)
    start = "Student pruned: its baseline, a narrower student distilled for as long, is missing"
    assert f"{start}: give toy-narrow-001 too" in warned([teacher, distilled, pruned])
    assert not [one for one in warned([distilled, narrow, pruned]) if one.startswith(start)]
    narrow.note(status="failed")
    assert f"{start}, or was not made (prune.narrow)" in warned([teacher, distilled, pruned])


def test_a_baseline_of_other_arithmetic_is_no_equal_fight(tmp_path: Path) -> None:
    _, _, narrow, pruned, _ = line(tmp_path)
    assert not [one for one in warned([narrow, pruned]) if "equal fight" in one]
    narrow.note(cost=size(0.9))
    assert "Student narrower has 1.50 times the arithmetic of Student pruned: not an equal fight" in warned(
        [narrow, pruned]
    )


def test_a_parent_that_is_not_there_is_named(tmp_path: Path) -> None:
    _, _, narrow, pruned, _ = line(tmp_path)
    stranger = fabricate(tmp_path, "distilled", groups=6)
    lines = warned([stranger, narrow, pruned])
    missing = "Student pruned: toy-distilled-001, which it was made from, is not among the runs compared: "
    assert f"{missing}there is no telling what it cost" in lines
    assert ("distilled", "pruned") not in rows([stranger, narrow, pruned])
    assert not [one for one in lines if "no verdict on distillation" in one or "no compression ratio" in one]


def test_an_int8_that_may_not_leave_says_why(tmp_path: Path) -> None:
    *others, int8 = line(tmp_path)
    int8.note(kept=False, why="no faster than FP32")
    assert "Student INT8: toy-quantised-001 stays out of a bundle: no faster than FP32" in warned([*others, int8])
    assert not [one for one in warned(line(tmp_path / "good")) if "stays out" in one]


# ---- judged by itself, a run brings what it must be read beside


def names(runs: list[Run]) -> list[str]:
    return [run.path.name for run in runs]


def test_kin_are_parents_and_the_baseline(tmp_path: Path) -> None:
    _, distilled, narrow, pruned, int8 = line(tmp_path)
    whole = ["toy-teacher-001", "toy-distilled-001", "toy-pruned-001", "toy-narrow-001", "toy-quantised-001"]
    assert names(pooling.comparison_set(int8, "test")) == whole
    assert names(pooling.comparison_set(pruned, "test")) == [*whole[:2], "toy-narrow-001", "toy-pruned-001"]
    assert names(pooling.comparison_set(narrow, "test")) == ["toy-teacher-001", "toy-narrow-001"]
    assert names(pooling.comparison_set(distilled, "test")) == [
        "toy-distilled-001"
    ]  # as it was before there was compression
    assert len(report.assess(pooling.comparison_set(int8, "test"))[0]["compression"]) == 5


def test_kin_took_the_same_test(tmp_path: Path) -> None:
    teacher, distilled, _, pruned, int8 = line(tmp_path)
    teacher.note(fingerprint="beef")
    distilled.note(status="failed")
    (pruned.path / "predictions" / "test.npz").unlink()
    assert names(pooling.comparison_set(int8, "test")) == ["toy-narrow-001", "toy-quantised-001"]
    assert names(pooling.comparison_set(int8, "valid")) == ["toy-quantised-001"]


def test_of_several_baselines_the_one_of_its_size_and_fold(tmp_path: Path) -> None:
    pruned = line(tmp_path)[3]
    for share, fold in ((0.3, 0), (0.6, 1)):
        fabricate(tmp_path, "narrow", fold, target=size(share)["macs"])
    found = pooling.narrow_run(pruned)
    assert found is not None and found.path.name == "toy-narrow-001"


def test_a_chain_ends_where_a_folder_is_gone_and_a_ring_ends_too(tmp_path: Path) -> None:
    one, two = fabricate(tmp_path, "pruned", parent="toy-pruned-002"), fabricate(tmp_path, "pruned", parent="nowhere")
    assert names(pooling.ancestors(one, {})) == ["toy-pruned-002"]
    two.note(parent="toy-pruned-001")
    assert 2 <= len(pooling.ancestors(one, {})) < 20


# ---- the page


def told(runs: list[Run]) -> tuple[dict[str, Any], str]:
    """The report, and the page's text, without the pictures that take seconds to paint."""
    found, models = report.assess(runs)
    reader = Reader()
    reader.feed(page(found, keys(models), {}, {}))
    assert reader.open == []
    return found, reader.text


def test_the_page_shows_it(tmp_path: Path) -> None:
    runs = line(tmp_path)
    runs[1].note(best={"epoch": 2, "macro_f1": 0.654, "accuracy": 0.766})
    found, text = told(runs)
    for row in found["compression"]:
        assert (row["sentence"] in text) == (row["about"] != "narrow")
    for words in (
        "toy: what did compression cost?",
        "What compression cost",
        "left out: macro-F1 falls by 4.12 points <b>",
        "✓ kept",
        "good enough, but another one is better",
        "the float file: what the others are measured by",
        "−0.25",
        "logits divided by 1.40",
        "65.4 %",
        "80 %",
        "of the bytes of student distilled",
    ):
        assert words in text, words
    assert found["mistakes"]["model"] == "quantised"
    plain = told(runs[:2])[1]
    for words in ("What compression cost", "stage by stage", "step by step", "divided by"):
        assert words in text and words not in plain


def test_both_questions_are_asked_where_both_are_answered(tmp_path: Path) -> None:
    runs = [*line(tmp_path), fabricate(tmp_path, "alone", groups=6)]
    assert "toy: did distillation help, and what did compression cost?" in told(runs)[1]


def test_the_layers_are_painted(tmp_path: Path) -> None:
    _, _, narrow, pruned, _ = line(tmp_path / "runs")
    out = tmp_path / "report"
    found = report.compare([narrow, pruned], out)
    assert json.loads((out / "report.json").read_text()) == found
    assert (out / "widths.png").is_file() and "Channels of each layer" in (out / "report.html").read_text()
    assert found["steps"][0]["narrow"] == {"stem": 8, "body": 40}


def test_a_quantised_run_that_recorded_little(tmp_path: Path) -> None:
    """An older run, or one of another tool: no stage, no size, no parent."""
    run = fabricate(tmp_path, "quantised", groups=6, cost=None, best=None)
    found, _ = told([run])
    assert found["compression"] == [] and found["stages"] == []
    assert any(one.startswith("Student INT8: the student it was made from is not among") for one in found["warnings"])
