"""What detectors are fitted to and measured on: features, encoded once for all detectors of a task, or images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dlsr.baselines.encoded import EncodedBaseline
from dlsr.bench.compare import unreadable_in
from dlsr.bench.tasks import Draw, Indices, SuiteTask
from dlsr.detector import Detector
from dlsr.encoders import EncoderSpec
from dlsr.encoding.extractor import FeatureExtractor
from dlsr.encoding.pipeline import Encoded
from dlsr.images.sources import ImageDataset
from dlsr.images.transforms import Transform, protocol_transform
from dlsr.method.layers import POOLINGS, Pooling
from dlsr.method.noise import Digests
from dlsr.runtime.devices import resolve_device

Array = NDArray[np.float64]


class Inputs(Protocol):
    """The images of a dataset as a detector takes them."""

    def __len__(self) -> int: ...

    def take(self, indices: Indices) -> Self:
        """Those at these positions."""

    def fit(self, detector: Any) -> None:
        """Fit a detector to them."""

    def score(self, detector: Any) -> Array:
        """Their scores by a fitted detector, those that are numbers."""


@dataclass(frozen=True)
class Features:
    """Images as features."""

    z0: NDArray[np.float32]
    digests: Digests
    channels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.z0)

    def take(self, indices: Indices) -> "Features":
        """See `Inputs`."""
        return replace(self, z0=self.z0[indices], digests=self.digests[indices])

    def fit(self, detector: Any) -> None:
        """See `Inputs`."""
        detector.fit_features(self.z0, self.channels, digests=self.digests)

    def score(self, detector: Any) -> Array:
        """See `Inputs`."""
        scores: Array = detector.score_features(self.z0, self.digests)
        return scores


@dataclass(frozen=True)
class Pixels:
    """Images for a detector that reads them itself."""

    images: ImageDataset
    transform: Transform | None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Indices) -> "Pixels":
        """See `Inputs`."""
        return replace(self, images=self.images.subset(int(i) for i in indices))

    def fit(self, detector: Any) -> None:
        """See `Inputs`."""
        detector.fit(self.images, transform=self.transform)

    def score(self, detector: Any) -> Array:
        """See `Inputs`."""
        scores: Array = detector.score_samples(self.images, transform=self.transform)
        return scores[np.isfinite(scores)]


def extractor_of(detector: Any) -> FeatureExtractor | None:
    """The feature extractor of a detector that is not fitted; None for a detector on pixels."""
    if isinstance(detector, Detector):
        return replace(detector.prepare_extractor(), store=None)
    if isinstance(detector, EncodedBaseline):
        return FeatureExtractor(detector.encoder_spec_, resolve_device(detector.device))
    return None


@dataclass
class Encoders:
    """Feature extractors that are loaded once, and the feature store that they share."""

    store: Path | None
    _loaded: dict[EncoderSpec, FeatureExtractor] = field(default_factory=dict)

    def load(self, extractor: FeatureExtractor) -> FeatureExtractor:
        """This extractor with the store, loaded before if there was one for the same encoder."""
        return self._loaded.setdefault(extractor.spec, replace(extractor, store=self.store))


@dataclass
class TaskInputs:
    """The images of a task as each detector takes them, encoded once for an encoder, whatever the pooling."""

    task: SuiteTask
    encoders: Encoders
    _encoded: dict[EncoderSpec, dict[str, Encoded]] = field(default_factory=dict)
    _quantised: dict[EncoderSpec, FeatureExtractor] = field(default_factory=dict)
    """Encoders in 8 bits, whose ranges are those of this task's training images."""

    @property
    def transform(self) -> Transform | None:
        """The change that the task's protocol makes to each image."""
        return protocol_transform(self.task.protocol)

    def drawn(self, detector: Any, draw: Draw) -> dict[str, Inputs]:
        """The datasets of the task as a detector takes them: `train`, `ID` and the OOD datasets.

        Raises:
            NoImagesError: if no image of a dataset can be read.
            SettingsError, WeightsError: as `FeatureExtractor.encoder`.
        """
        datasets = {"train": draw.train, "ID": np.arange(len(self.task.test)), **draw.ood}
        mixed = [("train", draw.train), *draw.intruders.items()]
        extractor = extractor_of(detector)
        if extractor is None:
            images = self.task.datasets()
            chosen = {name: images[name].subset(indices) for name, indices in datasets.items()}
            fitted_to = [item for name, indices in mixed for item in images[name].subset(indices).items]
            chosen["train"] = ImageDataset(fitted_to)
            return {name: Pixels(those, self.transform) for name, those in chosen.items()}
        loaded = self._loaded(replace(extractor, spec=_widest(extractor.spec)))
        if loaded.spec not in self._encoded:
            self._encoded[loaded.spec] = {name: self._all(name, loaded) for name in self.task.datasets()}
        encoded = self._encoded[loaded.spec]
        columns, channels = _columns(loaded.encoder.channels, loaded.spec.pooling, extractor.spec.pooling)

        def features(parts: Sequence[tuple[str, Indices]]) -> Features:
            rows = [_rows(encoded[name], indices) for name, indices in parts]
            z0 = [encoded[name].z0[chosen] for (name, _), chosen in zip(parts, rows, strict=True)]
            digests = [encoded[name].digests[chosen] for (name, _), chosen in zip(parts, rows, strict=True)]
            return Features(np.concatenate(z0)[:, columns], np.concatenate(digests), channels)

        return {name: features(mixed if name == "train" else [(name, indices)]) for name, indices in datasets.items()}

    def _loaded(self, extractor: FeatureExtractor) -> FeatureExtractor:
        if extractor.spec.precision != "int8":
            return self.encoders.load(extractor)
        if extractor.spec not in self._quantised:
            kept = replace(extractor, store=self.encoders.store)
            self._quantised[extractor.spec] = kept.with_ranges(self.task.train, 0)
        return self._quantised[extractor.spec]

    def unreadable(self) -> dict[str, dict[str, str]]:
        """By dataset, the reasons why images cannot be read, by name. Decodes all images, unless they were encoded."""
        if self._encoded:
            found = {name: images.unreadable for name, images in next(iter(self._encoded.values())).items()}
        else:
            found = {name: unreadable_in(images) for name, images in self.task.datasets().items()}
        return {name: reasons for name, reasons in found.items() if reasons}

    def _all(self, name: str, extractor: FeatureExtractor) -> Encoded:
        encoded = extractor.encode(self.task.datasets()[name], transform=self.transform)
        encoded.check_readable(f"images of '{name}' of task '{self.task.name}'")
        return encoded


def _widest(spec: EncoderSpec) -> EncoderSpec:
    # The parts of a pooling are normalised one by one, so the features of a narrower one are some of its columns.
    return spec.model_copy(update={"pooling": POOLINGS[-1]}) if spec.output == "stages" else spec


def _columns(channels: tuple[int, ...], wide: Pooling, pooling: Pooling) -> tuple[Indices, tuple[int, ...]]:
    """The columns of features pooled as `wide` that are those pooled as `pooling`, and the dimensions of its layers."""
    parts, kept = len(wide.split("+")), len(pooling.split("+"))
    assert wide.startswith(pooling)
    starts = np.cumsum((0, *channels[:-1]))
    narrow = tuple(c * kept // parts for c in channels)
    return np.concatenate([start + np.arange(c) for start, c in zip(starts, narrow, strict=True)]), narrow


def _rows(encoded: Encoded, indices: Indices) -> Indices:
    """The rows of the features of these images, without those that cannot be read."""
    rows = np.where(encoded.readable, np.cumsum(encoded.readable) - 1, -1)[indices]
    return rows[rows >= 0]
