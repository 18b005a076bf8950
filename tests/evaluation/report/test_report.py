import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import LABELS, Reader, fabricate, three

from stillwatch import metrics
from stillwatch.errors import UserError
from stillwatch.evaluation.pooling import DISTILLATION
from stillwatch.evaluation.report import report
from stillwatch.evaluation.verdict import WORDS, Comparison
from stillwatch.run import Run

SIX = {"data": {"folds": 6}}


def verdict(runs: list[Run]) -> dict[str, Any]:
    found, _ = report.assess(runs)
    assert found["verdict"] is not None
    return dict(found["verdict"])


# ---- the verdict


def test_two_runs_that_are_one_are_no_comparison(tmp_path: Path) -> None:
    alone, distilled = (fabricate(tmp_path, kind) for kind in ("alone", "distilled"))
    shutil.copyfile(alone.path / "predictions/test.npz", distilled.path / "predictions/test.npz")
    with pytest.raises(UserError, match="are the same: they agree on all 120 samples to the last digit"):
        report.assess([alone, distilled])


def test_a_test_on_which_a_constant_answer_is_as_good_is_said(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path, "alone", skill=0.01), fabricate(tmp_path, "distilled", skill=1.6)]
    warnings = report.assess(runs)[0]["warnings"]
    assert [line.split(":")[0] for line in warnings if "one constant answer" in line] == ["Student alone"]


def test_it_helped(tmp_path: Path) -> None:
    found = verdict(three(tmp_path, distilled=1.6, seeds=2))
    assert found["helped"] == "yes" and 0 < found["ci95"][0] < found["difference"] < found["ci95"][1]
    assert found["metric"] == "macro_f1" and found["groups"] == 9 and found["seeds"] == 2 and found["pairs"] == 6
    said = found["sentence"]
    assert said.startswith(
        f"Distillation helped: macro-F1 rose by {100 * found['difference']:.1f} points (95 % interval"
    )
    assert said.endswith(", from the spread of 9 new people and 2 seeds).")


def test_it_hurt(tmp_path: Path) -> None:
    found = verdict(three(tmp_path, distilled=0.5, seeds=2))
    assert found["helped"] == "no" and found["ci95"][1] < 0
    low, high = (f"{-100 * end:.1f}" for end in reversed(found["ci95"]))
    assert found["sentence"].startswith("Distillation hurt: macro-F1 fell by ")
    assert f"(95 % interval {low} to {high}," in found["sentence"] and "−" not in found["sentence"]


def test_there_is_no_evidence(tmp_path: Path) -> None:
    found = verdict(three(tmp_path, distilled=1.0, seeds=2))
    assert found["helped"] == "unclear" and found["ci95"][0] < 0 < found["ci95"][1]
    assert found["sentence"].startswith("No evidence that distillation helped: macro-F1 changed by ")
    assert re.search(r"interval −\d+\.\d to \+\d+\.\d,", found["sentence"])


def test_few_groups_cannot_decide(tmp_path: Path) -> None:
    """Every one of five people does better, and that is no proof: two-sided, one of 16 such tests ends so by chance."""
    found, _ = report.assess(three(tmp_path, distilled=2.5, folds=5, groups=1, seeds=2))
    told = found["verdict"]
    assert told["ci95"][0] > 0.1 and [row["difference"] > 0 for row in told["by_group"]] == [True] * 5
    assert told["helped"] == "unclear" and told["sentence"].startswith("Cannot tell whether distillation helped")
    assert "the spread of 5 new people and 2 seeds), but where there are fewer than 6" in told["sentence"]
    assert any(line.startswith("only 5 groups") for line in found["warnings"])
    six = report.assess(three(tmp_path / "six", distilled=2.5, folds=6, groups=1, seeds=2, change=SIX))[0]["verdict"]
    assert (six["groups"], six["helped"]) == (6, "yes")


def test_one_seed_cannot_decide(tmp_path: Path) -> None:
    found = verdict(three(tmp_path, distilled=2.5))
    assert found["ci95"][0] > 0.1 and found["groups"] == 9 and found["helped"] == "unclear"
    assert "from the spread of 9 new people), but of one seed" in found["sentence"]


def test_one_group_gives_no_interval(tmp_path: Path) -> None:
    found, _ = report.assess(three(tmp_path, distilled=2.0, folds=1, groups=1, per_group=120))
    assert found["verdict"]["ci95"] is None and found["verdict"]["helped"] == "unclear"
    assert "no telling how the next one would do" in found["verdict"]["sentence"]
    assert found["models"]["teacher"]["ci95"]["accuracy"] is None
    assert any("single group" in line for line in found["warnings"])


def test_samples_without_a_group_stand_for_themselves(tmp_path: Path) -> None:
    runs = three(tmp_path, distilled=1.6, seeds=2)
    for run in runs:
        with np.load(run.path / "predictions" / "test.npz") as file:
            arrays = dict(file)
        run.save_arrays("predictions/test.npz", **arrays | {"group": np.full(120, "")})
    found, _ = report.assess(runs)
    assert found["verdict"]["groups"] == 360 and found["verdict"]["by_group"] == []
    assert found["split"]["groups"] is None and "of 360 test samples and 2 seeds" in found["verdict"]["sentence"]
    assert any(line.startswith("the samples have no group") for line in found["warnings"])


def test_a_tiny_gain_is_not_written_as_zero() -> None:
    found = Comparison(0.0004, [0.0001, 0.0007], 1.0, "macro_f1", 2, 2, 30, True, {})
    said = found.in_words(WORDS, "30 new drivers")
    assert said.startswith("Distillation helped: macro-F1 rose by 0.04 points (95 % interval 0.01 to 0.1, from")


# ---- folds and seeds


def test_folds_are_put_together_and_seeds_averaged(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path, "alone", fold, seed) for fold in (0, 1) for seed in (3, 7)]
    found, models = report.assess(runs)
    said = {(r.info.recipe["data"]["fold"], r.info.seed): np.load(r.path / "predictions" / "test.npz") for r in runs}
    each = []
    for seed in (3, 7):
        y, p = (np.concatenate([said[fold, seed][key] for fold in (0, 1)]) for key in ("y", "p"))
        each.append(metrics.scores(y, p, LABELS, ["Safe"], np.repeat([0, 1], 120)))
    mine = found["models"]["alone"]
    for name in metrics.METRICS:
        assert mine[name] == pytest.approx(np.mean([one[name] for one in each])), name
        assert mine["spread"][name] == pytest.approx(np.std([one[name] for one in each], ddof=1)), name
    assert mine["per_class"]["Phone"]["f1"] == pytest.approx(np.mean([one["per_class"]["Phone"]["f1"] for one in each]))
    assert np.allclose(mine["confusion"], np.mean([one["confusion"] for one in each], axis=0))
    assert mine["n"] == np.sum(mine["confusion"]) == 240
    assert mine["seeds"] == [3, 7] and mine["folds"] == [0, 1] and len(mine["runs"]) == 4
    assert models[0].p.shape == (2, 240, 3)
    for archive in said.values():
        archive.close()


def test_like_is_compared_with_like(tmp_path: Path) -> None:
    """Seed 1 has fold 0 only, and distilled lacks fold 2: what is left is folds 0 and 1 with seed 0."""
    runs = [fabricate(tmp_path, "alone", fold, 0) for fold in (0, 1, 2)]
    runs += [fabricate(tmp_path, "distilled", fold, 0) for fold in (0, 1)]
    runs += [fabricate(tmp_path, kind, 0, 1) for kind in ("alone", "distilled")]
    found, _ = report.assess(runs)
    for kind in ("alone", "distilled"):
        assert (found["models"][kind]["folds"], found["models"][kind]["seeds"]) == ([0, 1], [0])
        assert found["models"][kind]["n"] == 240
    left = [line for line in found["warnings"] if "left out" in line]
    assert len(left) == 2
    assert "toy-alone-003 (fold 2, seed 0)" in left[0] and "toy-alone-004 (fold 0, seed 1)" in left[0]


def test_seeds_enter_the_interval(tmp_path: Path) -> None:
    """One seed of the distilled student is good and one is bad: the interval must know."""
    runs = [fabricate(tmp_path, "alone", fold, seed) for fold in (0, 1, 2) for seed in (0, 1)]
    runs += [fabricate(tmp_path, "distilled", fold, 0, skill=1.9) for fold in (0, 1, 2)]
    lucky = verdict(runs)["ci95"]
    runs += [fabricate(tmp_path, "distilled", fold, 1, skill=0.8) for fold in (0, 1, 2)]
    both = verdict(runs)
    assert lucky[0] > 0 and both["ci95"][0] < 0 and both["helped"] == "unclear"
    assert both["seeds"] == 2 and len(both["by_pair"]) == 6
    first, second = both["differences"]["macro_f1"]["by_seed"]
    assert both["difference"] == pytest.approx((first + second) / 2)
    assert lucky[0] < first < lucky[1]


def test_the_order_of_the_samples_does_not_matter(tmp_path: Path) -> None:
    runs = three(tmp_path, distilled=1.6)
    before = verdict(runs)
    with np.load(runs[-1].path / "predictions" / "test.npz") as file:
        arrays = dict(file)
    order = np.random.default_rng(0).permutation(120)
    runs[-1].save_arrays("predictions/test.npz", **{name: array[order] for name, array in arrays.items()})
    assert verdict(runs) == before


def test_the_official_split_has_no_folds(tmp_path: Path) -> None:
    official = {"data": {"split": "official"}}
    runs = [fabricate(tmp_path, "alone", 0, change=official), fabricate(tmp_path, "distilled", 0, change=official)]
    recipe = runs[1].info.recipe
    runs[1].note(recipe=recipe | {"data": recipe["data"] | {"fold": 3}})
    again = [Run.open(run.path) for run in runs]
    assert again[1].recipe.data.fold == 3
    assert verdict(again)["pairs"] == 1


def test_the_teacher_is_judged_on_its_students_folds(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path, "teacher", fold, skill=3.0) for fold in (0, 1, 2)]
    runs += [fabricate(tmp_path, kind, 1) for kind in ("alone", "distilled")]
    found, _ = report.assess(runs)
    assert found["models"]["teacher"]["folds"] == [1]
    assert found["retention"] == pytest.approx(
        found["models"]["distilled"]["accuracy"] / found["models"]["teacher"]["accuracy"]
    )
    assert found["compression_ratio"] == pytest.approx(7.20, abs=0.005)


# ---- what cannot be compared


def refused(runs: list[Run]) -> str:
    with pytest.raises(UserError) as error:
        report.assess(runs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "other, key",
    [
        ({"change": {"data": {"split": "ratio"}}}, "data.split"),
        ({"change": {"data": {"folds": 4}}}, "data.folds"),
        ({"change": {"data": {"seed": 5}}}, "data.seed"),
        ({"fingerprint": "beef"}, "fingerprint"),
        ({"change": {"labels": ["Safe", "Phone", "Sleep"]}}, "labels"),
    ],
)
def test_other_splits_are_refused(tmp_path: Path, other: dict[str, Any], key: str) -> None:
    said = refused([fabricate(tmp_path, "alone"), fabricate(tmp_path, "distilled", **other)])
    assert "toy-alone-001" in said and "toy-distilled-001" in said and f"{key} is" in said


def test_runs_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    good = fabricate(tmp_path, "alone")
    assert "toy-alone-002 are both alone runs of fold 0 and seed 0" in refused([good, fabricate(tmp_path, "alone")])
    assert 'status is "stopped"' in refused([good, fabricate(tmp_path, "distilled", status="stopped")])
    assert "nothing to compare" in refused([good, fabricate(tmp_path, "audit")])
    assert "no runs given" in refused([])
    no_predictions = fabricate(tmp_path, "teacher", skill=0)
    assert "no predictions of the test split" in refused([good, no_predictions])


def test_folds_that_overlap_are_refused(tmp_path: Path) -> None:
    one, two = fabricate(tmp_path, "alone", 0), fabricate(tmp_path, "alone", 1)
    (two.path / "predictions" / "test.npz").write_bytes((one.path / "predictions" / "test.npz").read_bytes())
    assert "both tested 'test/0/0000.jpg'" in refused([one, two])


def test_other_samples_in_one_fold_are_refused(tmp_path: Path) -> None:
    assert "different samples" in refused(
        [fabricate(tmp_path, "alone"), fabricate(tmp_path, "distilled", per_group=41)]
    )
    assert "different samples" in refused(
        [fabricate(tmp_path, "teacher"), fabricate(tmp_path, "teacher", seed=1, groups=2)]
    )


def test_the_same_run_twice_counts_once(tmp_path: Path) -> None:
    run = fabricate(tmp_path, "alone")
    found, _ = report.assess([run, Run.open(run.path)])
    assert found["models"]["alone"]["runs"] == ["toy-alone-001"]


# ---- missing pieces and warnings


@pytest.mark.parametrize("kind", ["teacher", "alone", "distilled"])
def test_one_run_alone_makes_a_report(tmp_path: Path, kind: str) -> None:
    found, _ = report.assess([fabricate(tmp_path, kind, cost=None)])
    assert found["verdict"] is None and found["compression_ratio"] is None and found["retention"] is None
    assert found["models"][kind]["params"] is None
    assert sum("no verdict" in line or "no compression ratio" in line for line in found["warnings"]) == 2


def test_warnings_say_what_is_not_equal(tmp_path: Path) -> None:
    runs = [
        fabricate(tmp_path, "teacher", 1, skill=0.3),
        fabricate(tmp_path, "alone", 0, change={"fit": {"epochs": 9}}),
    ]
    runs.append(fabricate(tmp_path, "distilled", 0, change={"fit": {"lr": 0.1}}, parent="toy-teacher-001"))
    lines = report.assess(runs)[0]["warnings"]
    expected = [
        "student alone was trained for 9 epochs, distilled for 3",
        "alone and distilled also differ in fit.lr",
        "toy-distilled-001 is tested on fold 0, but its teacher toy-teacher-001 was trained for fold 1",
        "Student distilled is above its teacher in macro-F1",
        "the teacher was tested on other folds",
        "one seed only (Student alone, Student distilled)",
    ]
    for start in expected:
        assert sum(line.startswith(start) for line in lines) == 1, start


def test_a_stranger_among_the_teachers_is_named(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path, "teacher"), fabricate(tmp_path, "distilled", parent="runs/toy-teacher-009")]
    assert any("toy-teacher-009, which is not among" in line for line in report.assess(runs)[0]["warnings"])


def test_the_audits_warnings_come_once(tmp_path: Path) -> None:
    lines = report.assess([fabricate(tmp_path, "alone", fold) for fold in (0, 1, 2)])[0]["warnings"]
    assert [line for line in lines if "twins" in line] == ["10 pictures of the test are twins of training pictures"]


def test_a_small_test_is_called_small(tmp_path: Path) -> None:
    lines = report.assess([fabricate(tmp_path, "alone", per_group=20)])[0]["warnings"]
    assert any(line.startswith("only 60 test samples") for line in lines)


def test_the_gap_between_known_and_new_people_is_shown(tmp_path: Path) -> None:
    found, _ = report.assess([fabricate(tmp_path, "alone", fold, valid=4.0) for fold in (0, 1)])
    gap = found["models"]["alone"]["seen"]
    assert gap["known"] > 0.95 and gap["new"] == pytest.approx(found["models"]["alone"]["accuracy"])
    assert any("on people seen in training" in line for line in found["warnings"])
    other_fold = [fabricate(tmp_path, "distilled", valid=4.0, change={"data": {"valid": "fold"}})]
    assert report.assess(other_fold)[0]["models"]["distilled"]["seen"] is None


def test_clips_count_each_recording_once(tmp_path: Path) -> None:
    found, _ = report.assess(three(tmp_path, distilled=1.5, frames=8))
    clips = found["models"]["alone"]["clips"]
    assert clips["n"] == 3 * 3 * 40 // 8 and clips["accuracy"] > found["models"]["alone"]["accuracy"]
    assert found["verdict"]["clips"]["n"] == clips["n"]
    assert report.assess([fabricate(tmp_path / "pictures", "alone")])[0]["models"]["alone"]["clips"] is None


# ---- several recipes


def test_recipes_keep_their_names(tmp_path: Path) -> None:
    runs = three(tmp_path, distilled=1.6, seeds=2)
    runs += three(tmp_path, distilled=0.5, seeds=2, change={"name": "other"})
    found, _ = report.assess(runs)
    assert list(found["models"]) == [f"{recipe}/{kind}" for recipe in ("toy", "other") for kind in DISTILLATION]
    assert {family: row["verdict"]["helped"] for family, row in found["comparisons"].items()} == {
        "toy": "yes",
        "other": "no",
    }
    assert found["verdict"] == found["comparisons"]["toy"]["verdict"]


def test_students_of_one_recipe_are_told_apart_by_net(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path, "teacher"), fabricate(tmp_path, "alone"), fabricate(tmp_path, "distilled")]
    wide = {"student": {"net": {"name": "smallcnn", "options": {"width": 2}}}}
    runs += [fabricate(tmp_path, kind, change=wide) for kind in ("alone", "distilled")]
    found, _ = report.assess(runs)
    names = ["toy/teacher", "toy/smallcnn/alone", "toy/smallcnn/distilled"]
    assert list(found["models"]) == [*names, "toy/smallcnn-2/alone", "toy/smallcnn-2/distilled"]
    assert all(row["retention"] for row in found["comparisons"].values()) and len(found["comparisons"]) == 2


# ---- the mistakes, the page


def test_the_surest_mistakes_come_first_and_tell_different_stories(tmp_path: Path) -> None:
    found, models = report.assess([fabricate(tmp_path, "distilled", frames=10)])
    samples = found["mistakes"]["samples"]
    sure = [sample["probability"] for sample in samples]
    assert len(samples) > 5 and sure == sorted(sure, reverse=True)
    said = models[0].predictions
    place = {name: row for row, name in enumerate(said.id.tolist())}
    stories = [(said.sequence[place[s["id"]]], s["true"], s["predicted"]) for s in samples]
    assert max(stories.count(story) for story in stories) == 2
    for sample in samples:
        row = place[sample["id"]]
        assert sample["true"] == LABELS[said.y[row]] != sample["predicted"] == LABELS[said.p[row].argmax()]


def test_the_page_is_one_file_that_needs_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    asked: list[str] = []

    def pictures(ids: Any) -> dict[str, Any]:
        asked.extend(ids)
        gray, colour = np.zeros((28, 28, 1), np.uint8), np.full((120, 160, 3), 90, np.uint8)
        return {ids[0]: gray, ids[1]: colour, ids[2]: None}

    odd = {"labels": ["Safe", "<b>Phone & $x$", "Yawn"]}
    found = report.compare(three(tmp_path / "runs", distilled=1.6, change=odd, frames=4, valid=3.0), out, pictures)
    stored = json.loads((out / "report.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert stored == found
    assert {path.stem for path in out.glob("*.png")} == set(report.PAINTED)
    assert asked == [sample["id"] for sample in found["mistakes"]["samples"]]

    page = (out / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and not reader.tags & {"script", "link", "iframe", "b>phone"}
    assert len(reader.links) == 2 * len(report.PAINTED) + 2
    assert {link.partition(",")[0] for link in reader.links} == {"data:image/png;base64", "data:image/jpeg;base64"}
    assert "url(" not in page and "http" not in page.replace("https", "http").partition("</style>")[2].replace(
        "base64", ""
    )
    assert found["verdict"]["sentence"] in reader.text and "<b>Phone & $x$" in reader.text
    assert "mind its licence" in reader.text
    for model in found["models"].values():
        assert f"{100 * model['accuracy']:.1f} %" in reader.text


def test_a_poor_report_is_written_too_and_leaves_no_old_picture(tmp_path: Path) -> None:
    """One run without history, size or pictures; the folder holds an earlier, richer report."""
    run = fabricate(tmp_path, "alone", cost=None, best=None, change={"safe": [], "data": {"split": "official"}})
    (run.path / "metrics.jsonl").unlink()
    (run.path / "audit.json").unlink()
    out = tmp_path / "report"
    out.mkdir()
    (out / "difference.png").write_bytes(b"old")
    (out / "mine.png").write_bytes(b"kept")
    report.compare([run], out)
    assert {path.stem for path in out.glob("*.png")} == {
        "accuracy-loss-size", "confusion", "per-class", "reliability", "mine"
    }  # fmt: skip
    reader = Reader()
    reader.feed((out / "report.html").read_text())
    assert (
        reader.open == [] and "no verdict on distillation" in reader.text and "nan" not in reader.text.lower().split()
    )
