"""A model as a manifest and arrays, without pickle; `dlsr.model_folder` keeps their files together."""

from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from dlsr.calibration.reasons import Ranges
from dlsr.config import MOST_STEPS, DetectorConfig, SavedSettings
from dlsr.encoders import EncoderSpec
from dlsr.encoding.examples import Examples
from dlsr.encoding.fitted_images import FittedImages
from dlsr.errors import ArtifactError, SettingsError, one_line
from dlsr.files import in_order
from dlsr.method.noise import MOST_NOISE
from dlsr.model import Calibration, FitSummary, FittedModel, Graphs
from dlsr.model_checks import check_finite, check_model, local_encoder
from dlsr.model_folder import FORMATS, MANIFEST, digest, numbers_path, read_pair, write_pair
from dlsr.runtime.backends import GRAPH_BACKENDS, Backend, choose_backend
from dlsr.runtime.base import Precision
from dlsr.runtime.onnx_file import check_onnx
from dlsr.scoring import FittedScorer, GraphScorer, ScorerGraph
from dlsr.training.log import EpochLog

Arrays = Mapping[str, NDArray[Any]]

SCHEMA_VERSION = 9


class Header(BaseModel):
    """The part of `model.json` that all kinds of models share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[9] = 9
    versions: dict[str, str]
    numbers: str = ""
    """Name of the file with the numbers."""
    numbers_sha256: str = ""


class GraphsManifest(BaseModel):
    """What `model.json` says of the graphs among the numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_vectors: int = Field(ge=0, le=MOST_STEPS)
    batch: int = Field(ge=1, le=2**16)
    timm: str | None

    @classmethod
    def of(cls, graphs: Graphs) -> Self:
        """What is said of these graphs."""
        return cls(noise_vectors=graphs.scorer.noise_vectors, batch=graphs.scorer.batch, timm=graphs.timm)


class Manifest(Header):
    """The contents of a detector's `model.json`."""

    format: Literal["dlsr-model"] = "dlsr-model"
    config: DetectorConfig
    """The arguments of the detector."""
    settings: SavedSettings
    """The resolved settings: the preset with changes."""
    encoder: EncoderSpec | None
    """None for a model fitted to features."""
    encoder_sha256: str | None
    channels: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] = Field(min_length=1, max_length=1000)
    fit: FitSummary
    graphs: GraphsManifest | None = None
    """None for a model that only PyTorch can run."""

    @property
    def precision(self) -> Precision:
        """Of the encoder's products."""
        return self.encoder.precision if self.encoder is not None else "float32"


class BaselineManifest(Header):
    """The contents of the `model.json` of a baseline, see `dlsr.baselines`."""

    format: Literal["dlsr-baseline"] = "dlsr-baseline"
    detector: str
    """Name in the registry."""
    parameters: dict[str, Any]
    classes: int
    """Classes that it was fitted to; 0 without labels."""
    log: list[EpochLog]


M = TypeVar("M", bound=Header)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that scores depend on, as far as they are installed."""
    versions = {}
    for name in ("dlsr", "torch", "timm", "onnxruntime", "openvino", "numpy", "pillow", "cykooz.resizer"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write_artifact(folder: Path, manifest: Header, arrays: Arrays) -> None:
    """Write a model directory, or replace the model in one.

    Args:
        folder: to write; created if missing.
        manifest: its `numbers` and `numbers_sha256` are filled in here.
        arrays: the numbers.

    Raises:
        OutputError: if it cannot be written, or the folder holds other files.
    """
    content = safetensors.numpy.save(
        in_order(arrays), metadata={"manifest_sha256": digest(manifest.model_dump(mode="json"))}
    )

    def describe(numbers: str, sha256: str) -> str:
        complete = manifest.model_copy(update={"numbers": numbers, "numbers_sha256": sha256})
        return complete.model_dump_json(indent=2) + "\n"

    write_pair(folder, content, describe)


def write_model(folder: Path, model: FittedModel) -> None:
    """Write the model directory of a detector, or replace the model in one.

    Raises:
        OutputError: if it cannot be written, or the folder holds other files.
    """
    graphs = model.graphs
    manifest = Manifest(
        versions=installed_versions(),
        config=model.config,
        settings=model.settings,
        encoder=model.encoder,
        encoder_sha256=model.encoder_sha256,
        channels=model.channels,
        fit=model.summary,
        graphs=None if graphs is None else GraphsManifest.of(graphs),
    )
    calibration = {name: values for name, values in vars(model.calibration).items() if isinstance(values, np.ndarray)}
    parts: dict[str, Arrays] = {
        "scorer": model.scorer.learned,
        "calibration": calibration,
        "images": model.images.arrays() if model.images else {},
        "ranges": model.ranges.values if model.ranges else {},
        "examples": model.examples.arrays() if model.examples else {},
        "graph": {} if graphs is None else _as_arrays(graphs),
        "maps": {} if model.map_peaks is None else {"peaks": model.map_peaks},
    }
    arrays = {f"{part}.{name}": values for part, named in parts.items() for name, values in named.items()}
    write_artifact(folder, manifest, arrays)


def read_model(folder: Path, device: str, backend: Backend = "auto", *, pytorch: bool = False) -> FittedModel:
    """Read the model directory of a detector, which may be a stranger's: it is checked, and opens no connection.

    Args:
        folder: to read.
        device: as `dlsr.runtime.devices.resolve_device` returns it.
        backend: that will run the encoder. If it runs graphs, and the model holds them, the score needs no PyTorch.
        pytorch: let PyTorch run the score in any case.

    Raises:
        ArtifactError: if it is missing, damaged, foreign or from another version of the schema.
        SettingsError, MissingExtraError: for a backend that does not run on the device, or is not installed.
    """
    manifest, arrays = read_artifact(folder, Manifest)
    chosen = choose_backend(backend, device, manifest.precision)
    if manifest.graphs is None and find_spec("torch") is None:
        raise ArtifactError(
            f"'{folder}' holds no graphs, so it needs PyTorch, which is not installed; run: pip install 'dlsr[fit]'"
        )
    try:
        model = _model_of(manifest, arrays, device, pytorch or chosen not in GRAPH_BACKENDS)
        check_model(model)
    except SettingsError as error:
        raise ArtifactError(
            f"'{folder / MANIFEST}' cannot be used: {error}; fit again, or register a score of your own before loading"
        ) from error
    except (IndexError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"'{folder}' does not hold what its {MANIFEST} says ({one_line(error)}); fit it again"
        ) from error
    return model


def _model_of(manifest: Manifest, arrays: Arrays, device: str, pytorch: bool) -> FittedModel:
    parts = ("scorer", "images", "examples", "graph", "ranges")
    learned, images, examples, graph, ranges = (_part(part, arrays) for part in parts)
    graphs = None
    if manifest.graphs is not None:
        about = manifest.graphs
        if about.noise_vectors * sum(manifest.channels) > MOST_NOISE:
            raise ValueError(
                f"its score takes {about.noise_vectors} vectors of noise of {sum(manifest.channels)} numbers"
            )
        contents = {name: content.tobytes() for name, content in graph.items()}
        for content in contents.values():
            check_onnx(content)
        scoring = ScorerGraph(contents["scorer"], about.noise_vectors, about.batch, contents.get("gradient"))
        graphs = Graphs(scoring, contents["encoder"] if manifest.encoder is not None else None, about.timm)
    return FittedModel(
        config=manifest.config,
        settings=manifest.settings,
        encoder=local_encoder(manifest.encoder) if manifest.encoder else None,
        encoder_sha256=manifest.encoder_sha256,
        channels=manifest.channels,
        scorer=_scorer_of(manifest, learned, graphs, device, pytorch),
        calibration=Calibration(**_part("calibration", arrays), left_out=manifest.fit.left_out),
        summary=manifest.fit,
        images=FittedImages.of(images) if images else None,
        examples=Examples.of(examples) if examples else None,
        graphs=graphs,
        map_peaks=_part("maps", arrays).get("peaks"),
        ranges=Ranges(ranges) if ranges else None,
    )


def _scorer_of(manifest: Manifest, learned: Arrays, graphs: Graphs | None, device: str, pytorch: bool) -> FittedScorer:
    if graphs is not None and not pytorch:
        check_finite(learned)
        return GraphScorer.of(graphs.scorer, learned, len(manifest.channels))
    from dlsr.fitting import restored  # noqa: PLC0415 - PyTorch takes seconds to import

    return restored(manifest.config, manifest.settings, manifest.channels, learned, device)


def _part(part: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _as_arrays(graphs: Graphs) -> Arrays:
    contents = {"scorer": graphs.scorer.onnx, "gradient": graphs.scorer.gradient, "encoder": graphs.encoder}
    return {name: np.frombuffer(content, np.uint8) for name, content in contents.items() if content is not None}


def read_artifact(folder: Path, kind: type[M]) -> tuple[M, dict[str, NDArray[Any]]]:
    """Read a model directory whose manifest is of this kind. Raises as `read_model` does."""

    def read(written: dict[str, Any]) -> tuple[M, dict[str, NDArray[Any]]]:
        manifest = _validated(folder, written, kind)
        path = numbers_path(folder, manifest.numbers, manifest.numbers_sha256)
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                of_manifest = (file.metadata() or {}).get("manifest_sha256")
        # The latter two for types that NumPy does not have.
        except (OSError, SafetensorError, TypeError, AttributeError) as error:
            raise ArtifactError(f"cannot read '{path}' ({one_line(error)}); fit the model again") from error
        if of_manifest != digest(written):
            raise ArtifactError(f"'{folder / MANIFEST}' was changed since it was written; fit the model again")
        return manifest, arrays

    return read_pair(folder, read)


def read_manifest(folder: Path) -> Manifest:
    """Read only `model.json` of a detector. Raises as `read_model` does."""
    return read_pair(folder, lambda written: _validated(folder, written, Manifest))


def _validated(folder: Path, content: dict[str, Any], kind: type[M]) -> M:
    expected, found = kind.model_fields["format"].default, content.get("format")
    if found in FORMATS and found != expected:
        raise ArtifactError(f"'{folder}' holds a {found}, not a {expected}; give a model directory of that kind")
    if found != expected:
        raise ArtifactError(f"'{folder / MANIFEST}' is not of dlsr; give a model directory that dlsr fit made")
    version = content.get("schema_version")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        remedy = "upgrade dlsr" if version > SCHEMA_VERSION else "fit the model again"
        raise ArtifactError(f"'{folder}' has schema version {version}, this dlsr reads {SCHEMA_VERSION}; {remedy}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"'{folder / MANIFEST}' is damaged: {where}: {first['msg']}; fit the model again"
        ) from error
    except SettingsError as error:
        raise ArtifactError(
            f"'{folder / MANIFEST}' cannot be used: {error}; fit again, or register a score of your own before loading"
        ) from error
