"""Exported files: the same probabilities as PyTorch, nothing of the machine in them, refusals in one line."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from stillwatch.errors import UserError
from stillwatch.inference import runtimes
from stillwatch.lab.export import exporters
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.recipe import Net

V3 = "tf_mobilenetv3_small_075"  # "same" padding, hard-swish, squeeze-and-excitation; one mean and std
TINY = "test_efficientnet"  # timm's own toy, squeeze-and-excitation too; ImageNet's mean and std differ by channel


def make(name: str, shape: tuple[int, ...], head: str = "softmax", classes: int = 4, **options: object) -> Classifier:
    torch.manual_seed(0)
    spec = Net(name=name, weights="scratch", head=head, options=options)  # type: ignore[arg-type]
    net = classifier.build(spec, classes, (shape[-3], shape[-2]), shape[-1])
    with torch.no_grad():  # an untrained net gives nearly the same for all pictures: that would prove little
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # so one look at some pictures is enough
        net(torch.from_numpy(pictures(8, shape)))
        logits = net.eval()(torch.from_numpy(pictures(8, shape))).logits
        net.head.bias.sub_(logits.mean(0))
        for weights in (net.head.weight, net.head.bias):
            weights.div_(logits.std(0).mean())
    return net.eval()


def pictures(count: int, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(3).integers(0, 256, (count, *shape), dtype=np.uint8)
    return np.stack([picture // (1 + number) for number, picture in enumerate(noise)])  # ever darker


def wanted(net: Classifier, x: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    with torch.inference_mode():
        return net.probabilities(net(torch.from_numpy(x)).logits / temperature).numpy()


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


CASES = [
    ("mnist-small", (24, 32, 1), "softmax"),
    ("smallcnn", (24, 32, 3), "softmax"),
    (TINY, (32, 48, 1), "sigmoid"),  # the two-plane fold
    (V3, (32, 48, 1), "softmax"),  # the summed fold
    ("mnist-cnn", (3, 16, 16, 3), "softmax"),  # clips
]


pytestmark = pytest.mark.usefixtures("export_once")


@pytest.mark.parametrize(("name", "shape", "head"), CASES, ids=[f"{c[0]}-{len(c[1])}d" for c in CASES])
def test_the_file_says_what_the_net_says(tmp_path: Path, name: str, shape: tuple[int, ...], head: str) -> None:
    net, x = make(name, shape, head), pictures(5, shape)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    p = wanted(net, x, 1.7)
    assert np.ptp(p, axis=0).max() > 0.01  # pictures differ, so that agreement means something
    path = exporters.to_onnx(net, shape, tmp_path / "model.onnx", 1.7)
    for batch in (1, 5):
        assert np.abs(runtimes.open(path, "onnxruntime", shape, 1, batch)(x) - p).max() < 2e-5
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())  # the net itself stays
    model = onnx.load(path)
    entrance, way_out = model.graph.input[0], model.graph.output[0]
    assert (entrance.name, way_out.name) == ("frames", "probabilities")
    assert entrance.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sides = [side.dim_param or side.dim_value for side in entrance.type.tensor_type.shape.dim]
    assert sides == ["batch", *shape]
    assert {"Shape", "Gather", "Range"}.isdisjoint(ops(path))


def test_a_gray_net_takes_one_channel_and_saves_two_thirds_of_its_first_convolution(tmp_path: Path) -> None:
    shape = (32, 48, 1)
    x = torch.from_numpy(pictures(4, shape))
    for name, planes in ((V3, 1), (TINY, 2)):
        net = make(name, shape)
        ready = exporters.facade(net, shape).net
        assert ready.net.conv_stem.weight.shape[1] == planes
        assert net.net.conv_stem.weight.shape[1] == 3  # the net itself stays
        before, after = (classifier.cost(n, shape[:2], 1)["macs"] for n in (net, ready))
        stem = net.net.conv_stem
        assert before - after == (3 - planes) * 9 * stem.out_channels * 16 * 24
        exact = net.double()  # in which rounding hides nothing
        feature = exact(x).feature
        exporters.fold_gray(exact)
        assert (exact(x).feature - feature).abs().max() < 1e-12 * feature.abs().max()


class Strange(torch.nn.Module):
    """A stem whose first convolution does not see the picture, or sees it after its channels were weighted."""

    def __init__(self, stem: torch.nn.Module, blind: bool):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 3, 1) if blind else stem
        self.stem, self.blind = stem, blind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.ones(3) if self.blind else torch.tensor([3.0, -1.0, 0.5])
        return self.stem(x * weights[: x.shape[1]].view(1, -1, 1, 1))


@pytest.mark.parametrize("blind", [True, False])
def test_a_fold_that_would_change_the_answer_is_not_made(blind: bool) -> None:
    shape = (32, 48, 1)
    net, x = make("test_resnet", shape), torch.from_numpy(pictures(4, shape))
    net.net.conv1 = Strange(net.net.conv1, blind)
    with torch.inference_mode():
        p = exporters.facade(net, shape)(x).numpy()
    assert np.abs(p - wanted(net, pictures(4, shape))).max() < 1e-6


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    shape = (32, 48, 1)
    raw = exporters.to_onnx(make(TINY, shape, "sigmoid"), shape, tmp_path / "model.onnx", 1.7).read_bytes()
    assert not re.search(rb"/(work|root|home|tmp|usr|lib)/|site-packages|\.py", raw)
    assert b"pkg.torch" not in raw


@pytest.mark.parametrize("opset", [13, 16, 18, 21])
def test_the_file_is_of_the_opset_that_was_asked_for(tmp_path: Path, opset: int) -> None:
    shape = (24, 32, 1)  # torch stays at 18 where it is asked for less, without a word
    net, x = make("mnist-cnn", shape), pictures(2, shape)
    path = exporters.to_onnx(net, shape, tmp_path / "model.onnx", opset=opset)
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", opset)]
    assert np.abs(runtimes.open(path, "onnxruntime", shape)(x) - wanted(net, x)).max() < 1e-5


def test_openvino_s_converter_tells_nobody(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    code = (
        "import sys, pathlib; from stillwatch.lab.export import exporters; from stillwatch.recipe import Net\n"
        "net = exporters.build(Net(name='mnist-small', weights='scratch'), 4, (24, 32), 1)\n"
        "path = exporters.EXPORTERS['openvino'](net, (24, 32, 1), pathlib.Path(sys.argv[1]), 1.0, 20).path\n"
        "print(path.name, 'openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "model.xml False\n", done.stderr
    assert done.stderr == ""  # nothing that the converters say of themselves
    assert not re.search(rb"/(work|root|home|tmp)/", (tmp_path / "model.xml").read_bytes())


def test_a_fixed_batch_is_fixed(tmp_path: Path) -> None:
    shape = (24, 32, 1)
    net, x = make("mnist-small", shape), pictures(3, shape)
    path = exporters.to_onnx(net, shape, tmp_path / "model.onnx", batch=2)
    assert [side.dim_value for side in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == [2, *shape]
    assert np.abs(runtimes.open(path, "onnxruntime", shape)(x) - wanted(net, x)).max() < 1e-5


def test_the_legacy_file_is_of_opset_13_and_takes_floats(tmp_path: Path) -> None:
    shape = (32, 48, 1)
    net, x = make(TINY, shape, act_layer="hard_swish", size=[40, 56]), pictures(4, shape)  # resized at its front door
    path = exporters.EXPORTERS["onnx-legacy"](net, shape, tmp_path, 1.3, 20).path
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    assert model.ir_version == 7
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not {"HardSwish", "Cast"} & set(ops(path))
    assert {"HardSigmoid", "Resize", "ReduceMean"} <= set(ops(path))
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.UINT8 not in kinds
    assert np.abs(runtimes.open(path, "onnxruntime", shape)(x) - wanted(net, x, 1.3)).max() < 2e-5


@pytest.mark.parametrize("form", ["ncnn", "openvino"])
def test_other_runtimes_end_to_end(tmp_path: Path, form: str) -> None:
    pytest.importorskip("pnnx" if form == "ncnn" else form)
    cases = [(V3, (32, 48, 1)), (TINY, (32, 48, 1)), ("mnist-small", (32, 48, 3))]
    for name, shape in cases if form == "ncnn" else cases[1:]:
        net, x = make(name, shape), pictures(3, shape)
        made = exporters.EXPORTERS[form](net, shape, tmp_path, 1.3, 20)
        assert made.runtime == form
        assert {made.path.name, made.beside} == {file.name for file in tmp_path.iterdir()}
        assert np.abs(runtimes.open(made.path, form, shape)(x) - wanted(net, x, 1.3)).max() < 1e-4
    assert {file.name for file in tmp_path.iterdir()} == (
        {"model.ncnn.param", "model.ncnn.bin"} if form == "ncnn" else {"model.xml", "model.bin"}
    )


def test_ncnn_takes_no_clips(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ncnn takes single pictures, not clips"):
        exporters.EXPORTERS["ncnn"](make("mnist-cnn", (2, 16, 16, 3)), (2, 16, 16, 3), tmp_path, 1.0, 20)


def test_what_torch_cannot_export_is_one_line(tmp_path: Path) -> None:
    net = make("mnist-small", (24, 32, 1))

    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    net.forward = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(UserError) as mistake:
        exporters.to_onnx(net, (24, 32, 1), tmp_path / "model.onnx")
    assert "\n" not in str(mistake.value)
    assert not list(tmp_path.iterdir())


def test_a_rival_has_the_asked_shape_and_says_its_size(tmp_path: Path) -> None:
    path, params = exporters.rival("mnist-small", 5, (24, 32, 1), tmp_path)
    assert params == sum(p.numel() for p in make("mnist-small", (24, 32, 1), classes=5).parameters())
    assert runtimes.open(path, "onnxruntime", (24, 32, 1))(pictures(2, (24, 32, 1))).shape == (2, 5)
