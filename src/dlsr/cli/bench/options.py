"""Options and output that the commands below `dlsr bench` share."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlsr.cli.console import stdout
from dlsr.cli.options import NoStore, ProtocolName, Store, Weights, named_paths, store_folder
from dlsr.errors import SettingsError

if TYPE_CHECKING:
    from dlsr.bench.compare import CompareSettings
    from dlsr.bench.reproduction import Where

Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the report, plots and finished runs.")]
Detectors = Annotated[str | None, typer.Option(help="Names from `dlsr bench --list`, separated by commas, or all.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs with different seeds.")]
OodNames = Annotated[str | None, typer.Option("--ood", help="OOD datasets by name. Default: the paper's.")]
Encoder = Annotated[str | None, typer.Option(help="Encoder preset, or a timm network.")]


@dataclass(frozen=True)
class Places:
    """Options that say where benchmark datasets are."""

    data_root: Annotated[
        Path | None, typer.Option(help="Folder with the benchmark datasets, each a folder or tar.")
    ] = None
    places: Annotated[
        list[str] | None, typer.Option("--dataset", help="Place of a single dataset, as NAME=PATH. Repeatable.")
    ] = None
    download: Annotated[
        bool, typer.Option("--download", help="Download datasets through torchvision or from the Hugging Face hub.")
    ] = False

    def where(self) -> "Where":
        """The places. Raises SettingsError for a place that is not NAME=PATH."""
        from dlsr.bench.reproduction import Where  # noqa: PLC0415

        return Where(self.data_root, named_paths(self.places or [], "--dataset"), self.download)


@dataclass(frozen=True)
class Experiment:
    """Options that say how detectors are compared."""

    encoder: Encoder = None
    weights: Weights = None
    protocol: Annotated[
        ProtocolName, typer.Option(help="native: images as they are. matched: resized and compressed alike first.")
    ] = ProtocolName.NATIVE
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many images of each test dataset, chosen at random.")
    ] = None
    train_limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many training images, chosen at random.")
    ] = None
    reduced: Annotated[bool, typer.Option("--reduced", help="Sizes that a laptop fits in minutes.")] = False
    store: Store = None
    no_store: NoStore = False

    def store_folder(self) -> Path | None:
        """Folder of the feature store; None to keep no features."""
        return store_folder(self.store, self.no_store)

    def settings(self, detectors: str | None = None, seeds: int = 1) -> "CompareSettings":
        """The settings of a comparison. Raises SettingsError for a name that is not a detector's."""
        from dlsr.baselines import DETECTORS  # noqa: PLC0415
        from dlsr.bench.compare import CompareSettings  # noqa: PLC0415

        chosen = tuple(DETECTORS) if detectors == "all" else names(detectors)
        unknown = [name for name in chosen if name not in DETECTORS]
        if unknown:
            raise SettingsError(f"unknown detector '{unknown[0]}'; choose among {', '.join(DETECTORS)}")
        return CompareSettings(
            detectors=chosen,
            protocol=self.protocol.value,
            seeds=seeds,
            limit=self.limit,
            train_limit=self.train_limit,
            reduced=self.reduced,
            encoder=self.encoder or "efficientnet_lite0",
            weights=self.weights,
        )


def names(text: str | None) -> tuple[str, ...]:
    """Names separated by commas; none for None."""
    return tuple(text.split(",")) if text else ()


def command_line() -> str:
    """The command that is running, for reports: a number without its command cannot be checked."""
    return "dlsr " + " ".join(sys.argv[1:])


def write_report(folder: Path, name: str, report: dict[str, Any], markdown: str | None = None) -> None:
    """Write a report as JSON and, if given, as Markdown, which is printed too; both start with the command.

    Raises:
        OutputError: if they cannot be written.
    """
    from dlsr.files import replacing, write_json  # noqa: PLC0415

    write_json(folder / f"{name}.json", {"command": command_line(), **report})
    if markdown is not None:
        with replacing(folder / f"{name}.md") as temporary:
            temporary.write_text(f"`{command_line()}`\n\n{markdown}")
        stdout.print(markdown, markup=False, highlight=False, soft_wrap=True)
