"""An archive gets the lab's own numbers, goes on after a kill with the same rows, and never stops at a bad file."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from bundles import by_hand, made, onnx_net, pictures
from toys import jpeg, video

from benchmarks import score as bench
from stillwatch import atomic
from stillwatch import bundle as bundles
from stillwatch.bundle import Bundle
from stillwatch.errors import UserError
from stillwatch.inference import detector, face_reader, runtimes
from stillwatch.inference.archive import listing, scoring, shards, table, workers
from stillwatch.inference.archive.listing import File, cut
from stillwatch.inference.archive.scoring import Share, merge, score, score_share
from stillwatch.inference.archive.shards import Task, score_shard
from stillwatch.inference.detector import fused_by
from stillwatch.lab.data.reader import decode
from stillwatch.lab.data.sources import folders, videos
from stillwatch.media import decode as files
from stillwatch.media import synthetic, weights
from stillwatch.media.points import COUNT, Face, face
from stillwatch.recipe import Data
from stillwatch.rules.fusion import FACE
from stillwatch.rules.normal import EVERY, Normal
from stillwatch.run import Progress

SIZE = (24, 32)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLWATCH_CACHE", str(tmp_path / "cache"))


def bundle_of(folder: Path, shape: tuple[int, ...] = (*SIZE, 3), name: str = "toy") -> Bundle:
    """The toy net of test_runtimes, whose answers can be worked out by hand."""
    return made(folder, {"m.onnx": onnx_net(folder / "m.onnx", shape)}, name=name, frames=pictures(8, shape))


def archive(root: Path, count: int = 6) -> Path:
    for number in range(count):
        jpeg(root / "Safe" / f"a{number:02d}.jpg", number)
    jpeg(root / "Yawn" / "ünï 1.JPG", 3)
    video(root / "Yawn" / "film.mp4", 11)
    (root / ".hidden").mkdir()
    jpeg(root / ".hidden" / "x.jpg")
    (root / "Yawn" / "notes.txt").write_text("no picture")
    return root


def spoil(root: Path) -> None:
    (root / "Safe" / "empty.jpg").touch()
    (root / "Safe" / "scan.heic").write_bytes(b"II*")
    whole = (root / "Yawn" / "film.mp4").read_bytes()
    (root / "Yawn" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "Yawn" / "gone.jpg").symlink_to(root / "nowhere.jpg")


def gather(root: Path, clips: bool = False) -> tuple[File, ...]:
    """All that is read, as one shard."""
    return tuple(file for file in listing.listing(root, clips) if not file.odd)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def task_of(it: Bundle, root: Path, rate: float | None = None) -> Task:
    about = it.manifest.input
    return Task(str(root), str(root), str(it.path / "m.onnx"), "onnxruntime", about.shape, about.fit, rate, "key",
        detector.look_ticks(about),
    )  # fmt: skip


def by_lab(root: Path, data: Data) -> dict[str, np.ndarray[Any, Any]]:
    """What the lab decodes of the same files: id -> uint8 (T,h,w,C)."""
    found = [*folders(data, ("Safe", "Yawn")).samples] if data.frames == 1 else []
    found += videos(data, ("Safe", "Yawn")).samples
    return {s.id: pixels for sample in found for s, pixels in decode([sample], data) if not isinstance(pixels, str)}


# --- the plan


def test_what_is_looked_at_and_what_is_not(tmp_path: Path) -> None:
    spoil(archive(tmp_path / "a", 2))
    os.mkfifo(tmp_path / "a" / "Safe" / "pipe.jpg")
    every = list(listing.listing(tmp_path / "a"))
    assert [file.path for file in every] == sorted(file.path for file in every), "as whole paths sort"
    found, odd = gather(tmp_path / "a"), [(file.path, file.odd) for file in every if file.odd]
    names = ["Safe/a00.jpg", "Safe/a01.jpg", "Safe/empty.jpg", "Yawn/cut.mp4", "Yawn/film.mp4", "Yawn/ünï 1.JPG"]
    assert [file.path for file in found] == names
    assert found[0].size == (tmp_path / "a" / "Safe" / "a00.jpg").stat().st_size
    assert [path for path, _ in odd] == ["Safe/pipe.jpg", "Safe/scan.heic", "Yawn/gone.jpg"]
    assert odd[0][1] == "not a file" and odd[2][1].startswith("cannot be read")
    clips = list(listing.listing(tmp_path / "a", clips=True))
    assert [file.path for file in clips if not file.odd] == names[3:5] and len(clips) == 2 + 7


def test_a_new_file_changes_one_shard_and_no_other() -> None:
    found = [File(f"cam/{n:06d}.jpg", 1000, n) for n in range(4000)]
    cuts = list(cut(found))
    assert [file for shard in cuts for file in shard] == found
    assert 8 <= len(cuts) <= 64 and max(map(len, cuts)) <= listing.SHARD
    more = list(cut(sorted([*found, File("cam/001000b.jpg", 5, 5)])))
    assert len(set(cuts) - set(more)) <= 2
    films = [File(f"{n}.mp4", 200 << 20, 1) for n in range(3)]
    assert [len(shard) for shard in cut(films)] == [1, 1, 1]


# --- the numbers


@pytest.mark.parametrize("rate", [None, 3.0])
def test_the_numbers_are_the_lab_s(tmp_path: Path, rate: float | None) -> None:
    root, it = archive(tmp_path / "a"), bundle_of(tmp_path)
    wanted = by_lab(root, Data(source="videos", root=root, size=SIZE, fit="letterbox", rate=rate))
    out = tmp_path / "s.csv"
    done = score(it.path, root, out, 1, rate=rate)
    rows = rows_of(out)
    assert len(rows) == len(wanted) == done.rows == (18 if rate is None else 11)
    assert (done.files, len(done.errors), done.kept) == (8, 0, 0)
    assert list(rows[0]) == ["path", "time_s", "frame", "label", "p_safe", "p_danger"]
    for row in rows:
        id = row["path"] + (f"#{row['frame']}" if row["frame"] else "")
        p = np.array([float(row["p_safe"]), float(row["p_danger"])])
        np.testing.assert_allclose(p, by_hand(wanted[id])[0], atol=1e-6, err_msg=id)
        assert row["label"] == ("safe", "danger")[p.argmax()]
        assert row["time_s"] == (str(int(row["frame"]) / 10) if row["frame"] else "")
    order = [(row["path"], int(row["frame"] or -1)) for row in rows]
    assert order == sorted(order)


def test_a_bundle_that_learnt_from_jpegs_read_small_is_given_them(tmp_path: Path) -> None:
    net, root = {"m.onnx": onnx_net(tmp_path / "m.onnx", (*SIZE, 3))}, tmp_path / "a"
    it = made(tmp_path, net, frames=pictures(8, (*SIZE, 3)), shrink="decode")
    for number, label in enumerate(("Safe", "Yawn")):
        (root / label).mkdir(parents=True)
        picture = synthetic.still("cabin", "Yawn", 0, number, (101, 130))
        (root / label / "large.jpg").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    data = Data(source="folders", root=root, size=SIZE, fit="letterbox", shrink="decode")
    small, whole = by_lab(root, data), by_lab(root, data.model_copy(update={"shrink": ""}))
    score(it.path, root, tmp_path / "s.csv", 1)
    for row in rows_of(tmp_path / "s.csv"):
        assert float(row["p_safe"]) == pytest.approx(by_hand(small[row["path"]])[0, 0], abs=1e-6)
        assert (small[row["path"]] != whole[row["path"]]).any()


def test_a_net_of_clips_gets_the_lab_s_windows(tmp_path: Path) -> None:
    root, it = archive(tmp_path / "a"), bundle_of(tmp_path, (3, *SIZE, 3))
    wanted = by_lab(root, Data(source="videos", root=root, size=SIZE, fit="letterbox", rate=5, frames=3))
    arrays = score_shard(task_of(it, root, 5.0), gather(root, clips=True), runtimes.open(
        it.path / "m.onnx", "onnxruntime", (3, *SIZE, 3), 1, shards.BATCH))  # fmt: skip
    assert arrays["frame"].tolist() == [0, 6] and arrays["time"].tolist() == pytest.approx([0, 0.6])
    clips = np.stack([wanted[f"Yawn/film.mp4#{n}"] for n in (0, 6)])
    np.testing.assert_allclose(arrays["p"], by_hand(clips), atol=1e-6)


def test_gray_nets_and_odd_shapes_too(tmp_path: Path) -> None:
    root, shape = archive(tmp_path / "a"), (13, 17, 1)
    weights = np.array([[4.0, -2.0]], np.float32)
    path = onnx_net(tmp_path / "m.onnx", shape, weights=weights)
    task = Task(str(root), "", str(path), "onnxruntime", shape, "crop", None, "")
    look = runtimes.open(path, "onnxruntime", shape, 1, shards.BATCH)
    arrays = score_shard(task, gather(root), look)
    wanted = by_lab(root, Data(source="videos", root=root, size=shape[:2], fit="crop", gray=True))
    found = gather(root)
    for n, (file, frame) in enumerate(zip(arrays["which"], arrays["frame"], strict=True)):
        id = found[file].path + (f"#{frame}" if frame >= 0 else "")
        np.testing.assert_allclose(arrays["p"][n], by_hand(wanted[id], weights)[0], atol=1e-6)
    assert len(arrays["p"]) == len(wanted) == 18


def test_parquet_says_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    root, it = archive(tmp_path / "a"), bundle_of(tmp_path)
    score(it.path, root, tmp_path / "s.parquet", 1)
    score(it.path, root, tmp_path / "s.csv", 1)
    table = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    rows = rows_of(tmp_path / "s.csv")
    assert len(table) == len(rows) == 18
    assert [row["path"] for row in table] == [row["path"] for row in rows]
    assert table[0]["time_s"] is None and table[0]["frame"] is None
    for one, other in zip(table, rows, strict=True):
        assert np.float32(one["p_danger"]) == np.float32(other["p_danger"])
        assert ("" if one["time_s"] is None else str(one["time_s"])) == other["time_s"]


# --- bad files


def test_bad_files_are_told_and_stop_nothing(tmp_path: Path) -> None:
    root, it = archive(tmp_path / "a"), bundle_of(tmp_path)
    spoil(root)
    out = tmp_path / "s.csv"
    done = score(it.path, root, out, 1)
    assert (done.rows, done.files, len(done.errors)) == (18, 12, 4)
    errors = {row["path"]: row["reason"] for row in rows_of(tmp_path / "s.csv.errors.csv")}
    assert errors == {one["path"]: one["reason"] for one in done.errors}
    assert errors["Safe/empty.jpg"] == "empty file"
    assert errors["Safe/scan.heic"].startswith(".heic is not a kind of picture")
    assert "video" in errors["Yawn/cut.mp4"] or "truncated" in errors["Yawn/cut.mp4"]
    for name in ("Safe/empty.jpg", "Safe/scan.heic", "Yawn/cut.mp4", "Yawn/gone.jpg"):
        (root / name).unlink()
    assert not score(it.path, root, out, 1).errors
    assert not (tmp_path / "s.csv.errors.csv").exists()


def test_rotten_bytes_in_a_film_cost_what_they_cost_the_lab(tmp_path: Path) -> None:
    root, it = tmp_path / "a", bundle_of(tmp_path)
    raw = bytearray(video(root / "Safe" / "film.mkv", 20).read_bytes())
    raw[len(raw) // 2 :] = b"Z" * (len(raw) - len(raw) // 2)
    (root / "Safe" / "film.mkv").write_bytes(raw)
    look = runtimes.open(it.path / "m.onnx", "onnxruntime", (*SIZE, 3), 1, shards.BATCH)
    arrays = score_shard(task_of(it, root), gather(root), look)
    wanted = by_lab(root, Data(source="videos", root=root, size=SIZE, fit="letterbox"))
    assert 0 < len(wanted) < 20
    assert [f"Safe/film.mkv#{n}" for n in arrays["frame"]] == list(wanted)
    np.testing.assert_allclose(arrays["p"], by_hand(np.concatenate(list(wanted.values()))), atol=1e-6)


def _deadly(task: Task, pipe: Any, far: Any, parent: int) -> None:
    """A worker whose decoder dies of one file."""
    real = files.read_picture

    def read(path: Path, *least: Any) -> Any:
        if path.name == "a03.jpg":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *least)

    files.read_picture = read
    workers._serve(task, pipe, far, parent)


def test_a_file_that_kills_its_worker_is_told_and_the_rest_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, it = archive(tmp_path / "a"), bundle_of(tmp_path)
    monkeypatch.setattr(workers, "_serve", _deadly)
    done = score(it.path, root, tmp_path / "s.csv", 1)
    assert done.errors == [{"path": "Safe/a03.jpg", "reason": "the decoder dies of it (exit status -9)"}]
    assert done.rows == 17


def _broken(task: Task, pipe: Any, far: Any, parent: int) -> None:
    os._exit(3)


def test_workers_that_die_at_once_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, it = archive(tmp_path / "a"), bundle_of(tmp_path)
    monkeypatch.setattr(workers, "_serve", _broken)
    with pytest.raises(UserError, match=r"a worker dies before it looks at a file \(exit status 3\)"):
        score(it.path, root, tmp_path / "s.csv", 1)


def _speechless(task: Task, pipe: Any, far: Any, parent: int) -> None:
    shards.np.savez = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # type: ignore[attr-defined]
    workers._serve(task, pipe, far, parent)


def test_a_full_disk_is_no_file_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, it = archive(tmp_path / "a"), bundle_of(tmp_path)
    monkeypatch.setattr(workers, "_serve", _speechless)
    with pytest.raises(UserError, match=r"score: OSError: .*No space left on device"):
        score(it.path, root, tmp_path / "s.csv", 1)
    assert not (tmp_path / "s.csv").exists()


# --- going on


def _stuck(task: Task, pipe: Any, far: Any, parent: int) -> None:
    """A worker that comes to no end at one file, until its parent is gone."""
    real = files.read_picture

    def read(path: Path, *least: Any) -> Any:
        while path.name == "a20.jpg":
            time.sleep(0.01)
            if os.getppid() != parent:
                os._exit(0)
        return real(path, *least)

    files.read_picture = read
    workers._serve(task, pipe, far, parent)


def _run_stuck(bundle: str, root: str, out: str) -> None:
    listing.SHARD, workers._serve = 8, _stuck
    score(Path(bundle), Path(root), Path(out), 2)


def test_after_a_kill_it_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SHARD", 8)
    root, it = archive(tmp_path / "a", 30), bundle_of(tmp_path)
    out, parts = tmp_path / "s.csv", tmp_path / "s.csv.parts"
    cuts = list(cut(gather(root)))
    assert len(cuts) >= 4
    here = Path(__file__).parent
    code = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]; import test_scoring; "
        f"test_scoring._run_stuck({str(it.path)!r}, {str(root)!r}, {str(out)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            end = time.monotonic() + 60
            while len(list(parts.glob("*/*.npz"))) < len(cuts) - 1 and time.monotonic() < end:
                assert process.poll() is None
                time.sleep(0.02)
            with pytest.raises(UserError, match="another `stillwatch score` writes there"):
                score(it.path, root, out, 1)
        finally:
            process.kill()
    assert not out.exists() and len(list(parts.glob("*/*.npz"))) == len(cuts) - 1
    said: list[str] = []
    done = score(it.path, root, out, 1, Progress(say=said.append))
    assert done.kept == 32 - next(len(shard) for shard in cuts if any("a20" in file.path for file in shard))
    assert said[0] == f"{parts}: {done.kept} of 32 files are done already"
    score(it.path, root, tmp_path / "whole.csv", 2)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_new_and_changed_files_are_looked_at_again_and_old_ones_go(tmp_path: Path) -> None:
    root, it, out = archive(tmp_path / "a"), bundle_of(tmp_path), tmp_path / "s.csv"
    before = score(it.path, root, out, 1)
    assert score(it.path, root, out, 1).kept == before.files == 8
    first = rows_of(out)
    white = np.full((24, 32, 3), 255, np.uint8)
    (root / "Safe" / "a01.jpg").write_bytes(cv2.imencode(".jpg", white)[1].tobytes())
    jpeg(root / "Safe" / "a99.jpg", 9)
    (root / "Safe" / "a00.jpg").unlink()
    score(it.path, root, out, 1)
    second = rows_of(out)
    assert {row["path"] for row in second} - {row["path"] for row in first} == {"Safe/a99.jpg"}
    assert "Safe/a00.jpg" not in {row["path"] for row in second}
    changed = next(row for row in second if row["path"] == "Safe/a01.jpg")
    assert float(changed["p_danger"]) == pytest.approx(by_hand(white[None])[0, 1], abs=1e-6)
    assert len(list((tmp_path / "s.csv.parts").glob("*/*.npz"))) == 1


def test_another_rate_or_bundle_starts_anew_with_a_word(tmp_path: Path) -> None:
    root, out = archive(tmp_path / "a"), tmp_path / "s.csv"
    (tmp_path / "two").mkdir()
    one, two = bundle_of(tmp_path), bundle_of(tmp_path / "two", name="other")
    said: list[str] = []
    progress = Progress(say=said.append)
    done = score(one.path, root, out, 1, progress)
    assert done.kept == 0 and said == [f"m.onnx in {done.runtime}, 1 worker, 8 files"]
    assert score(one.path, root, out, 1, progress, rate=1.0).kept == 0
    assert score(two.path, root, out, 1, progress, rate=1.0).kept == 0
    anew = f"{out}.parts: of another bundle, rate or runtime; everything is looked at anew"
    assert [line for line in said if line == anew] == [anew] * 2


def test_the_choice_of_the_first_run_is_kept(tmp_path: Path) -> None:
    root, it, out = archive(tmp_path / "a"), bundle_of(tmp_path), tmp_path / "s.csv"
    done = score(it.path, root, out, 1)
    index = tmp_path / "s.csv.parts" / "index.json"
    kept = json.loads(index.read_text())
    assert (kept["file"], kept["runtime"]) == (done.file, done.runtime) == ("m.onnx", done.runtime)
    index.write_text(json.dumps(kept | {"runtime": "gone"}))  # what does not run here any more is chosen anew
    assert score(it.path, root, out, 1).kept == 0


# --- one job of many


def test_the_jobs_of_an_array_and_merge_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(listing, "SHARD", 8)
    root, it = archive(tmp_path / "a", 30), bundle_of(tmp_path)
    spoil(root)
    out, said = tmp_path / "s.csv", list[str]()
    held = [score_share(it.path, root, out, Share(number, 3), 1, Progress(say=said.append)) for number in (2, 0)]
    (root / "Safe" / "late.jpg").touch()  # the first job listed the archive for all
    with pytest.raises(UserError, match=r"s\.csv\.parts: 8 of 23 shards are not done, the first 1"):
        merge(out)
    held.append(score_share(it.path, root, out, Share(1, 3), 1))
    assert sum(held) == 36 and sum("shards listed" in line for line in said) == 1
    done = merge(out)
    (root / "Safe" / "late.jpg").unlink()
    whole = score(it.path, root, tmp_path / "whole.csv", 2)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert Path(f"{out}.errors.csv").read_bytes() == (tmp_path / "whole.csv.errors.csv").read_bytes()
    assert (done.rows, done.files, done.errors) == (whole.rows, whole.files, whole.errors) and whole.files == 36
    with pytest.raises(UserError, match="or it is merged"):
        merge(out)
    assert score(it.path, root, out, 1).kept == 36


def test_jobs_keep_to_the_first_one_s_bundle_and_choice(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "two").mkdir()
    root, it, other = archive(tmp_path / "a"), bundle_of(tmp_path), bundle_of(tmp_path / "two", name="other")
    out = tmp_path / "s.csv"
    score_share(it.path, root, out, Share(0, 2), 1)
    with pytest.raises(UserError, match="jobs of another bundle or rate are at work there"):
        score_share(other.path, root, out, Share(1, 2), 1)
    index = tmp_path / "s.csv.parts" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"runtime": "gone"}))
    with pytest.raises(UserError, match=r"the first job chose m\.onnx in gone, but"):
        score_share(it.path, root, out, Share(1, 2), 1)
    assert len(list(index.parent.glob("*/*.npz"))) == 1, "what the others did is there"
    for text in ("3", "3/3", "-1/3", "a/b"):
        with pytest.raises(UserError, match="is NUMBER/OF, numbered from 0"):
            Share.read(text)


def test_a_saved_list_is_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(listing, "ROWS", 300)
    odd = [
        File(os.fsdecode(b"cam/gr\xfc\xdfe.jpg"), 7, 7),
        File("cam/x.heic", odd="why"),
        File("z.mp4", 1, 1, "", 1, 2),
    ]
    found = list(cut(sorted([*(File(f"cam/{n:06d}.jpg", 1000, n) for n in range(2000)), *odd])))
    assert listing.save(tmp_path / "l.parquet", found) == len(found) > 3
    assert list(listing.load(tmp_path / "l.parquet")) == found
    assert [shard for n in range(3) for shard in listing.load(tmp_path / "l.parquet", n, 3)] == [
        shard for n in range(3) for shard in found[n::3]
    ]


def test_an_archive_and_its_table_may_be_urls(tmp_path: Path) -> None:
    upath = pytest.importorskip("upath")
    root, it = archive(tmp_path / "a"), bundle_of(tmp_path)
    spoil(root)
    (root / "Yawn" / "gone.jpg").unlink()
    store = upath.UPath("memory://archive")
    for path in root.rglob("*.*"):
        if path.is_file():
            (store / path.relative_to(root).as_posix()).parent.mkdir(parents=True, exist_ok=True)
            (store / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
    try:
        names = [(file.path, file.size, file.odd) for file in listing.listing(root)]
        assert [(file.path, file.size, file.odd) for file in listing.listing(store)] == names
        task, shard = task_of(it, root), tuple(listing.listing(store))
        assert shards.do(task._replace(root=str(store), parts=str(store / "s.csv.parts")), shard) == ""
        shards.do(task, shard)
        name = shards.part_of(task, shard)
        assert (store / "s.csv.parts" / name).read_bytes() == (root / name).read_bytes()
    finally:
        store.fs.store.clear()
    # the whole command, whose workers are other processes: they do not see this one's memory
    done = score(it.path, atomic.place(root.as_uri()), atomic.place((tmp_path / "u.csv").as_uri()), 1)
    assert score(it.path, root, tmp_path / "s.csv", 1).rows == done.rows
    assert (tmp_path / "u.csv").read_bytes() == (tmp_path / "s.csv").read_bytes()


def test_a_url_that_nobody_reads_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nope://bucket/x: Unsupported filesystem"):
        atomic.place("nope://bucket/x")
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(UserError, match=r"pip install 'stillwatch\[urls\]'"):
        atomic.place("s3://bucket/x")


def test_pieces_of_a_long_film_give_its_rows(tmp_path: Path) -> None:
    it = bundle_of(tmp_path)
    film = tmp_path / "a" / "film.mp4"
    film.parent.mkdir()
    with av.open(str(film), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"g": "9", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(60):
            picture = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    look = runtimes.open(it.path / "m.onnx", "onnxruntime", (*SIZE, 3), 1, shards.BATCH)
    task = task_of(it, film.parent)
    whole = score_shard(task, [File("film.mp4")], look)
    parts = [score_shard(task, [File("film.mp4", piece=n, pieces=4)], look) for n in range(4)]
    for name in ("frame", "time", "p"):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
    assert [len(part["p"]) for part in parts] == [15] * 4
    start, count = 40, 0

    def fit(image: Any) -> Any:
        nonlocal count
        count += 1
        return image

    times = files.times_of(film)
    assert not isinstance(times, str)
    wanted = [(start,), (start + 1,)]
    assert [n for n, _ in files.clips(film, wanted, fit, 1, times)] == wanted and count == 2
    (film.parent / "long.mp4").touch()
    os.truncate(film.parent / "long.mp4", 100 << 20)
    assert [file.piece for file in listing.listing(film.parent) if file.path == "long.mp4"] == [0, 1, 2]


# --- mistakes, progress


def test_what_is_asked_wrongly_is_named(tmp_path: Path) -> None:
    it, root = bundle_of(tmp_path), archive(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"s\.txt: ends in \.txt; wanted: \.parquet or \.csv"):
        score(it.path, root, tmp_path / "s.txt")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        score(it.path, tmp_path / "nowhere", tmp_path / "s.csv")
    with pytest.raises(UserError, match=r"no picture or film in it; read are \.jpg"):
        score(it.path, tmp_path / "empty", tmp_path / "s.csv")
    with pytest.raises(UserError, match="rate = 0: wanted: frames a second"):
        score(it.path, root, tmp_path / "s.csv", rate=0)
    with pytest.raises(UserError, match="workers = 0: at least 1"):
        score(it.path, root, tmp_path / "s.csv", 0)


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'stillwatch\[parquet\]'"):
        score(tmp_path, tmp_path, tmp_path / "s.parquet")


def test_progress_counts_every_file_once(tmp_path: Path) -> None:
    root, it = archive(tmp_path / "a", 20), bundle_of(tmp_path)
    told: list[Any] = []

    def bar(things: Any, count: int, what: str) -> Any:
        told.extend((count, what))
        for thing in things:
            told.append(thing)
            yield thing

    score(it.path, root, tmp_path / "s.csv", 2, Progress(bar=bar))
    assert told[:2] == [22, "scoring"] and len(told) == 2 + 22


def test_the_benchmark_compares_the_same_frames(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    kinds = bench.draw(tmp_path / "archive", 0.5)
    assert {kind: len(names) for kind, names in kinds.items()} == {"jpeg q80": 5, "jpeg q95": 5, "h264": 1}
    for names in kinds.values():
        assert bench.decode(tmp_path / "archive", names) == bench.plainly(tmp_path / "archive", names) == 5
    row = bench.compare(bundle_of(tmp_path), tmp_path / "archive", kinds["h264"], 1)
    assert 0 < row["decode_ms"] < row["ready_ms"] * 2 and row["to_decode"] > 0 and row["file"] == "m.onnx"


def test_what_somebody_else_put_there_is_not_removed(tmp_path: Path) -> None:
    root, made = archive(tmp_path / "a", 2), bundle_of(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs.npz").write_bytes(b"")
    (tmp_path / "s.csv.parts").symlink_to(elsewhere)
    (tmp_path / "t.csv.parts").mkdir()
    (tmp_path / "t.csv.parts" / "theirs.npz").write_bytes(b"")
    for out in ("s.csv", "t.csv"):
        with pytest.raises(UserError, match=r"not all of it was made by `stillwatch score`"):
            score(made.path, root, tmp_path / out, 1)
    assert (elsewhere / "theirs.npz").is_file() and (tmp_path / "t.csv.parts" / "theirs.npz").is_file()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_any_name_is_a_name(tmp_path: Path, kind: str) -> None:
    root, made = archive(tmp_path / "a", 1), bundle_of(tmp_path)
    odd = os.fsencode(root / "Safe") + b"/gr\xfc\xdfe.jpg"
    os.link(root / "Safe" / "a00.jpg", odd)
    Path(os.fsdecode(os.fsencode(root / "Safe") + b"/leer\xff.jpg")).touch()
    done = score(made.path, root, tmp_path / f"s.{kind}", 1)
    assert done.rows == score(made.path, root, tmp_path / "again.csv", 1).rows
    assert "Safe/leer\\udcff.jpg" in [row["path"] for row in done.errors]
    assert "Safe/gr\\udcfc\\udcdfe.jpg" in (tmp_path / "again.csv").read_text()


def test_faces_are_read_before_pictures_shrink_where_the_bundle_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def read(image: np.ndarray, seconds: float) -> Face | None:
        seen.append(image.shape)
        at = np.random.default_rng(len(seen)).uniform(0, 20, (COUNT, 3)).astype(np.float32)
        return face(at, 0.9) if len(seen) % 2 else None

    monkeypatch.setattr(face_reader, "FaceReader", lambda: read)
    it, root = bundle_of(tmp_path), archive(tmp_path / "archive", 4)
    found = gather(root)
    task = task_of(it, root)._replace(
        faces=True, shape=(12, 16, 3), model=str(onnx_net(tmp_path / "s.onnx", (12, 16, 3)))
    )
    look = runtimes.open(Path(task.model), "onnxruntime", task.shape, 1, shards.BATCH)
    arrays = score_shard(task, tuple(found), look)
    assert set(seen) == {(24, 32, 3), (48, 64, 3)}, "native pictures and a film's frames"
    assert arrays["face"].shape == (len(arrays["p"]), 7) and len(seen) == len(arrays["p"])
    assert np.isnan(arrays["face"]).all(1).tolist() == [n % 2 == 1 for n in range(len(seen))]
    assert arrays["face"][0, 6] == np.float32(0.9)
    assert score_shard(task._replace(faces=False), tuple(found), look)["face"].shape == (len(seen), 0)


def test_a_table_has_a_column_for_each_signal_and_leaves_it_empty_without_a_face(tmp_path: Path) -> None:
    with table.table(tmp_path / "t.csv", ".csv", ("a", "b"), ("face_yaw",)) as add:
        p = np.array([[0.25, 0.75, 9.0], [0.5, 0.25, np.nan]], np.float32)
        add(["x.jpg", "y.jpg"], np.zeros(2), np.array([-1, 3]), p)
    rows = rows_of(tmp_path / "t.csv")
    assert [(row["label"], row["p_b"], row["face_yaw"]) for row in rows] == [("b", "0.75", "9.0"), ("a", "0.25", "")]


def test_with_a_fusion_head_the_label_is_what_a_camera_decides_and_the_net_s_own_answer_stands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy cabin and its drawn reader; a head that says danger where lids are shut."""
    it, root, seconds = bundle_of(tmp_path), tmp_path / "archive", 40
    raw = json.loads((it.path / "bundle.json").read_text())
    weight = np.hstack([np.eye(2), np.zeros((2, FACE))])
    weight[1, 7] = 9.0
    head = {"weight": weight.tolist(), "bias": [0.0, -4.0], "figures": {}}
    (it.path / "bundle.json").write_text(json.dumps(raw | {"fusion": head, "rule": {"profile": "driver"}}))
    root.mkdir()
    for number, (_, image, _) in enumerate(synthetic.clip("cabin", seconds, 5, 0, SIZE)):
        (root / f"{number:04d}.png").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    drawn, number = synthetic.reader(seconds, 0, SIZE), count()
    monkeypatch.setattr(face_reader, "FaceReader", lambda: lambda image, _: drawn(image, next(number) / 5))
    monkeypatch.setattr(weights, "local", lambda name: tmp_path)
    monkeypatch.setattr(workers, "work", in_this_process)
    rows = rows_of(score(it.path, root, tmp_path / "s.csv") and tmp_path / "s.csv")

    made = bundles.load(it.path)
    fuse, normal, shut = fused_by(made.manifest.fusion), Normal(), 0
    assert fuse is not None and len(rows) == 5 * seconds
    for n, row in enumerate(rows):
        face = drawn(np.empty(0), n / 5)
        now = face and normal.step((n + 1) * EVERY, face.signals)
        assert face is not None and now is not None
        net = [float(row["net_safe"]), float(row["net_danger"])]
        told = [float(row["p_safe"]), float(row["p_danger"])]
        assert told == pytest.approx(fuse(net, now), abs=1e-5) and float(row["face_left_eye"]) < 0.3
        assert row["label"] == ("safe", "danger")[int(np.argmax(told))]
        shut += row["label"] == "danger" and now.shut > 0.8 and np.argmax(net) == 0
    assert shut > 10, "eyes that shut, which the net did not see"

    (tmp_path / "s.csv").rename(tmp_path / "whole.csv")
    listing.save(tmp_path / "s.csv.parts" / scoring.LIST, cut(listing.listing(root)))
    merge(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes(), "without the bundle at hand"
    monkeypatch.setattr(weights, "local", lambda name: None)
    lines: list[str] = []
    score(it.path, root, tmp_path / "alone.csv", progress=Progress(say=lines.append))
    alone = rows_of(tmp_path / "alone.csv")
    assert list(alone[0]) == ["path", "time_s", "frame", "label", "p_safe", "p_danger"]
    assert [row["p_safe"] for row in alone] == [row["net_safe"] for row in rows] and "no face is read" in lines[0]


def in_this_process(task: Task, cuts: list[tuple[File, ...]], workers: int) -> Iterator[None]:
    for shard in cuts:
        assert shards.do(task, shard) == ""
        yield from (None for _ in shard)


def test_a_bundle_that_asks_for_faces_names_the_weights_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "WEIGHTS", {name: one._replace(url="") for name, one in weights.WEIGHTS.items()})
    it = bundle_of(tmp_path)
    raw = json.loads((it.path / "bundle.json").read_text())
    (it.path / "bundle.json").write_text(json.dumps(raw | {"rule": {"profile": "driver", "faces": "yes"}}))
    with pytest.raises(UserError, match=r"yunet_n_320_320[.]onnx .* is needed"):
        score(it.path, archive(tmp_path / "archive"), tmp_path / "s.csv", 1)
