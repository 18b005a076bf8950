"""The bench: the table fits a terminal, the picture shows what the report says, and files are whole or as before."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from stillwatch.errors import UserError
from stillwatch.evaluation.report import bench
from stillwatch.run import KINDS

BLUE, DISTILLED, ALONE = (KINDS[kind].colour for kind in ("teacher", "distilled", "alone"))


def row(name: str, runtime: str, p50: float, **more: Any) -> dict[str, Any]:
    row = {
        "name": name, "kind": "file", "runtime": runtime, "precision": "fp32", "bytes": 2_500_000, "params": None,
        "figures": {"valid": {"macro_f1": 0.8}}, "threads": 1, "faithful": True, "difference": 1e-6,
        "latency_ms": {"p50": p50, "p95": 2 * p50, "p99": 3 * p50, "min": p50 / 2}, "throughput": 1000 / p50,
        "memory_mb": 91.6, "bare_mb": 30.0, "load_s": 0.25, "import_s": 0.1, "runs": None, "overhead": None,
        "why_not": None, "fastest": False,
    }  # fmt: skip
    assert set(more) <= set(row)
    return row | more


def rival(name: str, p50: float, **more: Any) -> dict[str, Any]:
    return row(name, "onnxruntime", p50, kind="rival", figures={}, faithful=None, **more)


ROWS = [
    row("model-int8.onnx", "openvino", 2.0, fastest=True),
    rival("detector", 2.1, overhead=1.05, runs={"file": "model-int8.onnx", "runtime": "openvino"}) | {"runtime": ""},
    row("model.onnx", "onnxruntime", 3.0, figures={"valid": {"macro_f1": 0.81}}),
    row("wrong.onnx", "onnxruntime", 3.5, faithful=False),
    rival("yolo-cls-n", 8.0, memory_mb=None, load_s=None),
    row("broken.onnx", "onnxruntime", 1.0, latency_ms=None, why_not="no"),
]


def report(rows: list[dict[str, Any]], threads: tuple[int, ...] = (1,), **machine: Any) -> dict[str, Any]:
    about = {"cpu": "a toy", "system": "none", "cores": 4, "pinned": True, "versions": {"onnxruntime": "1-abc"}}
    return {
        "bundle": {"name": "driving", "run": "driving-1", "shape": [112, 192, 1]},
        "machine": about | machine,
        "plan": {"threads": list(threads), "rounds": 200, "warmup": 20, "batch": 8},
        "rows": rows,
        "warnings": ["it was " + "very " * 40 + "busy"],
    }


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def places(png: bytes, colour: str) -> np.ndarray:
    """(n,2) row and column of the pixels of exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((pixels(png)[:, :1380] == wanted).all(-1))  # the legend stands to the right


def test_minutes_without_a_pause_stand_in_table_and_picture() -> None:
    heat = {"celsius": 50.0, "mhz": 1500.0, "most_mhz": 1500.0, "throttled": []}
    hot = heat | {"celsius": 81.0, "mhz": 900.0, "throttled": ["throttled"]}
    series = [
        {"seconds": 5.0, "calls": 9, "p50": 4.0, "p95": 5.0, **heat},
        {"seconds": 600.0, "calls": 9, "p50": 6.0, "p95": 7.0, **hot},
    ]
    told = report(ROWS) | {"heat": {"before": heat, "after": hot}}
    told["soak"] = {"name": "model.onnx", "runtime": "ncnn", "threads": 4, "minutes": 10.0, "series": series}
    lines = bench.table(told).splitlines()
    assert "before: 50 °C, 1500 of 1500 MHz" in lines
    assert "after: 81 °C, 900 of 1500 MHz, throttled (throttled)" in lines
    assert any(line.endswith("; 1.50 × the first") for line in lines)
    assert len(pixels(bench.picture(told))) > 1.5 * len(pixels(bench.picture(report(ROWS))))
    silent = heat | {"celsius": None}
    told["soak"]["series"] = [{**series[0], **silent}, {**series[1], **silent}]
    assert len(pixels(bench.picture(told)))


def test_the_table_says_it_all_in_aligned_columns() -> None:
    wide = [r | {"threads": 2} for r in ROWS]
    lines = bench.table(report(ROWS + wide, (1, 2))).splitlines()
    assert lines[:11] == [
        "a toy, 4 cores; onnxruntime 1",
        "",
        "1 thread on 1 core, 200 timed calls each, taking turns",
        "                                 p50    p95    p99   min  by 8  peak  start  file    F1",
        "  name             runtime        ms     ms     ms    ms   1/s    MB      s    MB     %",
        "* model-int8.onnx  openvino     2.00   4.00   6.00  1.00   500    92   0.25  2.50  80.0",
        "  detector                      2.10   4.20   6.30  1.05   476    92   0.25  2.50     –",
        "  model.onnx       onnxruntime  3.00   6.00   9.00  1.50   333    92   0.25  2.50  81.0",
        "! wrong.onnx       onnxruntime  3.50   7.00  10.50  1.75   286    92   0.25  2.50  80.0",
        "  yolo-cls-n       onnxruntime  8.00  16.00  24.00  4.00   125     –      –  2.50     –",
        "  detector runs model-int8.onnx in openvino: 1.050 × the time of the bare file",
    ]
    assert "2 threads on 2 cores, 200 timed calls each, taking turns" in lines
    assert "broken" not in "".join(lines)  # the bench's warnings say why
    assert lines[-3].startswith("warning: it was very") and lines[-1].endswith("busy")


def test_no_line_is_longer_than_a_terminal() -> None:
    long = [rival(f"eager:runs/a-very-long-name-of-a-run-{'x' * 60}", 123_456.0), row("m" * 90, "onnxruntime", 0.001)]
    text = bench.table(report(long, cpu="processor " * 20))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("…") == 2
    assert "123456  246912  370368" in text


def test_cores_are_claimed_only_where_they_were_held() -> None:
    for about, head in (
        ({"pinned": False}, "1 thread, 200"),
        ({"cores": 1}, "1 thread on 1 core, 200"),
        ({"cores": 0}, "1 thread, 200"),
    ):
        assert head in bench.table(report(ROWS, **about))


def test_the_picture_puts_left_what_is_fast_and_up_what_is_good() -> None:
    png = bench.picture(report(ROWS))
    assert png == bench.picture(report(ROWS))
    quick, good, wrong = (places(png, colour) for colour in (BLUE, DISTILLED, ALONE))
    assert min(len(quick), len(good)) > 100
    assert good[:, 0].mean() < quick[:, 0].mean() - 20
    assert good[:, 1].mean() > quick[:, 1].mean() + 20
    assert 0 < len(wrong) < len(good) / 2  # hollow: not faithful
    height = pixels(png).shape[0]
    assert quick[:, 0].max() < height * 0.6  # the lower part is the rivals'


def test_more_threads_have_no_part_in_the_picture() -> None:
    others = [r | {"threads": 2, "latency_ms": {k: 9 * v for k, v in r["latency_ms"].items()}} for r in ROWS[:5]]
    assert bench.picture(report(ROWS + others, (1, 2))) == bench.picture(report(ROWS))


def test_a_rival_is_shown_in_the_faster_of_its_runtimes() -> None:
    slower = rival("yolo-cls-n", 8.5) | {"runtime": "openvino"}
    assert bench.picture(report([*ROWS, slower])) == bench.picture(report(ROWS))
    assert bench.picture(report([*ROWS, slower | {"name": "other"}])) != bench.picture(report(ROWS))


@pytest.mark.parametrize("rows", [[], ROWS[-1:], ROWS[1:2], ROWS[:1], [rival(f"r{n}", 1 + n / 99) for n in range(30)]])
def test_odd_reports_are_drawn_and_told_too(rows: list[dict[str, Any]]) -> None:
    assert pixels(bench.picture(report(rows))).std() > 5
    assert "taking turns" in bench.table(report(rows))


@given(st.lists(st.floats(0, 1), max_size=30).map(sorted))
def test_names_never_touch(true: list[float]) -> None:
    place = bench.apart(true, 0.03)
    assert len(place) == len(true)
    assert all(b - a >= 0.03 - 1e-9 for a, b in itertools.pairwise(place))
    assert all(at <= 0.99 for at in place)


def test_names_stay_where_there_is_room() -> None:
    assert bench.apart([0.1, 0.11, 0.5], 0.03) == pytest.approx([0.1, 0.13, 0.5])
    assert bench.apart([0.98, 1.0], 0.03) == pytest.approx([0.96, 0.99])


def test_both_files_are_written_whole_or_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = report(ROWS)
    written = bench.save(told, tmp_path / "new")
    assert [path.name for path in written] == ["bench.json", "latency-accuracy.png"]
    assert json.loads(written[0].read_text()) == told
    assert written[1].read_bytes() == bench.picture(told)
    monkeypatch.setattr(bench, "picture", lambda report: 1 / 0)
    before = written[0].read_bytes()
    with pytest.raises(ZeroDivisionError):
        bench.save(report([]), tmp_path / "new")
    assert written[0].read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["bench.json", "latency-accuracy.png"]


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match=r"taken/bench.json: cannot be written: .*; choose another --out"):
        bench.save(report(ROWS), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
