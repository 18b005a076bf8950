"""Each source finds what is there, and gives a reason for all that it leaves out."""

import gzip
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import idx_pair, jpeg, video

from stillwatch.errors import UserError
from stillwatch.lab.data import sources
from stillwatch.lab.data.sources import Found, Sample
from stillwatch.media import decode
from stillwatch.recipe import Data

WILD = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reasons(found: Found) -> dict[str, str]:
    return {skipped.file: skipped.reason for skipped in found.skipped}


# --- driver-inattention

CLASSES = "DangerousDriving\nDistracted\nDrinking\nSafeDriving\nSleepyDriving\nYawn"  # no newline at the end


def export(root: Path, split: str, lines: str, names: tuple[str, ...], classes: str = CLASSES) -> Data:
    for name in names:
        jpeg(root / split / name)
    (root / split / "_classes.txt").write_text(classes, encoding="utf-8")
    (root / split / "_annotations.txt").write_text(lines, encoding="utf-8")
    return Data(source="driver-inattention", root=root)


def test_driver_inattention_reads_the_public_layout(tmp_path: Path) -> None:
    a, b = "gA_1_s5_ir_face_mp4-12_jpg.rf.aa.jpg", "gB_10_s2_2019-03-11T15-15-21-01-00_ir_face_mp4-598_jpg.rf.bb.jpg"
    export(tmp_path, "train", f"{a} 1,2,30,20,5\n{b} 0,0,9,9,0", (a, b))
    data = export(tmp_path, "test", "odd name.jpg 1,1,5,5,3\n", ("odd name.jpg",))
    found = sources.driver_inattention(data, ())
    assert found.skipped == []
    assert found.samples == [
        Sample("test/odd name.jpg", tmp_path / "test/odd name.jpg", "SafeDriving", split="test", box=(1, 1, 5, 5)),
        Sample(
            f"train/{a}", tmp_path / "train" / a, "Yawn", split="train",
            sequence="gA_1_s5_ir_face_mp4", time=12.0, box=(1, 2, 30, 20),
        ),
        Sample(
            f"train/{b}", tmp_path / "train" / b, "DangerousDriving", split="train",
            sequence="gB_10_s2_2019-03-11T15-15-21-01-00_ir_face_mp4", time=598.0, box=(0, 0, 9, 9),
        ),
    ]  # fmt: skip


def test_driver_inattention_gives_each_oddity_its_reason(tmp_path: Path) -> None:
    names = (
        "ok.jpg",
        "nobox.jpg",
        "range.jpg",
        "flat.jpg",
        "bad.jpg",
        "two.jpg",
        "unnamed.jpg",
        "both.jpg",
        "same.jpg",
    )
    lines = """ok.jpg 1,2,3,4,0
nobox.jpg
gone.jpg 1,2,3,4,0

range.jpg 1,2,3,4,6
flat.jpg 5,2,5,4,1
bad.jpg 1,2,3,4
two.jpg 1,2,3,4,0 5,6,7,8,0
empty.jpg 1,2,3,4,1
both.jpg 1,2,3,4,1
both.jpg 1,2,3,4,2
same.jpg 1,2,3,4,1
same.jpg 1,2,3,4,1
../ok.jpg 1,2,3,4,1
"""
    data = export(tmp_path, "valid", lines, names)
    (tmp_path / "valid/empty.jpg").touch()
    found = sources.driver_inattention(data, ())
    assert [sample.id for sample in found.samples] == ["valid/ok.jpg", "valid/same.jpg"]
    assert len(found.skipped) == 12
    assert reasons(found) == {
        "valid/nobox.jpg": "line without a box",
        "valid/gone.jpg": "missing file",
        "valid/range.jpg": "class id 6 is not in _classes.txt (6 classes)",
        "valid/flat.jpg": "box 5,2,5,4 holds no pixel",
        "valid/bad.jpg": "malformed line: 'bad.jpg 1,2,3,4'",
        "valid/two.jpg": "more than one box",
        "valid/empty.jpg": "empty file",
        "valid/both.jpg": "labelled both Distracted and Drinking",
        "valid/same.jpg": "named more than once",
        "valid/../ok.jpg": "missing file",
        "valid/unnamed.jpg": "no line in _annotations.txt",
    }


def test_driver_inattention_without_its_tables_or_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the folders train, valid, test"):
        sources.driver_inattention(Data(source="driver-inattention", root=tmp_path), ())
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"_classes\.txt: cannot be read"):
        sources.driver_inattention(Data(source="driver-inattention", root=tmp_path), ())


@WILD
@given(line=st.text(max_size=60) | st.from_regex(r"a\.jpg(\s-?\d{1,12}){0,5}[ ,]?\d?(,\d{1,3}){0,5}", fullmatch=True))
def test_any_line_is_a_sample_or_a_reason(tmp_path: Path, line: str) -> None:
    data = export(tmp_path, "train", "", ("a.jpg",), "A\nB")
    (tmp_path / "train/_annotations.txt").write_text(line, encoding="utf-8", errors="replace")
    found = sources.driver_inattention(data, ())
    assert all(sample.label in "AB" and sample.box for sample in found.samples)
    assert all(skipped.reason for skipped in found.skipped) and found.samples + found.skipped


@WILD
@given(raw=st.binary(max_size=300) | st.from_regex(rb"(a\.jpg [0-9,]{0,12}\n?){1,4}", fullmatch=True))
def test_any_bytes_as_annotations(tmp_path: Path, raw: bytes) -> None:
    data = export(tmp_path, "train", "", ("a.jpg",))
    (tmp_path / "train/_annotations.txt").write_bytes(raw)
    found = sources.driver_inattention(data, ())
    assert [sample.id for sample in found.samples] in ([], ["train/a.jpg"])
    assert found.samples or found.skipped  # a.jpg is one or the other


# --- folders


def test_folders_one_a_class(tmp_path: Path) -> None:
    jpeg(tmp_path / "Yawn/ünï 1.JPG")
    jpeg(tmp_path / "Safe/deep/er/b.jpeg")
    (tmp_path / "Safe/empty.png").touch()
    (tmp_path / "Safe/scan.heic").write_bytes(b"II*")
    (tmp_path / "Safe/readme.txt").write_text("x")
    (tmp_path / "Safe/.hidden.jpg").write_text("x")
    (tmp_path / ".cache").mkdir()
    found = sources.folders(Data(source="folders", root=tmp_path), ("Yawn", "Safe"))
    assert [(s.id, s.label, s.split, s.group) for s in found.samples] == [
        ("Safe/deep/er/b.jpeg", "Safe", "", ""),
        ("Yawn/ünï 1.JPG", "Yawn", "", ""),
    ]
    assert reasons(found)["Safe/empty.png"] == "empty file"
    assert reasons(found)["Safe/scan.heic"].startswith(".heic is not a kind of picture that is read")
    assert len(found.skipped) == 2


def test_folders_with_official_splits_and_groups(tmp_path: Path) -> None:
    for path in ("train/A/anna/1.png", "val/A/ben/2.png", "test/B/carl/x/3.png", "test/B/4.png"):
        jpeg(tmp_path / path)
    found = sources.folders(Data(source="folders", root=tmp_path, group="folder"), ("A", "B"))
    assert [(s.label, s.split, s.group) for s in found.samples] == [
        ("B", "test", ""),
        ("B", "test", "carl"),
        ("A", "train", "anna"),
        ("A", "valid", "ben"),
    ]


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    jpeg(tmp_path / "test/1.jpg")
    jpeg(tmp_path / "rest/1.jpg")
    found = sources.folders(Data(source="folders", root=tmp_path), ("test", "rest"))
    assert [(s.label, s.split) for s in found.samples] == [("rest", ""), ("test", "")]


def test_folders_know_recordings_from_numberings(tmp_path: Path) -> None:
    for path in (
        "Safe/ride1_007.jpg", "Yawn/ride1_008.jpg",  # one recording shows two classes
        "Safe/img_1.jpg", "Yawn/img_1.jpg",  # a number twice: a numbering
        "Safe/alone_3.jpg",  # nothing beside it
        "Safe/ride2/1.jpg", "Safe/ride2/2.jpg",  # a folder is a recording
    ):  # fmt: skip
        jpeg(tmp_path / path)
    found = sources.folders(Data(source="folders", root=tmp_path), ("Safe", "Yawn"))
    assert len(found.samples) == 7
    assert {s.id: (s.sequence, s.time) for s in found.samples if s.sequence} == {
        "Safe/ride1_007.jpg": ("ride1_", 7.0),
        "Yawn/ride1_008.jpg": ("ride1_", 8.0),
        "Safe/ride2/1.jpg": ("ride2/", 1.0),
        "Safe/ride2/2.jpg": ("ride2/", 2.0),
    }


def test_a_numbered_class_is_no_recording(tmp_path: Path) -> None:
    for label, start in (("Violence", "V_"), ("NonViolence", "NV_")):
        for number in range(3):
            jpeg(tmp_path / label / f"{start}{number}.jpg")
    found = sources.folders(Data(source="folders", root=tmp_path), ("Violence", "NonViolence"))
    assert [s.sequence for s in found.samples] == [""] * 6


# --- videos


def test_videos_every_frame(tmp_path: Path) -> None:
    video(tmp_path / "Violence/a.mp4", 5)
    found = sources.videos(Data(source="videos", root=tmp_path), ("Violence",))
    assert [(s.id, s.frames, s.time) for s in found.samples] == [
        (f"Violence/a.mp4#{n}", (n,), round(n / 10, 4)) for n in range(5)
    ]
    assert {s.sequence for s in found.samples} == {"Violence/a.mp4"}


@pytest.mark.parametrize(
    ("rate", "frames", "limit", "wanted"),
    [
        (5, 1, 0, [(0,), (2,), (4,), (6,), (8,), (10,)]),
        (5, 1, 2, [(2,), (8,)]),
        (5, 1, 1, [(6,)]),
        (5, 1, 99, [(0,), (2,), (4,), (6,), (8,), (10,)]),
        (5, 3, 0, [(0, 2, 4), (6, 8, 10)]),
        (5, 4, 0, [(0, 2, 4, 6)]),  # what is left over is too short for a window
        (5, 8, 0, [(0, 2, 4, 6, 8, 10, 10, 10)]),  # shorter than one window: the last frame is repeated
        (3, 1, 0, [(0,), (3,), (7,), (10,)]),
        (100, 1, 3, [(1,), (5,), (9,)]),  # faster than the clip: each frame once
    ],
)
def test_videos_rate_window_and_limit(
    tmp_path: Path, rate: float, frames: int, limit: int, wanted: list[tuple[int, ...]]
) -> None:
    video(tmp_path / "A/a.avi", 11)
    data = Data(source="videos", root=tmp_path, rate=rate, frames=frames)
    assert [s.frames for s in sources.videos(data, ("A",), limit=limit).samples] == wanted


def test_videos_that_are_none(tmp_path: Path) -> None:
    video(tmp_path / "A/a.mkv", 20)
    whole = video(tmp_path / "A/b.mp4", 20).read_bytes()
    (tmp_path / "A/empty.mp4").touch()
    (tmp_path / "A/garbage.mp4").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "A/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "A/notes.txt").write_text("no clip")
    with av.open(str(tmp_path / "A/sound.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux(stream.encode(sound))
    found = sources.videos(Data(source="videos", root=tmp_path), ("A",))
    assert {s.sequence for s in found.samples} == {"A/a.mkv", "A/b.mp4"} and len(found.samples) == 40
    assert set(reasons(found)) == {"A/empty.mp4", "A/garbage.mp4", "A/cut.mp4", "A/sound.mov"}
    assert reasons(found)["A/empty.mp4"] == "empty file"
    assert reasons(found)["A/sound.mov"] == "no video stream"
    assert reasons(found)["A/garbage.mp4"].startswith("not a video that can be read")


def test_a_clip_cut_behind_its_index_says_how_much_is_left(tmp_path: Path) -> None:
    path = tmp_path / "A/a.mp4"
    path.parent.mkdir()
    chance = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            picture = chance.integers(0, 255, (48, 64, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert len(decode.times_of(path)) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reason = decode.times_of(path)
    assert isinstance(reason, str) and reason.startswith("truncated: ") and reason.endswith(" of 20 frames")


def test_videos_from_a_manifest(tmp_path: Path) -> None:
    for name in ("x/a.mp4", "x/b.mp4", "x/c.mp4"):
        video(tmp_path / name, 2)
    (tmp_path / "manifest.csv").write_text(
        "file,label,group,split,camera\nx/a.mp4,V,g1,train,cam1\nx/b.mp4,N,g2,val,cam2\nx/c.mp4,N,g2,test,cam1\nx/d.mp4,V,g3,test,c\n"
    )
    found = sources.videos(Data(source="videos", root=tmp_path), ("V", "N"))
    assert [(s.id, s.label, s.group, s.split) for s in found.samples][::2] == [
        ("x/a.mp4#0", "V", "g1", "train"),
        ("x/b.mp4#0", "N", "g2", "valid"),
        ("x/c.mp4#0", "N", "g2", "test"),
    ]
    assert reasons(found) == {"x/d.mp4": "missing file"}
    other = sources.videos(Data(source="videos", root=tmp_path, group="column:camera"), ("V", "N"))
    assert [s.group for s in other.samples][::2] == ["cam1", "cam2", "cam1"]
    with pytest.raises(UserError, match="no column 'camra'; did you mean 'camera'"):
        sources.videos(Data(source="videos", root=tmp_path, group="column:camra"), ("V", "N"))
    with pytest.raises(UserError, match=r"manifst\.csv: no such file; did you mean 'manifest\.csv'"):
        sources.videos(Data(source="videos", root=tmp_path), ("V", "N"), manifest="manifst.csv")


@given(st.lists(st.floats(0.001, 2), min_size=0, max_size=60), st.floats(0.1, 60))
def test_sampled_frames_rise_and_stay_inside(gaps: list[float], rate: float) -> None:
    times = [0.0, *np.cumsum(gaps).tolist()]
    taken = decode.sampled(times, rate)
    assert taken[0] == 0 and taken[-1] < len(times)
    assert taken == sorted(set(taken))
    assert len(taken) <= times[-1] * rate + 1.001


# --- idx


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_pairs_are_official_splits(tmp_path: Path, zipped: bool) -> None:
    idx_pair(tmp_path, "train", 12, zipped)
    idx_pair(tmp_path, "t10k", 3, zipped)
    found = sources.idx(Data(source="idx", root=tmp_path), ())
    assert len(found.samples) == 15 and found.skipped == []
    end = ".gz" if zipped else ""
    assert found.samples[11] == Sample(
        f"train-images-idx3-ubyte{end}#11", tmp_path / f"train-images-idx3-ubyte{end}", "1", split="train", frames=(11,)
    )
    assert [s.split for s in found.samples] == ["train"] * 12 + ["test"] * 3
    assert sources.read_idx(found.samples[0].path, 3)[1, 0, 0] == 20


def test_idx_mistakes_name_the_file(tmp_path: Path) -> None:
    data = Data(source="idx", root=tmp_path)
    with pytest.raises(UserError, match=r"has no train-images-idx3-ubyte\.gz"):
        sources.idx(data, ())
    idx_pair(tmp_path, "train", 12, labels=11)
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz: 11 labels for 12 images"):
        sources.idx(data, ())
    pictures = tmp_path / "train-images-idx3-ubyte.gz"
    whole = pictures.read_bytes()
    pictures.write_bytes(whole[:-20])
    sources.read_idx.cache_clear()
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: not a whole gzip file"):
        sources.idx(data, ())
    pictures.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(UserError, match="holds 239 bytes where its header says 12 × 4 × 5"):
        sources.idx(data, ())
    pictures.write_bytes(gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(whole)[4:]))
    with pytest.raises(UserError, match="starts with 00000d03, an IDX file of this kind with 00000803"):
        sources.idx(data, ())
    pictures.unlink()
    with pytest.raises(UserError, match="its partner, the train images or labels, is missing"):
        sources.idx(data, ())


@WILD
@given(
    raw=st.binary(max_size=80) | st.binary(max_size=40).map(lambda b: b"\0\0\x08\x03" + b),
    zipped=st.booleans(),
    name=st.sampled_from(["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"]),
)
def test_any_bytes_as_idx(tmp_path: Path, raw: bytes, zipped: bool, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    sources.read_idx.cache_clear()
    try:
        images = sources.read_idx(path, 3)
    except UserError as mistake:
        assert str(path) in str(mistake)
    else:
        assert images.ndim == 3 and images.dtype == np.uint8


# --- csv


def test_csv_with_every_column(tmp_path: Path) -> None:
    for name in ("sub/a.jpg", "sub/b.jpg", "c.jpg"):
        jpeg(tmp_path / name)
    (tmp_path / "sub/list.csv").write_text(
        "\ufeffpath,label,group,split,box,sequence,time\n"
        'a.jpg,X,anna,training,"1,2,3,4",s,1.5\nb.jpg,X,ben,TRAIN,1 2 30.4 40,s,2\n../c.jpg,Y,,test,,,\n',
        encoding="utf-8",
    )
    found = sources.table(Data(source="csv", root=tmp_path), ("X", "Y"), file="sub/list.csv")
    assert found.samples == [
        Sample("sub/b.jpg", tmp_path / "sub/b.jpg", "X", "ben", "train", "s", 2.0, box=(1, 2, 30, 40)),
        Sample("c.jpg", tmp_path / "c.jpg", "Y", "", "test"),
    ]
    assert reasons(found) == {"sub/a.jpg": "split 'training' is none of train, valid, test"}


def test_csv_gives_each_bad_row_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "root"
    jpeg(tmp_path / "secret.jpg")
    for name in ("ok.jpg", "box.jpg", "time.jpg", "nolabel.jpg", "both.jpg", "short.jpg", "far.jpg"):
        jpeg(root / name)
    (root / "empty.jpg").touch()
    (root / "clip.mp4").write_bytes(b"x")
    (root / "samples.csv").write_text(
        "path,label,box,time\nok.jpg,X,,\n../secret.jpg,X,,\n/etc/hostname,X,,\nbox.jpg,X,1 2 3,\ntime.jpg,X,,soon\n"
        "far.jpg,X,,inf\nnolabel.jpg,,,\n,X,,\ngone.jpg,X,,\nempty.jpg,X,,\nboth.jpg,X,,\nboth.jpg,Y,,\nclip.mp4,X,,\n"
        "ok.jpg,X,,\nshort.jpg\n"
    )
    found = sources.table(Data(source="csv", root=root), ("X", "Y"))
    assert [s.id for s in found.samples] == ["ok.jpg"]
    why = reasons(found)
    assert len(found.skipped) == 14
    assert why["../secret.jpg"] == why["/etc/hostname"] == "path climbs out of data.root"
    assert why["box.jpg"] == "box '1 2 3' is not x1,y1,x2,y2"
    assert why["time.jpg"] == "could not convert string to float: 'soon'"
    assert why["far.jpg"] == "time inf is not a number"
    assert why["nolabel.jpg"] == why["short.jpg"] == "no label"
    assert why["samples.csv"].startswith("a row without a file")
    assert why["gone.jpg"] == "missing file" and why["empty.jpg"] == "empty file"
    assert why["both.jpg"] == "labelled both X and Y" and why["ok.jpg"] == "named more than once"
    assert why["clip.mp4"].startswith("not a kind of picture")


def test_csv_a_few_wrong_labels_are_skipped_and_many_are_a_mistake(tmp_path: Path) -> None:
    for number in range(40):
        jpeg(tmp_path / f"{number}.jpg")
    rows = [f"{number}.jpg,{'Yawm' if number == 7 else 'Yawn'}" for number in range(40)]
    (tmp_path / "samples.csv").write_text("\n".join(["path,label", *rows]))
    data = Data(source="csv", root=tmp_path)
    found = sources.table(data, ("Yawn", "Safe"))
    assert len(found.samples) == 39
    assert reasons(found) == {"7.jpg": "label 'Yawm' is not in the recipe; did you mean 'Yawn'?"}
    with pytest.raises(UserError, match=r"label 'Yawm' of 7\.jpg is not in the recipe's labels; did you mean 'Yawn'\?"):
        sources.table(data.model_copy(update={"max_bad": 0.01}), ("Yawn", "Safe"))


def test_csv_that_is_none(tmp_path: Path) -> None:
    data = Data(source="csv", root=tmp_path)
    with pytest.raises(UserError, match=r"samples\.csv: no such file"):
        sources.table(data, ("X",))
    table = tmp_path / "samples.csv"
    table.write_text("file,lable\na,b\n")
    with pytest.raises(UserError, match="has no column 'path'; known: file, lable"):
        sources.table(data, ("X",))
    table.write_text("path,lable\na,b\n")
    with pytest.raises(UserError, match="has no column 'label'; did you mean 'lable'"):
        sources.table(data, ("X",))
    table.write_bytes(b"path,label\n\xff\xfe,X\n")
    with pytest.raises(UserError, match="not a CSV file in UTF-8"):
        sources.table(data, ("X",))
    table.write_text("")
    with pytest.raises(UserError, match="has no column 'path'"):
        sources.table(data, ("X",))


@WILD
@given(body=st.text(max_size=120))
def test_any_text_as_csv_rows(tmp_path: Path, body: str) -> None:
    (tmp_path / "samples.csv").write_text("path,label,box,time\n" + body, encoding="utf-8", errors="replace")
    data = Data(source="csv", root=tmp_path, max_bad=1)
    try:
        found = sources.table(data, ("X",))
    except UserError:
        return
    assert found.samples == []  # there is no picture


# --- toy


def test_toy_draws_a_sample_for_each_person_label_and_number() -> None:
    data = Data(source="toy")
    found = sources.drawn(data, ("Yawn", "SafeDriving"), people=3, pictures=4)
    assert len(found.samples) == 24 and len({s.id for s in found.samples}) == 24
    assert found.samples[5] == Sample("toy/cabin/0/Yawn/1", Path(), "Yawn", "person-0", frames=(1,))
    with pytest.raises(UserError, match="scene = 'cab': unknown; did you mean 'cabin'"):
        sources.drawn(data, ("Yawn",), scene="cab")
    with pytest.raises(UserError, match="labels = 'Yawm': the toy's cabin does not draw it; did you mean 'Yawn'"):
        sources.drawn(data, ("Yawm",))
    with pytest.raises(UserError, match="at least 16"):
        sources.drawn(data, ("Yawn",), height=4)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_from_a_spreadsheet_is_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    jpeg(tmp_path / "bilder" / "größe 1.jpg")
    rows = [["path", "label", "group"], ["bilder\\größe 1.jpg", "Yawn", "anna"]]
    (tmp_path / "samples.csv").write_text("\r\n".join(map(delimiter.join, rows)), encoding=encoding)
    (found,) = sources.table(Data(source="csv", root=tmp_path), ("Yawn", "Safe")).samples
    assert (found.id, found.label, found.group) == ("bilder/größe 1.jpg", "Yawn", "anna")


def test_a_csv_in_an_old_encoding_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_bytes("path,label\ngröße.jpg,Yawn".encode("cp1252"))
    with pytest.raises(UserError, match="save it as 'CSV UTF-8'"):
        sources.table(Data(source="csv", root=tmp_path), ("Yawn", "Safe"))


def test_roboflow_s_names_are_recording_and_frame_in_every_source(tmp_path: Path) -> None:
    names = (
        "gA_1_face_mp4-17_jpg.rf.497446994db1127948.jpg",
        "gA_1_face_mp4-17_jpg.rf.2ad82d4.jpg",
    )  # twice: augmented
    for label, name in zip(("Safe", "Yawn"), names, strict=True):
        jpeg(tmp_path / label / name)
    jpeg(tmp_path / "Yawn/photo_17_jpg.rf.12.jpg")  # a numbering, not a film
    found = sources.folders(Data(source="folders", root=tmp_path), ("Safe", "Yawn"))
    known = ("gA_1_face_mp4", 17.0)
    assert [(s.sequence, s.time) for s in found.samples] == [known, known, ("", 0.0)]
    rows = [f"Safe/{names[0]},Safe,", f"Yawn/{names[1]},Yawn,mine", "Yawn/photo_17_jpg.rf.12.jpg,Yawn,"]
    (tmp_path / "samples.csv").write_text("\n".join(["path,label,sequence", *rows]))
    found = sources.table(Data(source="csv", root=tmp_path), ("Safe", "Yawn"))
    assert [(s.sequence, s.time) for s in found.samples] == [known, ("mine", 0.0), ("", 0.0)]
