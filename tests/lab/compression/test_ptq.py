"""PTQ: what becomes INT8 and what does not, on a graph built here: depthwise layers, squeeze-and-excitation, a SiLU."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stillwatch.inference import runtimes
from stillwatch.lab.compression import ptq
from stillwatch.lab.compression.ptq import Control, QuantConfig

SHAPE = (8, 8, 3)
K = 3


def graph(seed: int = 0) -> onnx.ModelProto:
    """uint8 NHWC -> front door -> conv, SE, depthwise, pointwise + SiLU -> pool, Gemm, softmax."""
    rng = np.random.default_rng(seed)
    fixed: list[Any] = []
    nodes: list[Any] = []

    def const(name: str, value: Any) -> str:
        fixed.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(op: str, given: list[str], out: str, **how: Any) -> str:
        nodes.append(helper.make_node(op, given, [out], f"node_{out}", **how))
        return out

    def conv(x: str, inner: int, outer: int, out: str, size: int = 1, group: int = 1) -> str:
        weight = rng.normal(0, (inner * size**2) ** -0.5, (outer, inner // group, size, size)).astype(np.float32)
        weight *= rng.uniform(0.2, 3, (outer, 1, 1, 1)).astype(np.float32)  # channels of unequal size
        given = [x, const(f"{out}_w", weight), const(f"{out}_b", rng.normal(0, 0.1, outer).astype(np.float32))]
        return add("Conv", given, out, group=group, pads=[size // 2] * 4, kernel_shape=[size, size])

    x = add("Transpose", ["frames"], "planes", perm=[0, 3, 1, 2])
    x = add("Cast", [x], "floats", to=TensorProto.FLOAT)
    x = add("Mul", [x, const("scale", np.float32(1 / 255))], "normal")
    x = add("Relu", [conv(x, 3, 16, "stem", 3)], "stem_act")
    pooled = add("ReduceMean", [x, const("axes", np.array([2, 3]))], "se_pool", keepdims=1)
    inner = add("Relu", [conv(pooled, 16, 4, "se_down")], "se_act")
    gate = add("HardSigmoid", [conv(inner, 4, 16, "se_up")], "se_gate")
    x = add("Mul", [x, gate], "se_out")
    x = add("Relu", [conv(x, 16, 16, "deep", 3, 16)], "deep_act")
    x = conv(x, 16, 16, "point")
    x = add("Mul", [x, add("Sigmoid", [x], "silu_gate")], "silu")
    x = add("ReduceMean", [x, "axes"], "pool", keepdims=0)
    head = const("head_w", rng.normal(0, 1, (K, 16)).astype(np.float32))
    x = add("Gemm", [x, head, const("head_b", np.zeros(K, np.float32))], "logits", transB=1)
    add("Softmax", [x], "probabilities", axis=-1)
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", *SHAPE])
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", K])
    whole = helper.make_graph(nodes, "toy", [frames], [out], fixed)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


FRAMES = np.random.default_rng(1).integers(0, 256, (28, *SHAPE), dtype=np.uint8)
CALIBRATION = range(16)
WAYS = (QuantConfig("whole"), QuantConfig("se in float", float_se=True), QuantConfig("plain", plain=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float file and the INT8 one of each way."""
    folder = tmp_path_factory.mktemp("files")
    onnx.save(graph(), folder / "float.onnx")
    found = {"float": folder / "float.onnx"}
    for way in WAYS:
        target = folder / f"{way.name}.onnx"
        found[way.name] = ptq.quantise_file(found["float"], target, CALIBRATION, frame, way)
    return found


def frame(row: int) -> np.ndarray:
    return FRAMES[row : row + 1]


def answers(path: Path, runtime: str, x: np.ndarray) -> np.ndarray:
    return runtimes.open(path, runtime, SHAPE)(x)


def inputs_of(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Node -> the kinds of node that make its inputs."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    return {node.name: {makers[name] for name in node.input if name in makers} for node in model.graph.node}


def test_a_squeeze_is_a_product_with_what_a_pool_makes_of_the_map_itself() -> None:
    assert set(ptq.squeezes(graph())) == {
        f"node_{name}" for name in ("se_pool", "se_down", "se_act", "se_up", "se_gate", "se_out")
    }


def test_the_front_door_and_the_end_stay_float() -> None:
    always = {"node_planes", "node_floats", "node_normal", "node_probabilities"}
    assert set(ptq.ignored(graph(), QuantConfig("x"))) == always
    assert set(ptq.ignored(graph(), QuantConfig("x", plain=True))) == always | {"node_stem"}
    assert set(ptq.ignored(graph(), QuantConfig("x", float_se=True))) == always | set(ptq.squeezes(graph()))


@pytest.mark.parametrize("way", [way.name for way in WAYS])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_answers_like_float(files: dict[str, Path], way: str, runtime: str) -> None:
    """In "whole", a depthwise layer has an activation scale a channel: onnxruntime once failed on such a file."""
    wanted = answers(files["float"], "onnxruntime", FRAMES)
    assert 0 < np.abs(answers(files[way], runtime, FRAMES) - wanted).max() < 0.05


def test_what_is_int8_and_what_is_not(files: dict[str, Path]) -> None:
    kinds, scales = {}, {}
    for way in ("se in float", "plain"):
        model = onnx.load(files[way])
        kinds[way] = inputs_of(model)
        fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        makers = {name: node for node in model.graph.node for name in node.output}
        deep = next(node for node in model.graph.node if node.name == "node_deep")
        scales[way] = fixed[makers[deep.input[0]].input[1]].size
        weights = makers[deep.input[1]]
        assert fixed[weights.input[0]].dtype == np.int8
        assert fixed[weights.input[1]].shape == (16,)  # a scale for each output channel
        assert (fixed[weights.input[2]] == 0).all()
    assert scales == {"se in float": 16, "plain": 1}
    assert kinds["se in float"]["node_deep"] == kinds["plain"]["node_deep"] == {"DequantizeLinear"}
    assert kinds["se in float"]["node_stem"] == {"DequantizeLinear"}
    assert "DequantizeLinear" not in kinds["plain"]["node_stem"]
    for name in ("node_se_pool", "node_se_down", "node_se_out", "node_probabilities"):
        assert "DequantizeLinear" not in kinds["se in float"][name], name


def test_biases_are_corrected(files: dict[str, Path]) -> None:
    """At least one convolution's bias is another one afterwards, and the logits are hardly moved on average."""
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(files[name]).graph.initializer}
        for name in ("float", "whole")
    )
    biases = ("stem_b", "deep_b", "point_b")
    assert any(name not in after or not np.array_equal(before[name], after[name]) for name in biases)
    p, q = (answers(files[name], "onnxruntime", FRAMES[:16]) for name in ("float", "whole"))
    assert np.abs((np.log(p) - np.log(q)).mean(0)).max() < 0.05


def test_nncf_sees_the_calibration_frames_alone_says_nothing_and_calls_nobody(
    files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    class Caller:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"telemetry is used: {name}")

    monkeypatch.setitem(sys.modules, "openvino_telemetry", Caller())
    seen: list[int] = []

    def noted(row: int) -> np.ndarray:
        seen.append(row)
        return frame(row)

    ptq.quantise_file(files["float"], tmp_path / "int8.onnx", [3, 5, 8, 13], noted, QuantConfig("x"))
    assert set(seen) == {3, 5, 8, 13}
    assert capfd.readouterr() == ("", "")
    assert isinstance(sys.modules["openvino_telemetry"], Caller)  # as it was, for everybody else


def test_harmful_layers_go_back_to_float(files: dict[str, Path], tmp_path: Path) -> None:
    """The score falls with the distance from the float answers: layers are given up until it is as small as asked."""
    wanted, rows = answers(files["float"], "onnxruntime", FRAMES), range(16, 28)
    asked: list[int] = []

    def check(path: Path, rows: Sequence[int]) -> float:
        asked.append(len(rows))
        return 1 - float(np.abs(answers(path, "onnxruntime", FRAMES[list(rows)]) - wanted[list(rows)]).mean())

    lost = 1 - check(files["whole"], rows)
    control = Control(check, rows, frame, lost / 2)
    part = ptq.quantise_file(files["float"], tmp_path / "part.onnx", CALIBRATION, frame, QuantConfig("x"), control)
    assert 1 - check(part, rows) <= lost / 2
    whole, less = (
        sum(node.op_type == "DequantizeLinear" for node in onnx.load(file).graph.node)
        for file in (files["whole"], part)
    )
    assert 0 < less < whole
    assert max(asked) == 12


def test_a_failure_leaves_what_was_there(files: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    target.write_bytes(b"older")

    def broken(row: int) -> np.ndarray:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        ptq.quantise_file(files["float"], target, range(4), broken, QuantConfig("x"))
    assert target.read_bytes() == b"older"
    assert not list(tmp_path.glob(".*"))


# ---- graph edits, on two nodes each


def qdq(zeros: np.ndarray, scale: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    fixed = [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zeros, "z")]
    made = helper.make_graph(nodes, "qdq", ends[:1], ends[1:], fixed)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("zeros", "kind"),
    [
        (np.array(-7, np.int8), np.uint8),
        (np.array(121, np.uint8), np.uint8),
        (np.array([3, 128, 0, 255], np.uint8), np.int8),
        (np.array([3, -128, 0, 127], np.int8), np.int8),
    ],
)
def test_zero_points_move_and_values_stay(zeros: np.ndarray, kind: Any) -> None:
    scale = np.full(zeros.shape, 0.1, np.float32)
    x = np.array([[-30, 0.26, 3, 99]], np.float32)
    before, after = run(qdq(zeros, scale), x), run(ptq.unsigned(qdq(zeros, scale)), x)
    assert np.array_equal(before, after)
    model = ptq.unsigned(qdq(zeros, scale))
    fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {fixed[node.input[2]].dtype for node in model.graph.node} == {np.dtype(kind)}


def test_large_float_tensors_are_stored_in_half(tmp_path: Path) -> None:
    model = graph()
    small = ptq.halved(graph())
    stored = {tensor.name: tensor.data_type for tensor in small.graph.initializer}
    assert stored["point_w_half"] == TensorProto.FLOAT16  # 256 values
    assert stored["stem_b"] == TensorProto.FLOAT
    assert stored["axes"] == TensorProto.INT64
    onnx.save(model, tmp_path / "a.onnx")
    onnx.save(small, tmp_path / "b.onnx")
    x = np.random.default_rng(2).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    for runtime in ("onnxruntime", "openvino"):
        p, q = (answers(tmp_path / name, runtime, x) for name in ("a.onnx", "b.onnx"))
        assert np.allclose(p, q, atol=2e-3)


def test_what_half_cannot_hold_stays() -> None:
    model = graph()
    tensor = next(t for t in model.graph.initializer if t.name == "point_w")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), "point_w"))
    assert {t.name for t in ptq.halved(model).graph.initializer} >= {"point_w", "stem_w_half"}
