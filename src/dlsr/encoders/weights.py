"""Load an encoder's weights, and check that each of them is used."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dlsr.encoders.presets import EncoderSpec, FileWeights, HubWeights, PackageWeights
from dlsr.errors import SettingsError, WeightsError

StateDict = Mapping[str, Tensor]

MOST_RANDOM_BYTES = 2**30
"""Larger networks get no random weights, which serve tests only: a stranger's model could take all memory by them."""


def load_classifier(spec: EncoderSpec) -> nn.Module:
    """The encoder's whole network, classification head included, with its weights.

    Raises:
        SettingsError: if timm does not know the network, or it is too large for random weights.
        WeightsError: if the weights are missing, damaged, or do not fit the network key by key.
    """
    import timm  # noqa: PLC0415 - takes seconds to import, and is not needed if the engine is in the cache

    source = spec.weights
    # Here and not in the spec, since timm takes seconds to import.
    if not timm.is_model(spec.network):
        raise SettingsError(f"timm has no network '{spec.network}'; upgrade timm, or choose another encoder")
    if isinstance(source, HubWeights):
        return _from_hub(spec.network, source.download)
    if isinstance(source, PackageWeights):
        network: nn.Module = timm.create_model(spec.network, pretrained=False)
        path = _package_file(source)
        load_exactly(network, in_order(_read(path), network.state_dict(), path), path)
    elif isinstance(source, FileWeights):
        network = timm.create_model(spec.network, pretrained=False)
        path = Path(source.path)
        state = _read(path)
        if "_conv_stem.weight" in state:  # names of the EfficientNet implementation in the paper's published code
            state = in_order(state, network.state_dict(), path)
        load_exactly(network, state, path)
    else:
        with torch.device("meta"):
            size = sum(tensor.nbytes for tensor in timm.create_model(spec.network).state_dict().values())
        if size > MOST_RANDOM_BYTES:
            raise SettingsError(f"'{spec.network}' has {size} bytes, too many for random weights; give its weights")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed)
            network = timm.create_model(spec.network, pretrained=False)
    return network.eval()


def load_exactly(network: nn.Module, state: StateDict, path: Path | str) -> None:
    """Load weights whose keys and shapes are exactly those of the network.

    Args:
        network: module to load into.
        state: weights by name.
        path: their source, for the error message.

    Raises:
        WeightsError: with the first missing, extra or mis-shaped keys.
    """
    own = network.state_dict()
    wrong = (
        _some("missing", own.keys() - state.keys()),
        _some("extra", state.keys() - own.keys()),
        _some("mis-shaped", (k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)),
    )
    problems = "; ".join(problem for problem in wrong if problem)
    if problems:
        raise WeightsError(f"'{path}' does not hold this encoder's weights: {problems}; give the right file")
    network.load_state_dict(state)


def _some(problem: str, keys: Iterable[str]) -> str:
    found = sorted(keys)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{len(found)} {problem} ({', '.join(found[:3])}{more})" if found else ""


def in_order(state: StateDict, own: StateDict, path: Path) -> dict[str, Tensor]:
    """Rename the weights of another implementation of the same network by their order.

    Args:
        state: weights to rename.
        own: weights of timm's network; must agree in number, order, shapes and the last part of each name.
        path: source of `state`, for the error message.

    Raises:
        WeightsError: at the first pair that does not match.
    """
    if len(state) != len(own):
        raise WeightsError(f"'{path}' holds {len(state)} tensors, the encoder has {len(own)}; give the right file")
    renamed = {}
    for (theirs, tensor), (ours, expected) in zip(state.items(), own.items(), strict=True):
        if theirs.rsplit(".")[-1] != ours.rsplit(".")[-1] or tensor.shape != expected.shape:
            raise WeightsError(
                f"'{path}' has {theirs} of shape {tuple(tensor.shape)} where the encoder has {ours} of shape "
                f"{tuple(expected.shape)}; give the right file"
            )
        renamed[ours] = tensor
    return renamed


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _from_hub(network: str, download: bool) -> nn.Module:
    import timm  # noqa: PLC0415 - as above

    kept = _kept_by_hub(timm.get_pretrained_cfg(network))
    if kept is None and not download:
        raise WeightsError(
            f"the weights of '{network}' are not on this machine; give --weights hub to download them from the Hugging "
            "Face Hub, or a file with --weights"
        )
    try:
        # A file that is there is loaded without asking the Hub whether there is a newer one.
        overlay = None if kept is None else {"file": kept}
        loaded: nn.Module = timm.create_model(network, pretrained=True, pretrained_cfg_overlay=overlay)
    # The client of the Hub raises errors of several libraries, with the same remedy for all.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"cannot download the weights of '{network}' ({reason}); offline, give a file with --weights, "
            "or use efficientnet_lite0, whose weights are installed"
        ) from error
    return loaded.eval()


def _kept_by_hub(config: Any) -> str | None:
    """The file in the Hub's cache with the weights that a timm config describes; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - slow to import

    if config is None or not config.hf_hub_id or config.custom_load:
        return None
    name = config.hf_hub_filename or "model.safetensors"
    # Other files may be pickles, which timm would let run code.
    found = try_to_load_from_cache(config.hf_hub_id, name) if name.endswith(".safetensors") else None
    return found if isinstance(found, str) else None


def _package_file(source: PackageWeights) -> Path:
    try:
        path = Path(str(metadata.distribution(source.package).locate_file(source.file)))
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"the package with the weights is not installed; run: pip install {source.package}"
        ) from None
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise WeightsError(
            f"'{path}' is missing or damaged; run: pip install --force-reinstall --no-deps {source.package}"
        )
    return path


def _read(path: Path) -> StateDict:
    try:
        # Not `Path.is_file`, which raises errors of its own for names that cannot be.
        if not os.path.isfile(path):  # noqa: PTH113
            raise WeightsError(f"there is no weights file '{path}'; give its path with --weights")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    # Whatever the file is, the loaders raise any error of it.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"cannot read weights from '{path}' ({reason}); give a .safetensors or .pth file") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"'{path}' holds no state dict; give a file with a state dict")
    return state
