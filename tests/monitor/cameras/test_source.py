"""Sources: what they are, their names without secrets, their moments, and the paces at which they are read."""

import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import av
import cv2
import numpy as np
import pytest
import streams
from hypothesis import given, settings
from hypothesis import strategies as st

from stillwatch.errors import UserError
from stillwatch.media import synthetic
from stillwatch.media.decode import ToRgb
from stillwatch.monitor.cameras import source
from stillwatch.monitor.cameras.source import PlaybackClock, RateLimiter

# Long enough, and of letters that nothing harmless has, so that finding it again means that it leaked
SECRET = st.text(st.sampled_from("QXZJKqxzjk97@:/?#&=%+ é"), min_size=4, max_size=14).filter(
    lambda text: sum(letter in "QXZJKqxzjk" for letter in text) >= 3
)
KEYS = st.sampled_from(["token", "password", "pwd", "auth", "access_key", "user", "usr", "x", "channel", "subtype"])


def urls(one: str, two: str, key: str, encoded: int) -> list[str]:
    """The ways in which people write a password into a URL, percent-encoded so many times."""
    for _ in range(encoded):
        one, two = quote(one, safe=""), quote(two, safe="")
    return [
        f"rtsp://{one}:{two}@10.0.0.7:554/live?channel=1&subtype=0",
        f"http://cam.local:8080/video.mjpg?{key}={one}&pwd={two}",
        f"rtsp://10.0.0.7/user={one}_password={two}_channel=1_stream=0.sdp",
        f"https://{one}@cam.local/hls/index.m3u8?{key}={two}#{one}",
        f"rtsp://cam.local/{quote(f'x?{key}={one}&token={two}', safe='')}",
    ]


def pieces(secret: str) -> list[str]:
    """Every part of a secret that is long enough to be told from chance, and is not what every URL has."""
    parts = [secret[start : start + 3] for start in range(len(secret) - 2)]
    return [part for part in parts if any(letter.isalpha() for letter in part)]


@settings(max_examples=300)
@given(SECRET, SECRET, KEYS, st.integers(1, 3), st.integers(0, 4))
def test_no_part_of_an_encoded_secret_is_left(one: str, two: str, key: str, encoded: int, form: int) -> None:
    url = urls(one, two, key, encoded)[form]
    shown = source.redact(url)
    for piece in pieces(one) + pieces(two):
        assert piece not in shown
    assert shown == source.redact(shown), "it is its own redaction"
    error = OSError(5, f"Server returned 401 for {url} and for {url.partition('://')[2]}")
    said = source.redacted_error(error, url)
    for secret in (one, two):
        assert secret not in said and quote(secret, safe="") not in said


@settings(max_examples=200)
@given(SECRET, SECRET)
def test_a_secret_that_nobody_encoded_is_not_left_either(one: str, two: str) -> None:
    shown = source.redact(f"rtsp://{one}:{two}@10.0.0.7:554/live")
    assert not any(piece in shown for piece in pieces(one) + pieces(two))


def test_what_is_no_secret_may_be_seen() -> None:
    assert source.redact("rtsp://admin:p%40ss@10.0.0.7:554/live") == "rtsp://***@10.0.0.7:554/live"
    assert source.redact("rtsp://admin:p/ss@10.0.0.7/live") == "rtsp://***", "or is it a path?"
    for plain in ("toy://street?seed=3&size=360x640", "rtsp://10.0.0.7:554/Streaming/Channels/101", "0", "clip.mp4"):
        assert source.redact(plain) == plain
    assert source.redact("http://h/cgi?channel=1&action=x") == "http://h/cgi?channel=1&***"
    assert source.redact("rtsp://nvr.local:7447/Zk3Qx81LmNopQrSt") == "rtsp://nvr.local:7447/***"
    assert source.redact("admin:hunter2@10.0.0.7/live") == "***"


def test_sources_are_told_apart(tmp_path: Path) -> None:
    film = streams.film(tmp_path / "a.mp4", 0.3)
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((8, 8, 3), np.uint8))
    kinds = {"0": "device", "/dev/video2": "device", "rtsp://h/": "stream", "http://h/x.mjpg": "stream"}
    kinds |= {"toy://driver": "toy", str(film): "file", str(tmp_path): "folder"}
    assert {one: source.kind(one) for one in kinds} == kinds
    assert [one for one in kinds if source.is_live(one)] == ["0", "/dev/video2", "rtsp://h/", "http://h/x.mjpg"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("gone.mp4", "no such file"),
        ("rstp://u:hunter2@h/", r"unknown scheme 'rstp'; did you mean 'rtp'"),
        ("u:hunter2@h/live", r"= \*\*\*: no such file"),
        ("toy://drivr", "no such toy.*'driver'"),
        ("toy://driver?sede=3", "sede: unknown.*'seed'"),
        ("toy://driver?size=big", "size cannot be read"),
        ("toy://driver?fps=0", "fps cannot be read"),
        (".", "folder without pictures"),
    ],
)
def test_a_source_that_cannot_be_is_refused_by_name(here: Path, wrong: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        source.kind(wrong)
    assert "hunter2" not in str(caught.value)


def test_a_film_gives_every_frame_at_its_second(tmp_path: Path) -> None:
    film = streams.film(tmp_path / "a.mp4", 2)
    found = list(source.frames(str(film)))
    assert [round(seconds, 6) for seconds, _ in found] == [n / 10 for n in range(20)]
    for number, (_, image) in enumerate(found):
        assert image.shape == (96, 128, 3) and image.dtype == np.uint8
        assert np.abs(image.astype(int) - streams.picture(number, (96, 128))).mean() < 12
    assert [round(seconds, 6) for seconds, _ in source.frames(str(film), fps=4)] == [
        0,
        0.3,
        0.5,
        0.8,
        1.0,
        1.3,
        1.5,
        1.8,
    ]


def test_a_folder_is_in_the_order_of_its_numbers_and_bad_pictures_are_left_out(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        cv2.imwrite(str(tmp_path / f"p{number}.png"), np.full((8, 8, 3), number, np.uint8))
    (tmp_path / "p3.png").write_bytes(b"no picture")
    found = list(source.frames(str(tmp_path), fps=5))
    assert [(seconds, int(image[0, 0, 0])) for seconds, image in found] == [(0, 1), (0.2, 2), (0.4, 10)]


def test_a_toy_is_what_toy_draws() -> None:
    found = list(source.frames("toy://street?seed=3&fps=5&size=48x64&seconds=1"))
    drawn = list(synthetic.clip("street", 1, 5, 3, (48, 64)))
    assert [seconds for seconds, _ in found] == [seconds for seconds, _, _ in drawn]
    assert all((one == other).all() for (_, one), (_, other, _) in zip(found, drawn, strict=True))
    endless = source.drawn("toy://driver?fps=0.1&size=16x16", 10, print, loop=False)
    assert [next(endless)[0] for _ in range(62)][-2:] == [600, 610]


def test_a_live_source_and_a_file_that_is_no_film_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is live"):
        list(source.frames("rtsp://u:hunter2@h/"))
    (tmp_path / "a.mp4").write_bytes(b"x" * 500)
    with pytest.raises(UserError, match="cannot be read as a film"):
        list(source.frames(str(tmp_path / "a.mp4")))


def test_a_text_is_no_film(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some lines of text\n" * 100)
    with pytest.raises(UserError, match="it is text, no film"):
        list(source.frames(str(tmp_path / "notes.txt")))


def test_brightness_is_read_without_a_conversion(tmp_path: Path) -> None:
    import av

    frame = av.VideoFrame.from_ndarray(streams.picture(0, (96, 128)), format="rgb24")
    gray = frame.reformat(format="yuv420p")
    shot = source.VideoFrame(gray, 0.0, 0.0, ToRgb())
    luma = shot.luma()
    assert luma.shape == (48, 64)
    assert (luma == gray.to_ndarray()[:96:2, :128:2]).all()
    assert shot.rgb().shape == (96, 128, 3)
    packed = source.VideoFrame(frame, 0.0, 0.0, ToRgb())
    assert (packed.luma() == packed.rgb()[::2, ::2, 1]).all()


def test_a_pace_lets_the_rate_through_and_forgives_a_late_frame() -> None:
    pace = RateLimiter(10)
    assert sum(pace.due(n / 25) for n in range(250)) == 100
    chance = np.random.default_rng(0)
    jittered = RateLimiter(10)
    assert sum(jittered.due(n / 10 + chance.uniform(-0.03, 0.03)) for n in range(1000)) >= 990
    late = RateLimiter(1)
    assert [late.due(now) for now in (0, 9, 9.05, 9.6, 10, 11)] == [True, True, False, True, False, True]
    assert all(RateLimiter(None).due(n) for n in (0, 0, 0))


def test_waits_double_to_the_longest_and_never_exceed_it() -> None:
    backoff = source.backoff(0.5, 4, random.Random(0))
    waits = list(islice(backoff, 50))
    for wait, most in zip(waits, [0.5, 1, 2, *[4] * 47], strict=True):
        assert most / 2 <= wait <= most
    assert len(set(waits)) == 50, "jittered"


def test_a_metronome_keeps_time_and_does_not_run_to_catch_up() -> None:
    beat = PlaybackClock(2)
    assert beat.wait(0, 100) == 0
    assert beat.wait(1, 100.1) == pytest.approx(0.4)
    assert beat.wait(2, 105) == 0
    assert beat.wait(3, 105) == pytest.approx(0.5)
    assert PlaybackClock(0).wait(99, 0) == 0
    leaping = PlaybackClock(1, longest=3)
    assert [leaping.wait(0, 10), leaping.wait(2, 10), leaping.wait(5000, 12), leaping.wait(5001, 12)] == [0, 2, 0, 1]


@pytest.mark.parametrize("wrong", ["toy://[x", "x" * 300, "a\0b"])
def test_a_source_that_breaks_the_systems_calls_is_an_error_of_one_line(wrong: str) -> None:
    with pytest.raises(UserError, match=r"\Asource = [^\n]{1,250}\Z"):
        source.kind(wrong)


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("/dev/video87", FileNotFoundError(2, "No such file or directory"), "no such webcam; this machine has"),
        ("http://h/index.html", av.error.InvalidDataError(1, "Invalid data"), "perhaps a web page"),
        ("rtsp://admin:hun#ter2@h/", OSError(5, "Input/output error"), "percent-encode the password"),
        ("rtsp://admin:hun@ter2@h/", OSError(5, "Input/output error"), "percent-encode the password"),
    ],
)
def test_a_source_that_does_not_open_says_what_to_do(address: str, error: OSError, words: str) -> None:
    reason = source.open_error(error, address)
    assert words in reason
    assert "ter2" not in reason
    assert "percent" not in source.open_error(error, "rtsp://admin:hun%40ter2@h/")


def test_what_is_held_back_until_a_time_out_is_no_new_packet() -> None:
    class Frozen:
        def demux(self) -> Iterator[str]:
            yield "new"
            yield "new"
            time.sleep(0.2)  # FFmpeg's time-out
            yield "its parser's last"

    with pytest.raises(TimeoutError):
        list(source.packets(Frozen(), 0.2))  # type: ignore[arg-type]
    taken = []
    for packet in source.packets(Frozen(), 0.5):  # type: ignore[arg-type]
        taken.append(packet)
        time.sleep(0.3)  # who looks at one for long makes the next no older
    assert len(taken) == 3


def test_a_picture_that_would_take_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = str(streams.film(tmp_path / "a.mp4", 0.3))
    source.open_video(film).close()
    monkeypatch.setattr(source, "LARGEST", 96 * 128 - 1)
    with pytest.raises(ValueError, match="128×96 pixels: more than"):
        source.open_video(film)


def test_hardware_is_the_first_that_starts_or_a_reason_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hardware decoder was at hand when this was written: these are told to behave as FFmpeg's do."""

    class Fake:
        def __init__(self, name: str):
            self.name = name

        def create(self, codec: av.Codec) -> "Fake":
            if self.name == "cuda":
                raise av.error.PermissionError(1, "Operation not permitted")
            if self.name == "drm":
                raise NotImplementedError
            return self

    monkeypatch.setattr(source, "HWAccel", Fake)
    monkeypatch.setattr(source, "hwdevices_available", lambda: ["cuda", "drm"])
    assert source.hardware("auto") == "cuda: Operation not permitted; drm: no decoder of H.264"
    assert source.hardware("vaapi") == "this FFmpeg has cuda, drm"
    monkeypatch.setattr(source, "hwdevices_available", lambda: ["cuda", "drm", "vaapi"])
    for decode in ("auto", "vaapi"):
        assert getattr(source.hardware(decode), "name", None) == "vaapi"
    assert source.hardware("cuda") == "cuda: Operation not permitted"
    monkeypatch.setattr(source, "hwdevices_available", list)
    assert source.hardware("auto") == source.hardware("cuda") == "this FFmpeg has no hardware decoders"
