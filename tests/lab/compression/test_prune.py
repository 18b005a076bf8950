"""Pruning: widths that a net comes down to, a pruned net known by its weights alone, and the runs that come of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stillwatch import recipe
from stillwatch.errors import UserError
from stillwatch.inference import runtimes, streams
from stillwatch.lab.compression import prune
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.export import exporters
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training import pipeline
from stillwatch.lab.training.runs import RunOptions, create_or_resume, load_net, predictor
from stillwatch.recipe import Net
from stillwatch.run import NO_PROGRESS, Run

DESK = RunOptions("runs", "", False, NO_PROGRESS)
SMALL = (
    "data.source={name='toy',people=6,pictures=2}", "data.size=32", "data.folds=3", "fit.epochs=1", "fit.views=1",
    "teacher.net={name='mnist-cnn',weights='scratch',options={width=8}}",
    "student.net={name='mnist-cnn',weights='scratch',options={width=16}}",
    "prune.fit={epochs=1}", "prune.round_to=4",
)  # fmt: skip
NETS = (
    ("tf_mobilenetv3_small_075", (48, 64, 1)),  # "same" padding of its own
    ("mobilenetv3_small_050", (32, 32, 1)),
    ("tf_mobilenetv3_small_minimal_100", (32, 32, 3)),
    ("mobilenetv4_conv_small_050", (32, 32, 3)),
    ("tf_efficientnet_lite0", (32, 32, 3)),
    ("mobilenetv2_100", (32, 32, 3)),
    ("smallcnn", (32, 32, 3)),  # flattened
    ("mnist-small", (48, 64, 1)),  # flattened, and 8 and 16 channels in all
    ("mnist-cnn", (32, 32, 1)),
)


def make(name: str, shape: tuple[int, ...]) -> tuple[Classifier, Any]:
    torch.manual_seed(0)
    net = classifier.build(Net(name=name, weights="scratch"), 3, (shape[0], shape[1]), shape[2])
    return net, SimpleNamespace(recipe=SimpleNamespace(data=SimpleNamespace(hw=shape[:2], channels=shape[2])))


def cost(net: Classifier, shape: tuple[int, ...]) -> dict[str, int]:
    return classifier.cost(net, (shape[0], shape[1]), shape[2])


@pytest.mark.parametrize("temporal", ["mean", "spread"])
def test_a_narrowed_net_of_looks_remembers_features_of_its_own_width(temporal: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = Net(name="tf_mobilenetv3_small_075", weights="scratch", front="difference", temporal=temporal)
    net = classifier.build(plan, 3, (32, 32), 3, (0.2, 0.1, 0.0))
    data: Any = SimpleNamespace(recipe=SimpleNamespace(data=SimpleNamespace(hw=(32, 32), channels=3)))
    before = cost(net, (32, 32, 3))
    prune.narrow(net, data, before["macs"], 0.5 * before["params"], 8)
    shape = (3, 32, 32, 3)
    predict = runtimes.open(exporters.to_onnx(net, shape, tmp_path / "model.onnx"), "onnxruntime", shape)
    assert isinstance(predict, streams.Stream)
    x = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    assert np.abs(predict(x) - predictor(net)(x)).max() < 1e-4


@pytest.mark.parametrize(("name", "shape"), NETS, ids=[name for name, _ in NETS])
def test_a_net_comes_down_to_its_arithmetic_and_its_weights_alone_bring_it_back(name: str, shape: Any) -> None:
    net, data = make(name, shape)
    before, widths = cost(net, shape), prune.layer_widths(net)
    prune.narrow(net, data, 0.6 * before["macs"], before["params"], 8)
    after, narrowed = cost(net, shape), prune.layer_widths(net)
    assert 0.5 * before["macs"] < after["macs"] <= 0.6 * before["macs"]
    assert narrowed.keys() == widths.keys()
    assert narrowed["head"] == 3
    for layer, width in narrowed.items():
        assert widths[layer] // 2 <= width <= widths[layer], layer
        assert width == widths[layer] or width % 8 == 0, layer

    again, _ = make(name, shape)
    classifier.resize(again, net.state_dict(), (shape[0], shape[1]), shape[2])
    again.load_state_dict(net.state_dict())
    x = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    old, new = net.eval()(x, tuple(net.channels)), again.eval()(x, tuple(again.channels))
    assert torch.equal(old.logits, new.logits)
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in net.state_dict().items()}
    assert again.dim == new.feature.shape[1] == again.head.in_features
    assert again.channels == {stride: found.shape[1] for stride, found in new.maps.items()} == net.channels
    assert cost(again, shape) == after


def test_size_is_cut_where_it_costs_no_arithmetic() -> None:
    shape = (48, 64, 1)
    net, data = make("tf_mobilenetv3_small_075", shape)
    before, widths = cost(net, shape), prune.layer_widths(net)
    prune.narrow(net, data, before["macs"], 0.6 * before["params"], 8)
    after, narrowed = cost(net, shape), prune.layer_widths(net)
    assert after["params"] <= 0.6 * before["params"]
    assert after["macs"] > 0.85 * before["macs"]  # the pictures are so small that the last 1×1 convolution tells
    changed = {name for name in widths if widths[name] != narrowed[name]}
    assert "net.conv_head" in changed
    assert all("conv_head" in name or ".se." in name for name in changed), changed


def test_a_depthwise_layer_of_one_channel_is_still_depthwise() -> None:
    net, _ = make("mobilenetv2_100", (32, 32, 3))
    state, stem, first = net.state_dict(), "net.conv_stem", "net.blocks.0.0.conv_dw"
    assert state[f"{first}.weight"].shape == (32, 1, 3, 3)
    for name in (f"{stem}.weight", f"{first}.weight"):
        state[name] = state[name][:1].clone()
    for norm in ("net.bn1", "net.blocks.0.0.bn1"):
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{key}"] = state[f"{norm}.{key}"][:1].clone()
    state["net.blocks.0.0.conv_pw.weight"] = state["net.blocks.0.0.conv_pw.weight"][:, :1].clone()
    classifier.resize(net, state, (32, 32), 3)
    net.load_state_dict(state)
    layer: Any = net.get_submodule(first)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (1, 1, 1)


def test_the_rounding_that_comes_nearer_is_taken() -> None:
    net, data = make("mnist-small", (48, 64, 1))  # 8 and 16 channels: down to 4 both go at once, to the nearest not
    whole = cost(net, (48, 64, 1))["macs"]
    prune.multiply(net, data, 0.594 * whole, 4)
    assert prune.layer_widths(net) == {"net.features.0": 8, "net.features.2": 12, "head": 3}
    net, data = make("tf_mobilenetv3_small_075", (112, 192, 1))
    whole = cost(net, (112, 192, 1))["macs"]
    prune.multiply(net, data, 0.58 * whole, 8)
    assert 0.58 <= cost(net, (112, 192, 1))["macs"] / whole < 0.6
    assert prune.layer_widths(net)["net.conv_stem"] == 8


def test_the_weights_of_another_net_are_refused() -> None:
    net, _ = make("mnist-small", (32, 32, 1))
    with pytest.raises(UserError, match=r"net mnist-small: head has shape \(3, 1024\), the weights \(3, 1, 1, 1\)"):
        classifier.resize(net, {"head.weight": torch.zeros(3, 1, 1, 1)}, (32, 32), 1)


def test_what_cannot_be_reached_is_said() -> None:
    net, data = make("mnist-cnn", (32, 32, 1))
    with pytest.raises(UserError, match=r"prune.keep: .* M macs cannot be reached: .* raise prune.keep"):
        prune.narrow(net, data, 1000, 1e9, 8)
    net, data = make("mnist-small", (32, 32, 1))
    with pytest.raises(UserError, match=r"prune.size: .* M params cannot be reached: .* raise prune.size"):
        prune.narrow(net, data, 1e9, 1000, 8)  # it has no layer of vectors but its head


@pytest.mark.parametrize(("name", "keep"), [("mobilenetv4_conv_small_050", 0.6), ("mnist-small", 0.7)])
def test_a_width_multiplier_is_the_smallest_with_that_arithmetic(name: str, keep: float) -> None:
    shape = (32, 32, 3)
    net, data = make(name, shape)
    whole, widths = cost(net, shape)["macs"], prune.layer_widths(net)
    share = prune.multiply(net, data, keep * whole, 8)
    now = prune.layer_widths(net)
    assert keep * whole <= cost(net, shape)["macs"] < 1.15 * keep * whole
    assert widths.pop("head") == now.pop("head")
    assert share == sum(now.values()) / sum(widths.values()) < 1

    # one multiplier gives every layer its width, rounded to a multiple of 8 in one way, and 8 at least
    def bounds(half: float) -> tuple[float, float]:
        low = max(((now[n] - 8 * half) / count for n, count in widths.items() if now[n] > 8), default=0)
        return low, min((now[n] + 8 - 8 * half) / count for n, count in widths.items() if now[n] < count)

    assert any(low < high for low, high in map(bounds, (0.5, 0.0)))
    assert prune.multiply(net, data, cost(net, shape)["macs"], 8) == 1.0  # nothing to take: it stays as it is
    assert {layer: width for layer, width in prune.layer_widths(net).items() if layer != "head"} == now


def student(here: Path, *more: str, alone: bool = False) -> Run:
    asked = recipe.load("toy", (*SMALL, *more))
    if not alone:
        teacher = pipeline.teach(asked, RunOptions())
        teacher.note(best=teacher.info.best | {"accuracy": 1.0})  # whatever one epoch is worth
    run = pipeline.distil(asked, RunOptions(), alone)
    run.note(best=run.info.best | {"accuracy": 1.0})
    return run


def test_a_pruned_run_and_the_baseline_beside_it(here: Path) -> None:
    parent = student(here)
    run = prune.prune(parent.amended(["prune.keep=0.5"], ["prune"]), DESK)
    info = Run.open(run.path).info
    assert (info.kind, info.status, info.parent) == ("pruned", "done", parent.path.name)
    assert info.teacher == parent.info.parent == "toy-teacher-001"
    assert info.keep["macs"] <= 0.5
    assert info.cost["macs"] <= 0.5 * parent.info.cost["macs"]
    assert [step["step"] for step in info.steps] == [1, 2]
    assert info.steps[0]["macs"] > info.steps[1]["macs"] == info.cost["macs"]
    assert info.narrow == "toy-narrow-001"
    assert run.recipe.prune.keep == 0.5  # what was asked stands in the run
    with np.load(run.path / "predictions" / "valid.npz") as said:
        data = load_dataset(run.recipe)
        p = predictor(load_net(run))(data.store.pixels[data.rows["valid"]])
        assert np.allclose(p, said["p"], atol=1e-6)

    narrow = Run.open("runs/toy-narrow-001")
    assert (narrow.info.kind, narrow.info.status, narrow.info.parent) == ("narrow", "done", "toy-teacher-001")
    assert len(narrow.history()) == 3  # the parent's epoch, and two of healing
    assert narrow.info.cost["macs"] >= info.cost["macs"]
    assert load_net(narrow).head.out_features == 6

    # ---- a pruned run is pruned further, under the same teacher
    further = prune.prune(Run.open(run.path).amended(["prune.keep=0.8"], ["prune"]), DESK, anyway=True)
    assert further.info.teacher == "toy-teacher-001"
    assert prune.epochs_in_all(further) == 5
    assert len(list(here.glob("runs/toy-narrow-*"))) == 2  # of another size, so another one


def test_a_finished_baseline_is_taken_as_it_is(here: Path) -> None:
    parent = student(here, alone=True)
    first = prune.prune(parent, DESK)
    assert first.info.teacher is None  # alone it learnt, alone it heals
    second = prune.prune(parent, DESK)
    assert second.path.name == "toy-pruned-002"
    assert first.info.narrow == second.info.narrow == "toy-narrow-001"


def cut_off(monkeypatch: pytest.MonkeyPatch, at: str) -> list[str]:
    """Every lesson whose folder's name ends so is interrupted before it starts; a list of those that are learnt."""
    train, learnt = pipeline.train, []

    def cut(step: Any, data: Any, teacher_net: Any, plan: Any, run: Run, *rest: Any) -> Any:
        if run.path.name.endswith(at):
            raise KeyboardInterrupt
        learnt.append(run.path.name)
        return train(step, data, teacher_net, plan, run, *rest)

    monkeypatch.setattr(pipeline, "train", cut)
    return learnt


def test_cut_off_between_steps_it_goes_on_to_the_same_weights(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = "fit.loss=['ce', 'kd', 'embedding']"  # the last draws weights of its own
    parent = student(here, "prune.narrow=false", loss)
    whole = prune.prune(parent, DESK)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off(patch, "pruned-002")
        prune.prune(parent, DESK)
    assert Run.open("runs/toy-pruned-002").info.status == "stopped"
    learnt = cut_off(monkeypatch, "nothing")
    torch.manual_seed(123)  # another process has other numbers
    again = prune.prune(parent, DESK)
    assert (again.path.name, learnt) == ("toy-pruned-002", ["toy-pruned-002"])  # its first step is not learnt again
    one, two = load_net(whole).state_dict(), load_net(again).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [s["macs"] for s in again.info.steps] == [s["macs"] for s in whole.info.steps]
    assert again.info.widths == whole.info.widths


def test_cut_off_before_its_baseline_it_goes_on_with_that(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = student(here, alone=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off(patch, "narrow-001")
        prune.prune(parent, DESK)
    assert Run.open("runs/toy-pruned-001").info.status == "done"
    learnt = cut_off(monkeypatch, "nothing")
    run = prune.prune(parent, DESK)
    assert learnt == [run.info.narrow]
    assert run.path.name == "toy-pruned-001"


def test_a_cut_off_run_of_other_widths_is_not_gone_on_with(here: Path) -> None:
    parent = student(here, alone=True)
    data, device = load_dataset(parent.recipe), pipeline.device(parent.recipe.fit)

    def begun(target: int) -> str:
        run = create_or_resume(parent.recipe, "narrow", None, data, device, DESK, target=target)
        (run.path / "last.pt").touch()
        run.finish("stopped")
        return run.path.name

    assert [begun(1), begun(2), begun(1), begun(2)] == [f"toy-narrow-00{n}" for n in (1, 2, 1, 2)]


def test_who_is_refused(here: Path) -> None:
    parent = student(here)
    with pytest.raises(UserError, match=r"toy-teacher-001: a teacher run \(done\); name a finished student"):
        prune.prune(Run.open("runs/toy-teacher-001"), DESK)
    with pytest.raises(UserError, match=r"'fit.lr=1': a finished run keeps its recipe; what may change here: prune"):
        parent.amended(["fit.lr=1"], ["prune"])
    with pytest.raises(UserError, match=r"prune.keep: .* cannot be reached"):
        prune.prune(parent.amended(["prune.keep=0.01"], ["prune"]), DESK)
    parent.note(fingerprint="another")
    with pytest.raises(UserError, match=r"toy-distilled-001: learnt from other data than now lie in data.root"):
        prune.prune(parent, DESK)
    frozen = student(here, "student.net={name='mnist-cnn',weights='scratch',frozen=1}", alone=True)
    with pytest.raises(UserError, match=r"toy-alone-001: its net is frozen in part"):
        prune.prune(frozen, DESK)
    split = student(here, "student.net={name='yolo-cls-n',weights='scratch'}", alone=True)
    with pytest.raises(UserError, match=r"net yolo-cls-n: torch-pruning cannot take it apart \(IndexError: "):
        prune.prune(split, DESK)
    parent.note(best=parent.info.best | {"accuracy": 0.0})
    with pytest.raises(UserError, match=r"toy-distilled-001: not pruned: it learnt nothing"):
        prune.prune(parent, DESK)
    assert not list(here.glob("runs/toy-pruned-*"))
