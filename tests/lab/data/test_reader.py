"""gather() agrees with its recipe or says what is wrong; decode() gives pixels or a reason, and never falls over."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import idx_pair, jpeg, video

from stillwatch.errors import UserError
from stillwatch.lab.data.reader import decode, gather
from stillwatch.lab.data.sources import SOURCES, Sample, read_idx
from stillwatch.lab.data.splits import assign
from stillwatch.media import image as pixels
from stillwatch.media import synthetic
from stillwatch.media.decode import cut_off, read_picture
from stillwatch.recipe import Data, Recipe, check

LABELS = ("Safe", "Yawn")


def recipe(labels: tuple[str, ...] = LABELS, **data: Any) -> Recipe:
    net = {"net": "smallcnn"}
    return check({"name": "t", "labels": list(labels), "data": data, "teacher": net, "student": net}, "t.toml")


def two_classes(root: Path) -> None:
    for label in LABELS:
        for driver in (1, 2, 3):
            jpeg(root / label / f"gA_{driver}_{label}.jpg", driver)


# --- gather


def test_gather_lays_the_regex_over_the_file_name(tmp_path: Path) -> None:
    two_classes(tmp_path)
    found = gather(recipe(source="folders", root=str(tmp_path), group=r"^g[AB]_(\d+)_"))
    assert len(found.samples) == 6 and found.skipped == []
    assert [s.group for s in found.samples] == ["1", "2", "3"] * 2


def test_gather_looks_in_the_whole_path_second(tmp_path: Path) -> None:
    jpeg(tmp_path / "Safe/anna/1.jpg")
    jpeg(tmp_path / "Yawn/anna/anna/2.jpg")
    found = gather(recipe(source="folders", root=str(tmp_path), group=r"^\w+/(\w+)/"))
    assert [s.group for s in found.samples] == ["anna", "anna"]


def test_gather_skips_the_few_without_a_group(tmp_path: Path) -> None:
    two_classes(tmp_path)
    jpeg(tmp_path / "Safe/unknown.jpg")
    found = gather(recipe(source="folders", root=str(tmp_path), group=r"^g[AB]_(\d+)_"))
    assert len(found.samples) == 6
    assert [(s.file, s.reason) for s in found.skipped] == [
        ("Safe/unknown.jpg", r"no group by data.group = '^g[AB]_(\\d+)_'")
    ]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (r"^gC_(\d+)_", "no sample gets a group by it"),
        (r"^gA_\d+_", "has no bracket"),
        (r"^gA_(\d+_", "not a regular expression"),
        ("folder", "no sample gets a group by it"),
        ("column:who", "no sample gets a group by it"),
    ],
)
def test_gather_refuses_a_group_that_cannot_be(tmp_path: Path, group: str, message: str) -> None:
    two_classes(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        gather(recipe(source="folders", root=str(tmp_path), group=group))
    assert str(caught.value).startswith("data.group = ") and "\n" not in str(caught.value)


def test_a_regex_does_not_see_the_frame_number(tmp_path: Path) -> None:
    video(tmp_path / "Safe/x_cam1.mp4", 2)
    video(tmp_path / "Yawn/x_cam2.mp4", 2)
    found = gather(recipe(source="videos", root=str(tmp_path), group=r"_(cam\d)\.mp4$"))
    assert [s.group for s in found.samples] == ["cam1", "cam1", "cam2", "cam2"]


def test_gather_names_what_disagrees_about_labels(tmp_path: Path) -> None:
    two_classes(tmp_path)
    with pytest.raises(
        UserError, match=r"labels: the data has 'Yawn' \(Yawn/\S+\), which the recipe lacks; did you mean 'Yawm'"
    ):
        gather(recipe(("Safe", "Yawm"), source="folders", root=str(tmp_path)))
    with pytest.raises(UserError, match="labels = 'Drinking': no sample has it; known: "):
        gather(recipe(("Safe", "Yawn", "Drinking"), source="folders", root=str(tmp_path)))


def test_gather_names_a_missing_root_source_or_option(tmp_path: Path) -> None:
    (tmp_path / "drivers").mkdir()
    with pytest.raises(UserError, match=r"data\.root = '.*driver': no such folder; did you mean 'drivers'"):
        gather(recipe(source="folders", root=str(tmp_path / "driver")))
    with pytest.raises(UserError, match=r"data\.root = '/no-such-thing': no such folder$"):  # what lies in / is no help
        gather(recipe(source="folders", root="/no-such-thing"))
    with pytest.raises(UserError, match=r"'moved': no such folder in /.*, where a relative path starts; data.root="):
        gather(recipe(source="folders", root="moved"))
    with pytest.raises(UserError, match=r"data\.root = '.*c': no such folder$"):
        gather(recipe(source="folders", root=str(tmp_path / "a/b/c")))
    with pytest.raises(UserError, match=r"data\.source = 'folder': unknown; did you mean 'folders'"):
        gather(recipe(source="folder", root=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.source\.limt = 3: unknown option; did you mean 'limit'"):
        gather(recipe(source={"name": "videos", "limt": 3}, root=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.source\.rate = 3: not an option of a source; it is data\.rate"):
        gather(recipe(source={"name": "videos", "rate": 3}, root=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.source\.limit = 'x': Input should be a valid integer"):
        gather(recipe(source={"name": "videos", "limit": "x"}, root=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.source\.people = -1: Input should be greater than or equal to 0"):
        gather(recipe(source={"name": "toy", "people": -1}))
    with pytest.raises(UserError, match="limit = 1: unknown option; it has no options"):
        gather(recipe(source={"name": "folders", "limit": 1}, root=str(tmp_path)))


def test_gather_says_why_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the source finds no sample there$"):
        gather(recipe(source="folders", root=str(tmp_path)))
    (tmp_path / "Safe").mkdir()
    (tmp_path / "Safe/a.jpg").touch()
    with pytest.raises(UserError, match=r"finds no sample there; 1 skipped, first Safe/a\.jpg: empty file"):
        gather(recipe(source="folders", root=str(tmp_path)))


def test_pictures_have_one_frame(tmp_path: Path) -> None:
    two_classes(tmp_path)
    with pytest.raises(UserError, match=r"data\.frames = 4: Safe/\S+ is a single picture"):
        gather(recipe(source="folders", root=str(tmp_path), frames=4))


def test_gather_is_the_same_twice(tmp_path: Path) -> None:
    two_classes(tmp_path)
    chosen = recipe(source="folders", root=str(tmp_path), group=r"_(\d)_", folds=3)
    first, second = gather(chosen), gather(chosen)
    assert first == second and len({s.id for s in first.samples}) == len(first.samples) == 6
    assert assign(first.samples, chosen.data) == assign(second.samples, chosen.data)


# --- decode: pictures


def only(samples: list[Sample], data: Data) -> Any:
    results = list(decode(samples, data))
    assert [sample for sample, _ in results] == samples
    return results[0][1]


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("gray", [True, False])
def test_decode_gives_rgb_or_gray_of_the_recipes_size(tmp_path: Path, kind: str, gray: bool) -> None:
    path = tmp_path / f"büro 车{kind}"
    image = np.zeros((40, 60, 3), np.uint8)
    image[:] = (200, 100, 20)  # RGB
    path.write_bytes(cv2.imencode(kind, image[:, :, ::-1])[1].tobytes())
    data = Data(source="folders", size=(24, 32), gray=gray)
    out = only([Sample("x", path, "Safe")], data)
    assert out.shape == (1, 24, 32, 1 if gray else 3) and out.dtype == np.uint8
    assert abs(out[0, 12, 16].astype(int) - ([121] if gray else [200, 100, 20])).max() <= 6


def test_decode_fits_as_the_recipe_says(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "a.jpg")
    data = Data(source="folders", size=32, fit="letterbox")
    whole = read_picture(path)
    assert not isinstance(whole, str)
    np.testing.assert_array_equal(
        only([Sample("x", path, "Safe")], data)[0], pixels.fit(whole, (32, 32), "letterbox", 3)
    )


def test_a_region_is_cut_at_native_size_whatever_shrink_says(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(cv2.imencode(".jpg", synthetic.still("cabin", "Yawn", 0, 0, (240, 320)))[1].tobytes())
    data = Data(source="folders", size=16, region="face", shrink="decode")
    whole = read_picture(path)
    assert not isinstance(whole, str)
    wanted = pixels.fit(whole[120:200, 160:240], (16, 16))
    assert np.array_equal(only([Sample("x", path, "Safe", box=(160, 120, 240, 200))], data)[0], wanted)


def test_decode_names_what_is_wrong_with_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = jpeg(tmp_path / "a.jpg").read_bytes()
    png = cv2.imencode(".png", synthetic.still("cabin", "Yawn", 0, 0))[1].tobytes()
    files = {
        "empty.jpg": (b"", "empty file"),
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "nearly.jpg": (whole[:-2], "truncated"),
        "header.jpg": (whole[:20], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "bmp.bmp": (cv2.imencode(".bmp", np.zeros((9, 9, 3), np.uint8))[1].tobytes()[:100], "truncated"),
        "webp.webp": (cv2.imencode(".webp", np.zeros((9, 9, 3), np.uint8))[1].tobytes()[:-9], "truncated"),
        "text.jpg": (b"<html>404 not found</html>", "cannot be decoded"),
    }
    data = Data(source="folders", size=16)
    for name, (raw, reason) in files.items():
        (tmp_path / name).write_bytes(raw)
        assert only([Sample(name, tmp_path / name, "Safe")], data) == reason, name
    assert only([Sample("gone", tmp_path / "gone.jpg", "Safe")], data) == "missing file"
    (tmp_path / "dir.jpg").mkdir()
    assert only([Sample("dir", tmp_path / "dir.jpg", "Safe")], data).startswith("cannot be read")
    assert capfd.readouterr().err == ""


def test_a_thumbnail_or_a_trailer_does_not_confuse_the_end_of_a_jpeg(tmp_path: Path) -> None:
    whole = jpeg(tmp_path / "a.jpg").read_bytes()
    thumbnail = b"\xff\xe1" + (2 + len(whole)).to_bytes(2, "big") + whole  # APP1 holds a whole JPEG
    assert not cut_off(whole[:2] + thumbnail + whole[2:])
    assert cut_off(whole[:2] + thumbnail + whole[2:-40])
    assert not cut_off(whole + b"\0" * 5000)  # phones append a clip, cameras pad


def test_every_cut_of_a_picture_is_noticed() -> None:
    image = synthetic.still("cabin", "Drinking", 1, 1, (16, 16))
    for kind in (".jpg", ".png"):
        whole = cv2.imencode(kind, image)[1].tobytes()
        assert not cut_off(whole)
        cuts = [end for end in range(8, len(whole) - 12) if not cut_off(whole[:end])]
        assert len(whole) > 300 and cuts == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF\0\0\0\0WEBP"]),
    rest=st.binary(max_size=200),
)
def test_any_bytes_as_a_picture(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(start + rest)
    out = only([Sample("x", path, "Safe")], Data(source="folders", size=16))
    assert isinstance(out, str) or out.shape == (1, 16, 16, 3)


# --- decode: idx, toy


def test_decode_rows_of_an_idx_file(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", 10)
    idx_pair(tmp_path, "t10k", 10)
    digits = tuple(str(n) for n in range(10))
    chosen = recipe(digits, source="idx", root=str(tmp_path), size=[8, 10], gray=True, split="official")
    samples = gather(chosen).samples
    assert len(samples) == 20
    out = dict(decode([samples[3], samples[7]], chosen.data))
    assert out[samples[3]].shape == (1, 8, 10, 1)
    assert out[samples[3]].min() == 60 and out[samples[3]].max() == 79 and out[samples[7]].min() == 140
    beyond = replace(samples[0], id="x#99", frames=(99,))
    assert only([beyond], chosen.data) == "the file has 10 rows"


def test_decode_an_idx_file_that_went_bad(tmp_path: Path) -> None:
    idx_pair(tmp_path, "train", 10, zipped=False)
    samples = SOURCES["idx"](Data(source="idx", root=tmp_path), ()).samples[1:2]
    samples[0].path.write_bytes(b"gone bad")
    read_idx.cache_clear()
    assert "starts with" in only(samples, Data(source="idx"))


def test_decode_draws_the_toy_again() -> None:
    chosen = recipe(
        ("Violence", "NonViolence"),
        source={"name": "toy", "scene": "street", "people": 3, "pictures": 2, "height": 48, "width": 64},
        size=[48, 64],
    )
    samples = gather(chosen).samples
    assert len(samples) == 12
    out = list(decode(samples, chosen.data))
    assert [sample for sample, _ in out] == samples
    np.testing.assert_array_equal(out[7][1][0], synthetic.still("street", samples[7].label, 1, 1, (48, 64)))


# --- decode: clips


@pytest.mark.parametrize("kind", [".mp4", ".avi", ".mkv"])
def test_decode_gives_the_very_frames(tmp_path: Path, kind: str) -> None:
    video(tmp_path / f"Safe/ä{kind}", 12)
    video(tmp_path / f"Yawn/b{kind}", 5)
    chosen = recipe(source="videos", root=str(tmp_path), size=[24, 32], rate=5, frames=3)
    samples = gather(chosen).samples
    assert [s.frames for s in samples] == [(0, 2, 4), (6, 8, 10), (0, 2, 4)]
    out = list(decode(samples[:2], chosen.data))
    assert [sample.id for sample, _ in out] == [sample.id for sample in samples[:2]]
    for sample, clip in out:
        assert clip.shape == (3, 24, 32, 3)
        means = clip.reshape(3, -1).mean(axis=1)
        assert abs(means - [8 * number for number in sample.frames]).max() < 4


def test_decode_repeats_the_last_frame_and_gives_gray(tmp_path: Path) -> None:
    video(tmp_path / "Safe/a.mp4", 3)
    video(tmp_path / "Yawn/a.mp4", 3)
    chosen = recipe(source="videos", root=str(tmp_path), size=16, frames=5, gray=True)
    out = only(gather(chosen).samples[:1], chosen.data)
    assert out.shape == (5, 16, 16, 1)
    assert abs(out.reshape(5, -1).mean(axis=1) - [0, 8, 16, 16, 16]).max() < 4


def test_decode_frames_with_b_pictures_in_the_order_they_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            picture = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    samples = [Sample(f"a#{n}", path, "Safe", frames=(n,)) for n in range(12)]
    out = [clip for _, clip in decode(samples, Data(source="videos", size=16))]
    assert [round(float(clip.mean()) / 20) for clip in out] == list(range(12))


def test_decode_gives_a_reason_for_frames_that_are_not_there(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", 4)
    samples = [Sample(f"a#{n}", path, "Safe", frames=(n,)) for n in (1, 3, 9)]
    out = [value for _, value in decode(samples, Data(source="videos", size=16))]
    assert [isinstance(value, str) for value in out] == [False, False, True]
    assert out[2] == "only 4 frames can be decoded, frame 9 is wanted"
    missing = Sample("b#0", tmp_path / "b.mp4", "Safe", frames=(0,))
    assert "only 0 frames can be decoded" in only([missing], Data(source="videos", size=16))
    assert list(decode([], Data(source="videos"))) == []


@pytest.mark.parametrize("seed", range(12))
def test_a_clip_with_rotten_bytes_never_raises(tmp_path: Path, seed: int) -> None:
    path = video(tmp_path / "a.mp4", 20)
    raw, dice = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(10 * (seed + 1)):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    path.write_bytes(raw)
    samples = [Sample(f"a#{n}", path, "Safe", frames=(n,)) for n in range(20)]
    out = list(decode(samples, Data(source="videos", size=16)))
    assert len(out) == 20 and all(isinstance(v, str) or v.shape == (1, 16, 16, 3) for _, v in out)
