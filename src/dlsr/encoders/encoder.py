"""The frozen encoder: resized images in, `z0` out (paper, section 3.1)."""

import hashlib
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from dlsr.encoders.engines import Backend, PixelsToZ0, choose_backend, openvino_engine, torch_engine
from dlsr.encoders.presets import EncoderSpec
from dlsr.encoders.weights import fingerprint, load_classifier, load_exactly
from dlsr.errors import SettingsError, WeightsError
from dlsr.features import DELTA


class Encoder:
    """A frozen network whose chosen stages make up `z0`.

    Args:
        spec: network, stages, preprocessing and weights.
        device: where to run.
        backend: what runs it, see `dlsr.encoders.engines`. Backends agree to 1e-4 in `z0`.

    Attributes:
        backend: the one that runs.
        channels: channels of each chosen stage, M numbers that sum to `c`.
        weights_sha256: of the loaded weights.

    Raises:
        SettingsError: if a stage does not exist.
        WeightsError: if the weights cannot be had or do not fit.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device | str = "cpu", backend: Backend = "auto") -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.backend = choose_backend(backend, self.device)
        network = _feature_network(spec)
        self.weights_sha256 = fingerprint(network)
        self.channels: tuple[int, ...] = tuple(network.feature_info.channels())
        module = PixelsToZ0(network, spec.mean, spec.std).eval().requires_grad_(False)
        if self.backend == "openvino":
            self._engine = openvino_engine(module, spec.size, self.key)
        else:
            self._engine = torch_engine(module, self.device)

    @property
    def c(self) -> int:
        """Dimension of `z0`."""
        return sum(self.channels)

    @property
    def key(self) -> str:
        """What `z0` depends on besides the image: weights, stages and preprocessing, as one hex digest."""
        parts = self.spec.model_dump_json(exclude={"name", "weights"}), self.weights_sha256, repr(DELTA)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode resized images: uint8 of shape `(N, size, size, 3)` to `z0`, float32 of shape `(N, c)`."""
        return self._engine(pixels)


def _feature_network(spec: EncoderSpec) -> Any:
    try:
        network: Any = timm.create_model(spec.network, pretrained=False, features_only=True, out_indices=spec.stages)
    except (AssertionError, IndexError, ValueError) as error:
        whole_network: Any = timm.create_model(spec.network, pretrained=False, features_only=True)
        count = len(whole_network.feature_info.channels())
        raise SettingsError(
            f"'{spec.name}' has stages 0..{count - 1}, asked for {list(spec.stages)}; choose among these"
        ) from error
    whole = load_classifier(spec).state_dict()
    wanted = {name: name.removeprefix("model.") for name in network.state_dict()}
    if not set(wanted.values()) <= whole.keys():
        raise WeightsError(f"timm names the features of '{spec.network}' in another way; choose another encoder")
    load_exactly(network, {name: whole[theirs] for name, theirs in wanted.items()}, spec.network)
    return network.eval().requires_grad_(False)
