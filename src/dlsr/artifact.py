"""The model directory: `model.json` describes the model, and names the one file with its numbers.

Both are written whole, the numbers first and under the name of their digest, so that at any moment
`model.json` belongs to the numbers it names. There is no pickle.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from dlsr.config import DetectorConfig
from dlsr.encoders import EncoderSpec
from dlsr.encoding.examples import Examples
from dlsr.errors import ArtifactError, OutputError, SettingsError, one_line
from dlsr.files import replacing
from dlsr.model import Calibration, FitSummary, FittedModel
from dlsr.scorers.base import Settings, new_scorer
from dlsr.training.state import EpochLog

SCHEMA_VERSION = 4
MANIFEST = "model.json"
FORMATS = ("dlsr-model", "dlsr-baseline")


class Header(BaseModel):
    """The part of `model.json` that all kinds of models share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[4] = 4
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
    channels: tuple[int, ...]
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
    check_output(folder)
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"manifest_sha256": _digest(manifest.model_dump(mode="json"))},
    )
    sha256 = hashlib.sha256(content).hexdigest()
    numbers = f"numbers-{sha256[:16]}.safetensors"
    with replacing(folder / numbers) as temporary:
        temporary.write_bytes(content)
    complete = manifest.model_copy(update={"numbers": numbers, "numbers_sha256": sha256})
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(complete.model_dump_json(indent=2) + "\n")
    for old in folder.glob("numbers-*.safetensors"):
        if old.name != numbers:
            old.unlink(missing_ok=True)


def check_output(folder: Path) -> None:
    """Raise OutputError if something else than a model is at `folder`."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise OutputError(f"'{folder}' holds other files; give a new folder, or one with a model to replace")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is a file; give a folder for the model")


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
    parts: dict[str, Mapping[str, Tensor]] = {
        "scorer": model.scorer.state_dict(),
        "calibration": {name: torch.from_numpy(values) for name, values in vars(model.calibration).items()},
        "examples": model.examples.tensors() if model.examples else {},
    }
    tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
    write_artifact(folder, manifest, tensors)


def read_model(folder: Path, device: torch.device) -> FittedModel:
    """Read the model directory of a detector.

    Raises:
        ArtifactError: if it is missing, damaged, foreign or from another version of the schema.
    """
    manifest, tensors = read_artifact(folder, Manifest, device)
    try:
        scorer = new_scorer(manifest.settings, manifest.channels).to(device)
        scorer.load_state_dict(_part("scorer", tensors), assign=True)
        examples = _part("examples", tensors)
        return FittedModel(
            config=manifest.config,
            settings=manifest.settings,
            encoder=manifest.encoder,
            encoder_sha256=manifest.encoder_sha256,
            channels=manifest.channels,
            scorer=scorer,
            calibration=Calibration(
                **{name: values.cpu().numpy() for name, values in _part("calibration", tensors).items()}
            ),
            summary=manifest.fit,
            examples=Examples.of(examples) if examples else None,
        )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"'{folder}' does not hold what its model.json says ({one_line(error)}); fit it again"
        ) from error


def _part(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_artifact(folder: Path, kind: type[M], device: torch.device) -> tuple[M, dict[str, Tensor]]:
    """Read a model directory whose manifest is of this kind. Raises as `read_model` does."""
    written = _read_content(folder, kind)
    manifest = _validated(folder, written, kind)
    path = folder / manifest.numbers
    if Path(manifest.numbers).name != manifest.numbers:
        raise ArtifactError(f"'{folder}' names numbers outside itself; it is damaged, fit it again")
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.numbers_sha256:
            raise ArtifactError(f"'{path}' is damaged: its SHA-256 is not the one in {MANIFEST}; fit the model again")
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if header.get("__metadata__", {}).get("manifest_sha256") != _digest(written):
            raise ArtifactError(f"'{folder / MANIFEST}' was changed since it was written; fit the model again")
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot read '{path}' ({error}); fit the model again") from error
    return manifest, {name: tensor.to(device) for name, tensor in tensors.items()}


def read_manifest(folder: Path) -> Manifest:
    """Read only `model.json` of a detector. Raises as `read_model` does."""
    return _validated(folder, _read_content(folder, Manifest), Manifest)


def _read_content(folder: Path, kind: type[Header]) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"'{folder}' is no model directory: it has no {MANIFEST}; give one that dlsr fit made"
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read '{path}' ({error}); fit the model again") from error
    expected = kind.model_fields["format"].default
    found = content.get("format") if isinstance(content, dict) else None
    if found in FORMATS and found != expected:
        raise ArtifactError(f"'{folder}' holds a {found}, not a {expected}; give a model directory of that kind")
    if not isinstance(content, dict) or found != expected:
        raise ArtifactError(f"'{path}' is not of dlsr; give a model directory that dlsr fit made")
    return content


def _validated(folder: Path, content: dict[str, Any], kind: type[M]) -> M:
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
            f"'{folder / MANIFEST}' cannot be used: {error}; a score of your own must be registered before loading"
        ) from error


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of `model.json` as written, without the name and digest of the numbers.

    It is taken of the file, not of the validated manifest, so that a later dlsr may add settings with defaults.
    """
    bare = {name: value for name, value in content.items() if name not in ("numbers", "numbers_sha256")}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()
