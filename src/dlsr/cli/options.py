"""Options that several commands share: alone, or in groups that a command takes as one parameter."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlsr.errors import SettingsError

if TYPE_CHECKING:
    from dlsr.fitted_detector import FittedDetector


class ProtocolName(StrEnum):
    """Evaluation protocols."""

    NATIVE = "native"
    MATCHED = "matched"


class BackendName(StrEnum):
    """Engines that run the encoder."""

    AUTO = "auto"
    TORCH = "torch"
    COMPILE = "compile"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class DecodingName(StrEnum):
    """How JPEGs are decoded."""

    FULL = "full"
    DRAFT = "draft"


class ResizerName(StrEnum):
    """What resizes images."""

    AUTO = "auto"
    CYKOOZ = "cykooz"
    PILLOW = "pillow"


class PrecisionName(StrEnum):
    """Precision of the encoder."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class CalibrationName(StrEnum):
    """Where the scores come from that decide thresholds and p-values."""

    AUTO = "auto"
    HELD_OUT = "held-out"
    LEAVE_ONE_OUT = "leave-one-out"


class PoolingName(StrEnum):
    """What is kept of the encoder's maps."""

    MEAN = "mean"
    MEAN_STD = "mean+std"
    MEAN_STD_MAX = "mean+std+max"


Pooling = Annotated[
    PoolingName | None,
    typer.Option(help="What is kept of each of the encoder's maps; mean is the paper's.", show_default="the preset's"),
]
Model = Annotated[Path, typer.Argument(help="Model directory written by `dlsr fit`.")]
Images = Annotated[Path, typer.Argument(help="Folder, tar, clip or image file.")]
Every = Annotated[
    str | None,
    typer.Option(
        "--every",
        help="Of a clip: keep every so many frames, such as 30, or one frame in so many seconds, such as 1s. "
        "Default: all frames.",
    ),
]
OodDatasets = Annotated[list[str], typer.Option("--ood", help="An OOD dataset as NAME=FOLDER or NAME=TAR. Repeatable.")]
FalseAlarmRate = Annotated[
    float | None,
    typer.Option("--false-alarm-rate", help="Share of ID images that may be called OOD. Default: the model's."),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        "--confidence",
        help="Probability, such as 0.95, that the rate holds for this model. Default: it holds on average over fits.",
    ),
]
GroupBy = Annotated[
    str | None,
    typer.Option(
        "--group-by",
        help="Images that belong together, such as frames of one video: folder, a regular expression on their names, a "
        "CSV file with the columns path and group, or none. Default: near copies are found and grouped; to calibrate, "
        "as the model was fitted.",
    ),
]
Fdr = Annotated[
    float | None,
    typer.Option(
        "--fdr",
        help="Instead of the false-alarm rate: the false discovery rate, which is the largest expected share of ID "
        "images among those called OOD, such as 0.1. Holds all results in memory, about 0.3 KB an image.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Encoder weights: a .safetensors or .pth file; 'random'; or 'hub', which downloads them from the Hugging "
        "Face Hub if they are not on this machine."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Backend = Annotated[BackendName, typer.Option(help="Engine that runs the encoder.")]
Store = Annotated[Path | None, typer.Option(help="Folder of the feature store.", show_default="~/.cache/dlsr/features")]
NoStore = Annotated[bool, typer.Option("--no-store", help="Do not keep features on disk.")]
Workers = Annotated[
    int, typer.Option(min=1, help="Threads that read and decode images; with --engine ray, most processes.")
]
Mlflow = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="Log to MLflow at this address: http://HOST:PORT, or sqlite:///FILE.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no messages.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class FormatName(StrEnum):
    """What results are written for, see `dlsr.reports.formats`."""

    TABLE = "table"
    FIFTYONE = "fiftyone"
    LABEL_STUDIO = "label-studio"


class EngineName(StrEnum):
    """Where images are scored or encoded."""

    LOCAL = "local"
    RAY = "ray"


Engine = Annotated[
    EngineName,
    typer.Option(help="local: this machine. ray: a Ray cluster, also for shards, Parquet, URLs and hf:DATASET."),
]
Address = Annotated[
    str | None, typer.Option(help="Ray: address of the cluster, such as auto. Default: start one on this machine.")
]
ImagesPerPart = Annotated[int, typer.Option(min=1, help="Ray: images per task.")]


@dataclass(frozen=True)
class Runtime:
    """Options that say where and how a detector runs."""

    weights: Weights = None
    device: Device = "auto"
    backend: Backend = BackendName.AUTO
    store: Store = None
    no_store: NoStore = False
    workers: Workers = 2

    def arguments(self) -> dict[str, Any]:
        """The arguments of `Detector` and of `load`."""
        return {
            "weights": self.weights,
            "device": self.device,
            "backend": self.backend.value,
            "store": store_folder(self.store, self.no_store),
            "workers": self.workers,
        }

    def load(self, model: Path, false_alarm_rate: float | None = None) -> "FittedDetector":
        """The detector in a model directory.

        Raises:
            ArtifactError: if it cannot be read.
            SettingsError: for options that cannot work.
        """
        from dlsr.fitted_detector import FittedDetector  # noqa: PLC0415

        return FittedDetector.load(model, **self.arguments(), false_alarm_rate=false_alarm_rate)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take option groups: parameters annotated with a dataclass whose fields are options.

    Typer reads options from the signature, so the returned function has one parameter for each option of a group.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type[Any], list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            options = list(inspect.signature(kind).parameters.values())
            groups[parameter.name] = kind, [option.name for option in options]
            parameters += options
        else:
            parameters.append(parameter)

    @wraps(command)
    def flat(**values: Any) -> None:
        for name, (kind, names) in groups.items():
            values[name] = kind(**{option: values.pop(option) for option in names})
        command(**values)

    keyword_only = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
    flat.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def check_fdr_option(fdr: float | None, false_alarm_rate: float | None) -> None:
    """Check `--fdr` before any image is scored.

    Raises:
        SettingsError: for a rate outside (0, 1), or a false-alarm rate beside it.
    """
    from dlsr.calibration.fdr import check_fdr  # noqa: PLC0415

    if fdr is not None:
        check_fdr(fdr)
        if false_alarm_rate is not None:
            raise SettingsError("--fdr decides instead of --false-alarm-rate; give one of them")


def store_folder(store: Path | None, no_store: bool) -> Path | None:
    """Folder of the feature store; None to keep no features."""
    from dlsr.encoding.store import default_store_root  # noqa: PLC0415

    return None if no_store else store or default_store_root()


def named_paths(given: list[str], option: str = "--ood", taken: Collection[str] = ("ID",)) -> dict[str, Path]:
    """Paths by name, from the values of an option that takes `NAME=PATH`. `taken` are names of ID images in reports.

    Raises:
        SettingsError: for a value of another form, a name given twice, or an OOD dataset with a name of ID images.
    """
    paths: dict[str, Path] = {}
    for value in given:
        name, separator, path = value.partition("=")
        if name in taken:
            raise SettingsError(f"{option} {value}: '{name}' is what ID images are called; give another name")
        if not (name and separator and path) or name in paths:
            raise SettingsError(f"{option} takes NAME=FOLDER, each name once, got '{value}'")
        paths[name] = Path(path)
    return paths


def whole_numbers(text: str | None, option: str, least: int = 0) -> tuple[int, ...] | None:
    """Whole numbers from an option that takes several, separated by commas; each is at least `least`.

    Raises:
        SettingsError: for anything else.
    """
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least:
        raise SettingsError(f"{option} takes whole numbers separated by commas, each at least {least}, got '{text}'")
    return numbers
