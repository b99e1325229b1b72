"""Options and their parsing that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dlsr.errors import SettingsError


class ProtocolName(StrEnum):
    """Evaluation protocols."""

    NATIVE = "native"
    MATCHED = "matched"


class BackendName(StrEnum):
    """What runs the encoder."""

    AUTO = "auto"
    TORCH = "torch"
    COMPILE = "compile"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class DecodingName(StrEnum):
    """How JPEGs are decoded."""

    FULL = "full"
    DRAFT = "draft"


class EngineName(StrEnum):
    """What hands out the work of scoring or encoding."""

    LOCAL = "local"
    RAY = "ray"


class FormatName(StrEnum):
    """Export formats."""

    ONNX = "onnx"
    OPENVINO = "openvino"


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ..")]
BackendOption = Annotated[BackendName, typer.Option(help="What runs the encoder.")]
Store = Annotated[Path | None, typer.Option(help="Folder of the feature store.", show_default="~/.cache/dlsr/features")]
NoStore = Annotated[bool, typer.Option("--no-store", help="Keep no features on disk.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read and decode images.")]
Weights = Annotated[str | None, typer.Option(help="Encoder weights: a .safetensors or .pth file, or 'random'.")]
Model = Annotated[Path, typer.Argument(help="Model directory that `dlsr fit` wrote.")]
ScoredImages = Annotated[Path, typer.Argument(help="Folder, tar or image file.")]
Rate = Annotated[float | None, typer.Option("--false-alarm-rate", help="Share of ID images that may be called OOD.")]


Engine = Annotated[EngineName, typer.Option(help="ray: on a Ray cluster, from folders, shards, Parquet, URLs, hf:..")]
Address = Annotated[
    str | None, typer.Option(help="For ray: of the cluster, such as auto; one on this machine if not given.")
]
ImagesPerPart = Annotated[int, typer.Option(min=1, help="For ray: images in a task.")]


def store_of(store: Path | None, no_store: bool) -> Path | None:
    """The feature store's folder that the options say; None for none."""
    from dlsr.encoding.store import default_store_root  # noqa: PLC0415

    return None if no_store else store or default_store_root()


def named_sets(given: list[str], option: str = "--ood") -> dict[str, Path]:
    """Paths by name from options `NAME=PATH`. Raises SettingsError for others, or a name given twice."""
    sets: dict[str, Path] = {}
    for one in given:
        name, separator, path = one.partition("=")
        if not (name and separator and path) or name in sets:
            raise SettingsError(f"{option} takes NAME=FOLDER, each name once, got '{one}'")
        sets[name] = Path(path)
    return sets


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Whole numbers from an option with commas. Raises SettingsError for anything else."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"{option} takes whole numbers with commas between them, got '{text}'") from None


def load(
    model: Path,
    weights: str | None,
    device: str,
    backend: BackendName,
    store: Path | None,
    no_store: bool,
    workers: int,
    false_alarm_rate: float | None,
) -> Any:
    """The detector of a model directory."""
    from dlsr.detector import Detector  # noqa: PLC0415

    return Detector.load(
        model,
        weights=weights,
        device=device,
        backend=backend.value,
        store=store_of(store, no_store),
        workers=workers,
        false_alarm_rate=false_alarm_rate,
    )
