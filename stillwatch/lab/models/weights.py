"""Loads weights from a file, a run (best.pt) or ImageNet into a net. Imports no data and no training."""

import os
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub.utils import get_session
from safetensors.torch import load_file
from torch import Tensor, nn

from stillwatch.errors import UserError, one_line


def imagenet(net: nn.Module, name: str, files: tuple[str, ...] | None = None, fresh: tuple[str, ...] = ()) -> None:
    """Load ImageNet weights from STILLWATCH_WEIGHTS, else timm's cache or the hub; fp16 becomes float.

    files: possible names for an own net, timm's last; () if it has no weights. fresh: prefixes of tensors that the file
    lacks. Raises UserError where they are not found or do not fit.
    """
    if files is None:
        files = (name, name.split(".")[0])
    if not files:
        raise UserError(f'net.weights = "imagenet": {name} has no ImageNet weights; set net.weights = "scratch"')
    folder = os.environ.get("STILLWATCH_WEIGHTS")
    for file in dict.fromkeys(files):
        path = Path(folder or "") / f"{file}.safetensors"
        if folder and path.is_file():
            return _lay(net, _headless(net, _read(path)), str(path), fresh)
    source = name if hasattr(net, "pretrained_cfg") else files[-1]
    _lay(net, _headless(net, _hub(source, files[0])), f"timm's {source}", fresh)


def from_path(net: nn.Module, head: nn.Linear, place: str) -> None:
    """Load a run's folder, a .safetensors file or a torch state dict, of a Classifier or a bare net.

    The head loads only if it fits. Raises UserError where they are not found or do not fit.
    """
    path = Path(place)
    if path.is_dir():
        path = path / "best.pt"
        if not path.is_file():
            raise UserError(f"net.weights = {place!r}: a folder without best.pt; name a finished run")
    if not path.is_file():
        raise UserError(f"net.weights = {place!r}: no such file or run; or set imagenet, or scratch")
    state = _read(path)
    if not any(key.startswith("net.") for key in state):
        return _lay(net, _headless(net, state), str(path))
    old = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    _lay(net, {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}, str(path))
    if {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in head.state_dict().items()}:
        head.load_state_dict({k: v.float() for k, v in old.items()})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("net", "state_dict"):
            if isinstance(state.get(key), dict):
                state = state[key]
        return {k: v for k, v in state.items() if isinstance(v, Tensor)}
    except Exception as error:  # each format has its own errors; all of them mean an unreadable file
        raise UserError(f"{path}: weights that cannot be read: {one_line(error)}") from error


def _hub(name: str, file: str) -> dict[str, Tensor]:
    source = timm.get_pretrained_cfg(name)
    if source is None or not source.has_weights:
        raise UserError(f'net.weights = "imagenet": timm has no weights for {name}; set weights = "scratch"')
    before = hub.HF_HUB_OFFLINE
    try:
        # without an answer the hub's client would try for most of a minute; its cache is read either way
        hub.HF_HUB_OFFLINE = before or not _answers(hub.ENDPOINT)
        with torch.random.fork_rng(devices=[]):  # the head must not depend on where the weights came from
            return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub fails in many ways: no route, proxy, time-out, missing file
        raise UserError(
            f'net.weights = "imagenet": the hub could not be reached for {name} ({type(error).__name__}); put '
            f'{file}.safetensors into the folder named by STILLWATCH_WEIGHTS, or set net.weights = "scratch"'
        ) from error
    finally:
        hub.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    try:
        get_session().head(address, timeout=5)
    except Exception:  # requests or httpx, by the client's version: anything but an answer is none
        return False
    return True


def _headless(net: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    heads = getattr(net, "pretrained_cfg", {}).get("classifier", "classifier")
    heads = (heads,) if isinstance(heads, str) else tuple(heads or ())
    if not hasattr(net, "pretrained_cfg"):  # an own net takes what it has a place for
        return {k: v for k, v in state.items() if k in net.state_dict()}
    return {k: v for k, v in state.items() if k.rpartition(".")[0] not in heads}


def _lay(net: nn.Module, state: dict[str, Tensor], source: str, fresh: tuple[str, ...] = ()) -> None:
    """Copy every tensor, fp16 as float. Raises UserError."""
    own = net.state_dict()
    wanted = {k for k in own if not k.startswith(fresh)} if fresh else set(own)
    counters = {k for k in wanted if k.endswith("num_batches_tracked")}
    missing = sorted(wanted - set(state) - counters)
    extra = sorted(set(state) - set(own))
    odd = sorted(k for k in wanted & set(state) if state[k].shape != own[k].shape)
    for keys, what in ((missing, "lacks"), (extra, "has, and the net has not,"), (odd, "has in another shape")):
        if keys:
            raise UserError(f"{source}: not the weights of this net: it {what} {keys[0]} ({len(keys)} tensors)")
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=False)
