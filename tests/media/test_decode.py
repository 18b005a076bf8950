"""Files as people have them: films lying on their side, odd kinds of pictures, deep tones, header bombs."""

import struct
import zlib
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import streams
from PIL import Image

from stillwatch.media import image, synthetic
from stillwatch.media.decode import MAX_PIXELS, WholeFrames, clips, read_picture, times_of


def corner() -> np.ndarray:
    """uint8 (48,64,3), black but for its upper left corner."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = 255
    return image


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_a_film_comes_upright(tmp_path: Path, degrees: int) -> None:
    path, turns = tmp_path / "phone.mp4", degrees // 90
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        lying = np.ascontiguousarray(np.rot90(corner(), -turns))  # as the sensor saw it
        stream.height, stream.width = lying.shape[:2]
        stream.set_display_rotation(degrees)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(lying, format="rgb24")))
        container.mux(stream.encode())
    assert len(times_of(path)) == 3
    ((_, images),) = clips(path, [(1,)], lambda image: image)
    assert not isinstance(images, str)
    assert images[0].shape == (48, 64, 3)
    assert images[0][4:12, 4:12].min() > 200
    assert images[0][20:, 20:].max() < 60


@pytest.mark.parametrize("kind", ["tiff", "gif", "avif", "jpeg", "png", "webp"])
def test_kinds_of_pictures_and_their_orientation(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: phones held upright
    path = tmp_path / f"a.{kind}"
    turned = kind in ("tiff", "avif", "jpeg")
    Image.fromarray(np.ascontiguousarray(np.rot90(corner(), 1)) if turned else corner()).save(
        path, kind.upper(), **({"exif": exif} if turned else {})
    )
    image = read_picture(path)
    assert not isinstance(image, str), image
    assert image.shape == (48, 64, 3)
    assert image[4:12, 4:12].min() > 200
    assert image[20:, 20:].max() < 60


def test_deep_and_printed_tones_are_right(tmp_path: Path) -> None:
    deep = np.full((16, 16), 0x8040, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    for name in ("deep.tif", "deep.png"):
        image = read_picture(tmp_path / name)
        assert not isinstance(image, str)
        assert np.abs(image.astype(int) - 0x80).max() <= 1, name
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)  # red
    image = read_picture(tmp_path / "print.jpg")
    assert not isinstance(image, str)
    assert np.abs(image[8, 8].astype(int) - [255, 0, 0]).max() <= 12


def test_sizes_are_read_before_pixels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    assert read_picture(tmp_path / "dot.png") == "1×1 pixels: the shorter side is below 8"
    side = int(MAX_PIXELS**0.5) + 1

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert read_picture(tmp_path / "bomb.png") == f"{side}×{side} pixels: more than 100 million"


def test_a_frame_that_refers_to_a_damaged_one_is_damaged_too(tmp_path: Path) -> None:
    with av.open(str(streams.film(tmp_path / "a.ts", 2))) as container:
        stream = container.streams.video[0]
        said: list[str] = []
        whole, shown = WholeFrames(said.append), []
        for number, packet in enumerate(container.demux(stream)):
            if number == 7:
                half = av.Packet(bytes(packet)[: packet.size // 2])
                half.pts, half.dts, half.stream = packet.pts, packet.dts, stream
                packet = half
            shown += [frame.pts for frame in whole(packet)]
    first, step = shown[0], shown[1] - shown[0]
    assert [(pts - first) // step for pts in shown] == [*range(7), *range(10, 20)], "a keyframe each second"
    assert said == ["a damaged picture"] * 3


def test_a_picture_whose_data_end_before_its_end_mark_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    for drawn in (streams.picture(1, (96, 128)), np.full((96, 128, 3), 128, np.uint8)):
        cv2.imwrite(str(path), drawn)
        assert not isinstance(read_picture(path), str)
    raw = cv2.imencode(".jpg", streams.picture(1, (96, 128)))[1].tobytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(raw[: int(share * len(raw))] + b"\xff\xd9")
        assert read_picture(path) == "truncated", share


def test_a_cut_picture_of_a_motion_jpeg_is_a_damaged_frame(tmp_path: Path) -> None:
    with (
        av.open(str(streams.film(tmp_path / "a.avi", 1, codec="mjpeg"))) as film,
        av.open(str(tmp_path / "b.avi"), "w") as out,
    ):
        stream = out.add_stream_from_template(film.streams.video[0])
        for number, packet in enumerate(packet for packet in film.demux(video=0) if packet.size):
            data = bytes(packet)
            cut = {3: data[: len(data) // 2], 5: data[: len(data) // 2] + b"\xff\xd9"}.get(number, data)
            again = av.Packet(cut)
            again.pts, again.dts, again.stream = packet.pts, packet.dts, stream
            out.mux(again)
    found = dict(clips(tmp_path / "b.avi", [(n,) for n in range(10)], lambda image: image))
    assert [n for (n,), images in found.items() if isinstance(images, str)] == [3, 5]
    assert found[3,] == "damaged frame"


@pytest.mark.parametrize(("least", "scale"), [((112, 160), 2), ((64, 64), 4), ((181, 160), 1), (None, 1)])
def test_a_jpeg_is_read_at_the_nearest_scale_that_is_enough(
    tmp_path: Path, least: tuple[int, int] | None, scale: int
) -> None:
    """Tolerance at the net's size, of 255: 1 on average, 24 at most."""
    picture = synthetic.still("cabin", "Yawn", 0, 0, (360, 640))
    (tmp_path / "a.jpg").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    small, whole = read_picture(tmp_path / "a.jpg", least), read_picture(tmp_path / "a.jpg")
    assert not isinstance(small, str) and not isinstance(whole, str)
    assert small.shape == (360 // scale, 640 // scale, 3)
    size = least or (112, 160)
    difference = np.abs(image.fit(small, size).astype(int) - image.fit(whole, size))
    assert difference.mean() <= 1 and difference.max() <= 24
    other = read_picture(tmp_path / "a.png", least)
    assert not isinstance(other, str) and other.shape == (360, 640, 3)
    # Text where EXIF's orientation is a number
    words = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\x006\0\0\0\0\0\0\0"
    Image.fromarray(whole).save(tmp_path / "b.jpg", exif=words)
    odd = read_picture(tmp_path / "b.jpg", least)
    assert not isinstance(odd, str) and odd.shape == small.shape
