"""watch.toml: what is right starts, what is wrong is named by key and line."""

from pathlib import Path

import pytest

from stillwatch.errors import UserError
from stillwatch.monitor import config

GOOD = """bundle = "b"
[[camera]]
name = "cab"
source = "toy://driver"
"""
SHIPPED = Path(__file__).parent.parent.parent / "deploy" / "watch.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "watch.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as mistake:
        config.load(written(folder, text))
    return str(mistake.value).replace(str(folder), "")


def test_the_shipped_example_is_whole_and_shows_the_defaults() -> None:
    loaded = config.load(SHIPPED)
    assert (loaded.bad_cameras, loaded.bad_sinks) == ({}, {})
    assert loaded.config.web == config.Web()
    assert loaded.config.keep == config.Keep(folder=SHIPPED.parent / "watch")
    assert loaded.config.camera[0] == config.CameraConfig(name="cab", source="toy://driver")


def test_the_examples_in_its_comments_are_right_too(tmp_path: Path) -> None:
    lines = SHIPPED.read_text(encoding="utf-8").partition("\n\n")[2].splitlines()
    loaded = config.load(written(tmp_path, "\n".join(line.removeprefix("# ") for line in lines)))
    assert (loaded.bad_cameras, loaded.bad_sinks) == ({}, {})
    assert [sink.name for sink in loaded.config.sink] == ["log", "desk", "home", "hub", "phone", "relay"]
    assert loaded.config.rule is not None
    assert loaded.config.rule.off == ("drinking",)


def test_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    text = GOOD + '[[camera]]\nname="film"\nsource="clips/a.mp4"\n[[camera]]\nname="secret"\nsource="$URL"\n'
    text += 'person={model="people.onnx"}\n'
    text += '[[sink]]\nname="l"\nto={name="jsonl",path="told.jsonl"}\n[[sink]]\nname="s"\nto="sound"\n'
    watch = config.load(written(tmp_path, text)).config
    assert [sink.to for sink in watch.sink] == [{"name": "jsonl", "path": str(tmp_path / "told.jsonl")}, "sound"]
    text += '[[sink]]\nname="p"\nto={name="mypackage.sinks:Book",path="told.txt",file="/a",title="b"}\n'
    watch = config.load(written(tmp_path, text)).config
    assert watch.sink[2].to == {
        "name": "mypackage.sinks:Book", "path": str(tmp_path / "told.txt"), "file": "/a", "title": "b",
    }  # fmt: skip
    assert watch.bundle == tmp_path / "b"
    assert [one.person and one.person.model for one in watch.camera[1:]] == [None, tmp_path / "people.onnx"]
    assert watch.keep.folder == tmp_path / "watch"
    assert [camera.source for camera in watch.camera] == ["toy://driver", str(tmp_path / "clips/a.mp4"), "$URL"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "[web]\nprot = 1\n", "watch.toml: line 6: web.prot = 1: unknown key; did you mean 'port'?"),
        (GOOD + "[web]\nport = 70000\n", "watch.toml: line 6: web.port = 70000: "),
        (GOOD + '[web]\ntoken = "abc"\n', 'a secret stands in the environment: token = "$STILLWATCH_TOKEN"'),
        (GOOD + "[keep]\n\ndays = -1\n", "watch.toml: line 7: keep.days = -1: "),
        ("bundel = 1\n" + GOOD, "watch.toml: line 1: bundel = 1: unknown key; did you mean 'bundle'?"),
        ('bundle = "b"\n', "watch.toml: camera: missing; add [[camera]] with name and source"),
        ('bundle = "b"\ncamera = 3\n', "watch.toml: line 2: camera: is written [[camera]], once for each"),
        (GOOD.replace("[[", "[["[:1]).replace("]]", "]"), "watch.toml: line 2: camera: is written [[camera]]"),
        ("bundle = \n", "watch.toml: not valid TOML: "),
        (GOOD.replace('source = "toy://driver"', "fps = 0"), "line 2: camera.source: missing"),
    ],
)
def test_a_fault_names_key_and_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(tmp_path, text)


def test_a_bad_camera_does_not_keep_the_good_ones_from_starting(tmp_path: Path) -> None:
    text = GOOD + '[[camera]]\nname = "yard"\nsource = "1"\n\nfsp = 5\n[[camera]]\nname = "cab"\nsource = "2"\n'
    loaded = config.load(written(tmp_path, text))
    assert [camera.name for camera in loaded.config.camera] == ["cab"]
    path = tmp_path / "watch.toml"
    assert loaded.bad_cameras == {
        "yard": f"{path}: line 9: camera.fsp = 5: unknown key; did you mean 'fps'?",
        "cab-3": f"{path}: line 11: camera.name = 'cab': there is one already",
    }


def test_a_bad_sink_neither(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, GOOD + '[[sink]]\nname = "a"\nto = "log"\nlevel = "wran"\n'))
    assert loaded.config.sink == ()
    assert "line 8: sink.level = 'wran': not allowed; did you mean 'warn'?" in loaded.bad_sinks["a"]


def test_where_no_camera_is_right_all_faults_are_said(tmp_path: Path) -> None:
    text = 'bundle = "b"\n[[camera]]\nname = "a b"\nsource = "0"\n[[camera]]\nsource = "0"\n'
    said = refused(tmp_path, text).splitlines()
    assert len(said) == 2
    assert "line 3: camera.name = 'a b'" in said[0]
    assert "line 5: camera.name: missing" in said[1]


def test_no_file_names_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"wacth.toml: no such file; did you mean 'watch.toml'\?"):
        config.load(tmp_path / "wacth.toml")


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "s3cret")
    assert config.secret({"a": ["$HOOK", 3], "b": "cost $HOOK"}) == {"a": ["s3cret", 3], "b": "cost $HOOK"}
    monkeypatch.delenv("HOOK")
    with pytest.raises(UserError, match=r"\$HOOK: not set in the environment"):
        config.secret("$HOOK")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("0", "camera0"),
        ("a/night film.mp4", "night-film"),
        ("rtsp://user:pass@10.0.0.7:554/live?x=1", "10-0-0-7-554"),
        ("toy://driver?seed=3", "toy-driver"),
        ("/dev/video0", "video0"),
    ],
)
def test_a_single_cameras_name_has_nothing_secret_in_it(source: str, name: str) -> None:
    assert config.single(Path("b"), source).config.camera[0].name == name


@pytest.mark.parametrize(
    "line",
    [
        "url = 'rtsp://admin:hunter2@cam/'",
        "pasword = 'hunter2'",
        "source = ['rtsp://admin:hunter2@cam/']",
        "stall = 'rtsp://admin:hunter2@cam/'",
        "name = 'admin:hunter2@cam'",
        "transport = 'admin:hunter2@cam'",
    ],
)
def test_no_error_shows_what_may_be_a_password(tmp_path: Path, line: str) -> None:
    key = line.partition(" ")[0]
    rest = {"name": "name = 'yard'", "source": "source = '0'", key: line}
    loaded = config.load(written(tmp_path, GOOD + "[[camera]]\n" + "\n".join(rest.values())))
    ((name, reason),) = loaded.bad_cameras.items()
    assert f"camera.{key} = " in reason
    assert "hunter2" not in name + reason


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "watch.toml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert config.load(path).config.camera[0].name == "cab"


def test_one_zone_or_span_is_a_list_of_one_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    one = 'ignore = [[0, 0], [0.5, 0], [0, 1]]\ncrop = [0, 0, 1, 0.5]\narmed = "22:00-06:00"\n'
    two = (
        'ignore = [[[0, 0], [0.5, 0], [0, 1]], [[1, 1], [0.5, 1], [1, 0.5]]]\narmed = ["22:00-06:00", "12:00-13:00"]\n'
    )
    head = f'timezone = "Europe/Berlin"\narmed = "20:00-22:00"\n{GOOD}'
    first, second = (config.load(written(tmp_path, head + text)).config for text in (one, two))
    assert (first.camera[0].ignore, first.camera[0].armed) == ((((0, 0), (0.5, 0), (0, 1)),), ("22:00-06:00",))
    assert [len(polygon) for polygon in second.camera[0].ignore] == [3, 3]
    assert (first.armed, len(second.camera[0].armed)) == (("20:00-22:00",), 2)
    for text, place in {
        "ignore = [[0, 0], [1, 1]]": "line 5: camera.ignore", "crop = [0.5, 0, 0.5, 1]": "line 5: camera.crop",
        'armed = "at night"': "line 5: camera.armed", "ignore = [[0, 0], [1, 1], [0, 640]]": "line 5: camera.ignore",
        "ignore = 3": "line 5: camera.ignore", "ignore = [[]]": "line 5: camera.ignore",
    }.items():  # fmt: skip
        said = refused(tmp_path, f"{GOOD}{text}\n")
        assert place in said and "\n" not in said  # a wrong point is not said to be missing as well
    assert "line 1: timezone" in refused(tmp_path, f'timezone = "Mars"\n{GOOD}')


@pytest.mark.parametrize(
    "line", ["backoff = [-1, 4]", "backoff = [0.5, nan]", "stall = inf", "speed = inf", "fps = nan"]
)
def test_seconds_and_rates_are_finite_and_not_negative(tmp_path: Path, line: str) -> None:
    assert line.split()[0] in refused(tmp_path, GOOD + line + "\n")
    assert config.load(written(tmp_path, GOOD + "backoff = [0, 0.5]\n")).config.camera[0].backoff == (0, 0.5)
