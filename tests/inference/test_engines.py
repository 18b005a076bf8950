"""Ray runs the very functions that run here: the same bytes, also where a worker dies; nothing is sent home."""

import os
import signal
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bundles import made, onnx_net, pictures
from toys import jpeg

from stillwatch.errors import UserError
from stillwatch.inference import engines
from stillwatch.inference.archive import listing, scoring, shards
from stillwatch.recipe import check

TOML = """
name = "toy"
labels = ["SafeDriving", "Yawn"]
safe = ["SafeDriving"]
data = {source = {name = "toy", people = 4, pictures = 2}, size = 16, gray = true, folds = 3}
teacher = {net = {name = "mnist-small", weights = "scratch"}}
student = {net = {name = "mnist-small", weights = "scratch"}}
fit = {epochs = 1, batch = 8, loss = ["ce"]}
"""


def test_it_is_told_to_be_quiet_before_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "Path(__file__).with_name('seen').write_text(os.environ.get('RAY_usage_stats_enabled', 'unset'))\n"
        "raise ImportError('none here')\n"
    )
    for name in engines.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"Ray is not installed; pip install 'stillwatch\[ray\]'"):
        list(engines.over([], "ray"))
    assert (tmp_path / "seen").read_text() == "0"
    with pytest.raises(UserError, match=r"--on rya: is ray, or ray://HOST:PORT; did you mean 'ray'"):
        list(engines.over([], "rya"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere", "ray://nowhere", "ray://:1", "a:b"])
def test_a_cluster_that_is_not_there_is_said_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))  # it is not asked: it would try for minutes
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "1")
    monkeypatch.setenv("RAY_ADDRESS", address)
    for on in ["ray", address] if "://" in address else ["ray"]:
        with pytest.raises(UserError) as said:
            list(engines.over([], on))
        assert ("--on " if on == address else "RAY_ADDRESS = ") + address in str(said.value)
        assert ("not answer" in str(said.value)) == address.endswith("127.0.0.1:1") and "\n" not in str(said.value)


def dies_once(call: Any, mark: Path) -> Any:
    """The call, in whose process the first try is killed."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return call()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_scores_and_runs_are_those_of_this_machine_though_a_worker_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray").cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers lack it
    from stillwatch.lab.training import crossval

    monkeypatch.setattr(listing, "SHARD", 16)
    monkeypatch.setattr(scoring, "cores", lambda: 2)
    for number in range(24):
        jpeg(tmp_path / "a" / f"{number:02d}.jpg", number)
    shape = (24, 32, 3)
    it = made(tmp_path, {"m.onnx": onnx_net(tmp_path / "m.onnx", shape)}, frames=pictures(8, shape))
    scoring.score(it.path, tmp_path / "a", tmp_path / "here.csv", 2)
    recipe = check(tomllib.loads(TOML), "here")
    trained = [partial(crossval.task, recipe, 0, 0, "alone", tmp_path / name) for name in ("here", "ray")]
    trained[0]()

    over, task = engines.over, shards.do
    seen = list[int]()

    def with_a_death(calls: Any, *rest: Any) -> Any:
        """The same calls, the second one's process dies at first; and a training with them, as Ray takes seconds."""
        seen.append(len(calls))
        assert all(call.func is task for call in calls)
        both = [*calls, trained[1]]
        both[1] = partial(dies_once, both[1], tmp_path / "died")
        for number, said in over(both, *rest):
            if number < len(calls):
                yield number, said
            else:
                seen.append(getattr(said, "path", said))

    monkeypatch.setattr(engines, "over", with_a_death)
    scoring.score(it.path, tmp_path / "a", tmp_path / "ray.csv", on="ray")
    assert seen[0] >= 2 and (tmp_path / "died").exists()
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    one, other = (next((tmp_path / name).glob("toy-alone-*")) for name in ("here", "ray"))
    assert other == seen[1]
    for name in ("valid", "test"):
        assert (one / f"predictions/{name}.npz").read_bytes() == (other / f"predictions/{name}.npz").read_bytes()
