"""Bundles made by hand for tests: a tiny net as ONNX and ncnn files, what it gives by hand, a bundle of such files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stillwatch import bundle
from stillwatch.bundle import Bundle, Input, Manifest, Model

SHAPE = (6, 8, 3)
WEIGHTS = np.array([[4.0, -2.0], [-1.0, 3.0], [0.5, 0.25]], np.float32)  # channels to classes
BIAS = np.array([0.1, -0.3], np.float32)

MADE: dict[tuple[Any, ...], bytes] = {}  # nets that onnx_net made before


def pictures(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def by_hand(x: NDArray[np.uint8], weights: NDArray[np.float32] = WEIGHTS) -> NDArray[np.float64]:
    """softmax(mean over time, height and width / 255 · W + b)"""
    logits = x.mean(tuple(range(1, x.ndim - 1))) / 255 @ weights.astype(float) + BIAS
    e = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def onnx_net(
    path: Path,
    shape: tuple[int, ...] = SHAPE,
    batch: int | str = "batch",
    kind: int = TensorProto.UINT8,
    weights: NDArray[np.float32] = WEIGHTS,
    slow: int = 0,
    mapped: bool = False,
) -> Path:
    """Cast, mean, gemm, softmax. slow: so many times a product of two large matrices is also worked out, times 0.
    mapped: it also gives the pixels' second channel as a map."""
    key = (shape, batch, kind, weights.tobytes(), weights.shape, slow, mapped)
    if key in MADE:  # onnx's checker takes a tenth of a second
        path.write_bytes(MADE[key])
        return path
    axes = np.arange(1, len(shape), dtype=np.int64)
    constants = {"axes": axes, "w": weights / 255, "b": BIAS}
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
    ]
    last = "mean"
    if slow:
        constants |= {"wide": np.zeros((shape[-1], 1024), np.float32), "square": np.zeros((1024, 1024), np.float32)}
        constants |= {"narrow": np.zeros((1024, shape[-1]), np.float32)}
        nodes.append(helper.make_node("MatMul", ["mean", "wide"], ["s0"]))
        for turn in range(slow):
            nodes.append(helper.make_node("MatMul", [f"s{turn}", "square"], [f"r{turn}"]))
            nodes.append(helper.make_node("Sin", [f"r{turn}"], [f"s{turn + 1}"]))
        nodes.append(helper.make_node("MatMul", [f"s{slow}", "narrow"], ["nothing"]))
        nodes.append(helper.make_node("Add", ["mean", "nothing"], ["again"]))
        last = "again"
    nodes += [
        helper.make_node("Gemm", [last, "w", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    given = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, weights.shape[1]])]
    if mapped:
        constants["second"] = np.array(1)
        nodes.append(helper.make_node("Gather", ["x", "second"], ["plane"], axis=len(shape)))
        nodes.append(helper.make_node("Flatten", ["plane"], ["map"]))
        given.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, shape[0] * shape[1]]))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("frames", kind, [batch, *shape])],
        given,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(MADE.setdefault(key, model.SerializeToString()))
    return path


def ncnn_net(folder: Path) -> Path:
    """The same net in ncnn's two files, as pnnx would name them: text for the layers, raw floats for the weights."""
    layers = [
        "Input in0 0 1 in0",
        "Permute hwc_to_chw 1 1 in0 1 0=4",
        "Pooling mean 1 1 1 2 0=1 4=1",
        "InnerProduct head 1 1 2 3 0=2 1=1 2=6",
        "Softmax softmax 1 1 3 out0 0=0",
    ]
    (folder / "model.ncnn.param").write_text("\n".join(["7767517", "5 5", *layers]) + "\n")
    head = (WEIGHTS.T / 255).astype("<f4").tobytes() + BIAS.astype("<f4").tobytes()
    (folder / "model.ncnn.bin").write_bytes(bytes(4) + head)
    return folder / "model.ncnn.param"


FRAMES = pictures(8, seed=7)


def made(
    folder: Path,
    files: Mapping[str, Path],
    golden: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    name: str = "toy",
    frames: Any = FRAMES,
    map: tuple[int, int] | None = None,
    **takes: Any,
) -> Bundle:
    """A bundle of these files; golden: what a file must give, where that is not what the net gives by hand. takes: of
    Input."""
    models = tuple(
        Model(name=main, files=tuple(f for f in files if f.startswith(main.removesuffix("param"))),
              precision="fp32", tolerance=tolerance, map=map)
        for main in files if not main.endswith(".bin")
    )  # fmt: skip
    told = Manifest(
        name=name,
        labels=("safe", "danger"),
        safe=("safe",),
        input=Input(**{"shape": frames.shape[1:], "fit": "letterbox"} | takes),
        operating={"threshold": 0.7},
        licence="CC0",
        created="now",
        stillwatch="0",
        models=models,
    )
    wanted = {model.name: by_hand(frames) for model in models} | dict(golden or {})
    return bundle.write(folder / f"bundle-{name}", told, files, frames, wanted)


def person_net(
    path: Path,
    size: tuple[Any, Any] = (8, 8),
    weights: NDArray[np.float32] = np.full((3, 1), 1 / 765, np.float32),  # noqa: B008  # by default its brightness
    bias: NDArray[np.float32] | None = None,
    boxes: int = 0,
) -> Path:
    """A person detector (1,3,H,W) BGR 0..255 -> (1,K), mean · W + b; boxes: as YOLOX (1,boxes,K), each the same."""
    outputs = weights.shape[1]
    constants = {"w": weights, "b": np.zeros(outputs, np.float32) if bias is None else bias,
                 "axes": np.array([2, 3]), "shape": np.array([1, boxes, outputs])}  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["row" if boxes else "output"]),
    ]
    if boxes:
        nodes.append(helper.make_node("Expand", ["row", "shape"], ["output"]))
    graph = helper.make_graph(
        nodes,
        "people",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, *([boxes] if boxes else []), outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path
