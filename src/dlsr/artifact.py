"""A model as a manifest and tensors, without pickle; `dlsr.model_folder` keeps their files together."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlsr.config import DetectorConfig
from dlsr.encoders import EncoderSpec
from dlsr.encoding.examples import Examples
from dlsr.errors import ArtifactError, SettingsError, one_line
from dlsr.model import Calibration, FitSummary, FittedModel
from dlsr.model_checks import check_model, check_settings, check_tensors, local_encoder
from dlsr.model_folder import MANIFEST, digest, numbers_path, read_pair, write_pair
from dlsr.scorers.base import Settings, new_scorer
from dlsr.training.state import EpochLog

SCHEMA_VERSION = 6
FORMATS = ("dlsr-model", "dlsr-baseline")


class Header(BaseModel):
    """The part of `model.json` that all kinds of models share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[6] = 6
    versions: dict[str, str]
    numbers: str = ""
    """Name of the file with the numbers."""
    numbers_sha256: str = ""


class Manifest(Header):
    """The contents of a detector's `model.json`."""

    format: Literal["dlsr-model"] = "dlsr-model"
    config: DetectorConfig
    """The arguments of the detector."""
    settings: Settings
    """The resolved settings: the preset with changes."""
    encoder: EncoderSpec | None
    """None for a model fitted to features."""
    encoder_sha256: str | None
    channels: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] = Field(min_length=1, max_length=1000)
    fit: FitSummary


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
    """Versions of the packages that scores depend on."""
    return {name: metadata.version(name) for name in ("dlsr", "torch", "timm", "numpy", "pillow")}


def write_artifact(folder: Path, manifest: Header, tensors: Mapping[str, Tensor]) -> None:
    """Write a model directory, or replace the model in one.

    Args:
        folder: to write; created if missing.
        manifest: its `numbers` and `numbers_sha256` are filled in here.
        tensors: the numbers.

    Raises:
        OutputError: if it cannot be written, or the folder holds other files.
    """
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"manifest_sha256": digest(manifest.model_dump(mode="json"))},
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
    manifest = Manifest(
        versions=installed_versions(),
        config=model.config,
        settings=model.settings,
        encoder=model.encoder,
        encoder_sha256=model.encoder_sha256,
        channels=model.channels,
        fit=model.summary,
    )
    calibration = {name: values for name, values in vars(model.calibration).items() if isinstance(values, np.ndarray)}
    parts: dict[str, Mapping[str, Tensor]] = {
        "scorer": model.scorer.state_dict(),
        "calibration": _as_tensors(calibration),
        "examples": _as_tensors(model.examples.arrays() if model.examples else {}),
    }
    tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
    write_artifact(folder, manifest, tensors)


def read_model(folder: Path, device: torch.device) -> FittedModel:
    """Read the model directory of a detector, which may be a stranger's: it is checked, and opens no connection.

    Raises:
        ArtifactError: if it is missing, damaged, foreign or from another version of the schema.
    """
    manifest, tensors = read_artifact(folder, Manifest)
    try:
        model = _model_of(manifest, tensors, device)
        check_model(model)
    except (IndexError, KeyError, RuntimeError, SettingsError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"'{folder}' does not hold what its {MANIFEST} says ({one_line(error)}); fit it again"
        ) from error
    return model


def _model_of(manifest: Manifest, tensors: Mapping[str, Tensor], device: torch.device) -> FittedModel:
    check_settings(manifest.config, manifest.settings)
    learned, examples = _part("scorer", tensors), _as_arrays(_part("examples", tensors))
    # A scorer without memory tells the shapes that are right before one is built with any.
    with torch.device("meta"):
        expected = new_scorer(manifest.settings, manifest.channels).state_dict()
    check_tensors(expected, learned)
    scorer = new_scorer(manifest.settings, manifest.channels)
    scorer.load_state_dict(learned, assign=True)
    return FittedModel(
        config=manifest.config,
        settings=manifest.settings,
        encoder=local_encoder(manifest.encoder) if manifest.encoder else None,
        encoder_sha256=manifest.encoder_sha256,
        channels=manifest.channels,
        scorer=scorer.to(device),
        calibration=Calibration(
            **_as_arrays(_part("calibration", tensors)),
            left_out=manifest.fit.left_out,
        ),
        summary=manifest.fit,
        examples=Examples.of(examples) if examples else None,
    )


def _part(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _as_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.tensor(values) for name, values in arrays.items()}


def _as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def read_artifact(folder: Path, kind: type[M]) -> tuple[M, dict[str, Tensor]]:
    """Read a model directory whose manifest is of this kind. Raises as `read_model` does."""

    def read(written: dict[str, Any]) -> tuple[M, dict[str, Tensor]]:
        manifest = _validated(folder, written, kind)
        path = numbers_path(folder, manifest.numbers, manifest.numbers_sha256)
        try:
            with safe_open(path, framework="pt") as file:
                # Copies, since the file may be deleted when the model is replaced.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
                of_manifest = (file.metadata() or {}).get("manifest_sha256")
        # PyTorch opens the file a second time, and raises RuntimeError if it is gone by then.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"cannot read '{path}' ({one_line(error)}); fit the model again") from error
        if of_manifest != digest(written):
            raise ArtifactError(f"'{folder / MANIFEST}' was changed since it was written; fit the model again")
        return manifest, tensors

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
