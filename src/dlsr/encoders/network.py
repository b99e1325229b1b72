"""The encoder's network as a PyTorch module: pixels in, `z0` out (paper, section 3.1)."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

from dlsr.encoders.presets import EncoderSpec
from dlsr.encoders.weights import fingerprint, load_classifier, load_exactly
from dlsr.errors import SettingsError, WeightsError, one_line
from dlsr.method.features import to_z0
from dlsr.method.layers import Pooling, layer_dimensions
from dlsr.runtime.base import Graph


class PixelsToZ0(nn.Module):
    """Pixel normalisation, the feature network, pooling and z-score as one module.

    Maps resized images, uint8 of shape `(N, size, size, 3)`, to `z0`, shape `(N, c)`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], pooling: Pooling = "mean"
    ) -> None:
        super().__init__()
        self.network = network
        self.pooling: Pooling = pooling
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return to_z0(self.network(self.normalised(pixels)), self.pooling)

    def normalised(self, pixels: Tensor) -> Tensor:
        """The network's input, shape `(N, 3, size, size)`."""
        return ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)


class _WithMaps(nn.Module):
    """`z0`, and the map of each stage, of shape `(N, k_m, h_m, w_m)`."""

    def __init__(self, module: PixelsToZ0) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.module.network(self.module.normalised(pixels))
        return to_z0(maps, self.module.pooling), *maps


class PixelsToPenultimate(PixelsToZ0):
    """The input of the last layer of a timm classifier, shape `(N, c)`, without pooling of stages or z-score."""

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        classifier: Any = self.network
        maps = classifier.forward_features(self.normalised(pixels))
        features: Tensor = classifier.forward_head(maps, pre_logits=True)
        return features


class Network:
    """The network of an encoder, with its weights.

    Args:
        spec: network, stages, preprocessing and weights.
        weights_sha256: SHA-256 that the weights must have; None for any.

    Attributes:
        channels: dimensions of each chosen stage in `z0`, M numbers that sum to `c`.
        weights_sha256: SHA-256 of the weights.

    Raises:
        SettingsError: if a stage does not exist.
        WeightsError: if the weights are missing, do not fit the network or have another SHA-256.
    """

    def __init__(self, spec: EncoderSpec, weights_sha256: str | None = None) -> None:
        network = feature_network(spec) if spec.output == "stages" else load_classifier(spec).requires_grad_(False)
        self.weights_sha256 = fingerprint(network)
        if weights_sha256 not in (None, self.weights_sha256):
            raise WeightsError(
                "the encoder's weights are not those that the model was fitted with; give the same with --weights"
            )
        self.channels = _channels(spec, network)
        kind = PixelsToPenultimate if spec.output == "penultimate" else PixelsToZ0
        self.module = kind(network, spec.mean, spec.std, spec.pooling)


def pixels_to_z0(spec: EncoderSpec, weights_sha256: str, key: str, network: Network | None = None) -> Graph:
    """The graph of an encoder: `pixels` to `z0`. Inside are the maps of its stages.

    Args:
        spec: network, stages, preprocessing and weights.
        weights_sha256: SHA-256 of the weights.
        key: digest of everything that `z0` depends on besides the pixels.
        network: its network, if that was loaded.
    """
    known = [] if network is None else [network.module]

    def build() -> nn.Module:
        module = known[0] if known else Network(spec, weights_sha256).module
        return _WithMaps(module) if spec.map_names else module

    inputs = {"pixels": torch.from_numpy(spec.example())}
    return Graph(build, inputs, ("z0",), key, spec.precision, inner=spec.map_names)


def _channels(spec: EncoderSpec, network: Any) -> tuple[int, ...]:
    if spec.output == "penultimate":
        return (int(network.head_hidden_size),)
    return layer_dimensions(network.feature_info.channels(), spec.pooling)


def _stage_count(spec: EncoderSpec) -> int:
    """The number of stages to choose from. Raises SettingsError if the encoder's network has no feature maps."""
    try:
        network: Any = timm.create_model(spec.network, pretrained=False, features_only=True)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise SettingsError(
            f"timm's '{spec.network}' has no feature maps ({one_line(error)}); choose another"
        ) from error
    return len(network.feature_info.info)


def feature_network(spec: EncoderSpec) -> Any:
    """The chosen stages of the encoder's network, with its weights.

    Raises:
        SettingsError: if timm does not know the network, or a stage does not exist.
        WeightsError: if the weights are missing, damaged or do not fit the network.
    """
    whole = load_classifier(spec).state_dict()
    try:
        network: Any = timm.create_model(spec.network, pretrained=False, features_only=True, out_indices=spec.stages)
    except (AssertionError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        count = _stage_count(spec)
        raise SettingsError(
            f"'{spec.name}' has stages 0..{count - 1}, got {list(spec.stages)}; choose among these"
        ) from error
    # Of some networks timm flattens the names: `stages_0.weight` for `stages.0.weight`.
    theirs = {_flat(name): name for name in whole}
    wanted = {name: theirs.get(_flat(name.removeprefix("model."))) for name in network.state_dict()}
    if None in wanted.values() or len(theirs) < len(whole):
        raise WeightsError(
            f"timm's features of '{spec.network}' have other weights than its classifier; choose another encoder"
        )
    load_exactly(network, {name: whole[found] for name, found in wanted.items() if found is not None}, spec.network)
    if getattr(network, "output_fmt", None) == "NHWC":
        network = _ChannelsFirst(network)
    return network.eval().requires_grad_(False)


def _flat(name: str) -> str:
    return name.replace(".", "_")


class _ChannelsFirst(nn.Module):
    """A network whose maps are of shape `(N, H, W, C)`, with maps of shape `(N, C, H, W)`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.feature_info = network.feature_info

    def forward(self, images: Tensor) -> list[Tensor]:
        return [maps.permute(0, 3, 1, 2) for maps in self.network(images)]
