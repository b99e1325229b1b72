"""The commands below `dlsr bench`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dlsr.cli.console import say, show_detectors, show_speed, stdout
from dlsr.cli.options import (
    DecodingName,
    NoStore,
    ProtocolName,
    Quiet,
    Store,
    Weights,
    Workers,
    named_sets,
    numbers,
    store_of,
)
from dlsr.errors import SettingsError

REDUCED_EPOCHS = 5
REDUCED_IMAGES = 10_000
"""Of the paper's network, for figures with --reduced."""

bench_app = typer.Typer(no_args_is_help=False, invoke_without_command=True, help="Measure.")

DataRoot = Annotated[Path | None, typer.Option(help="Folder with the benchmark sets, each a folder or tar.")]
SetPlaces = Annotated[list[str] | None, typer.Option("--set", help="Where one set is, NAME=PATH. Repeatable.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch sets by torchvision or from the Hugging Face hub.")]
Detectors = Annotated[str | None, typer.Option(help="Names of `dlsr bench --list`, with commas between them, or all.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs with different seeds.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many images of each test set, at random.")]
TrainLimit = Annotated[int | None, typer.Option(min=1, help="At most so many training images, at random.")]
Reduced = Annotated[bool, typer.Option("--reduced", help="Sizes that a laptop fits in minutes.")]
Encoder = Annotated[str | None, typer.Option(help="Encoder preset, or a network of timm.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs of the paper's network, fewer than its 150.")]
Protocol = Annotated[ProtocolName, typer.Option(help="native: as is. matched: resized and compressed alike first.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the report, pictures and finished runs.")]


@bench_app.callback()
def bench(
    context: typer.Context,
    listed: Annotated[bool, typer.Option("--list", help="Show all detectors, their papers, needs and cost.")] = False,
) -> None:
    """Measure speed, compare detectors, reproduce the paper's tables and figures."""
    if listed:
        from dlsr.baselines import DETECTORS  # noqa: PLC0415

        show_detectors(DETECTORS)
    elif context.invoked_subcommand is None:
        stdout.print(context.get_help(), markup=False, highlight=False)


@bench_app.command()
def compare(
    train: Annotated[
        Path, typer.Option("--id", help="ID images to fit to; for detectors that need labels, in folders.")
    ],
    test: Annotated[Path, typer.Option("--id-test", help="Other ID images to measure on.")],
    ood: Annotated[list[str], typer.Option("--ood", help="An OOD set, NAME=FOLDER or NAME=TAR. Repeatable.")],
    output: Folder,
    detectors: Detectors = None,
    encoder: Encoder = None,
    weights: Weights = None,
    protocol: Protocol = ProtocolName.NATIVE,
    seeds: Seeds = 1,
    limit: Limit = None,
    train_limit: TrainLimit = None,
    reduced: Reduced = False,
    store: Store = None,
    no_store: NoStore = False,
    quiet: Quiet = False,
) -> None:
    """Compare detectors on images of yours."""
    from dlsr.bench.compare import Sets, write_failures  # noqa: PLC0415
    from dlsr.bench.compare import compare as run  # noqa: PLC0415
    from dlsr.bench.datasets import labels_of  # noqa: PLC0415
    from dlsr.bench.suites import ALSO  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415

    found = open_images(train)
    outside = {name: open_images(path) for name, path in named_sets(ood).items()}
    sets = Sets(found, labels_of(found), open_images(test), outside)
    names = detectors or ",".join(ALSO)
    settings = _settings(names, encoder, weights, protocol, seeds, limit, train_limit, reduced)
    report = run(sets, settings, output / "runs", store=store_of(store, no_store), said=lambda what: say(what, quiet))
    _write(output, "compare", report, _comparison_markdown(report))
    write_failures(output / "runs", sets, settings, report, output / "failures.png")


def _suite(table: str) -> Callable[..., None]:
    def command(
        output: Folder,
        data_root: DataRoot = None,
        places: SetPlaces = None,
        download: Download = False,
        id: Annotated[str | None, typer.Option("--id", help="ID sets by name, instead of the paper's.")] = None,
        ood: Annotated[str | None, typer.Option("--ood", help="OOD sets by name, likewise.")] = None,
        detectors: Detectors = None,
        encoder: Encoder = None,
        weights: Weights = None,
        protocol: Protocol = ProtocolName.NATIVE,
        seeds: Seeds = 1,
        limit: Limit = None,
        train_limit: TrainLimit = None,
        reduced: Reduced = False,
        store: Store = None,
        no_store: NoStore = False,
        quiet: Quiet = False,
    ) -> None:
        from dlsr.bench.render import suite_tables  # noqa: PLC0415
        from dlsr.bench.suites import Where, run_table  # noqa: PLC0415

        report = run_table(
            table,
            Where(data_root, named_sets(places or [], "--set"), download),
            _settings(detectors, encoder, weights, protocol, seeds, limit, train_limit, reduced),
            output / "runs",
            ids=_names(id),
            ood=_names(ood),
            store=store_of(store, no_store),
            said=lambda what: say(what, quiet),
        )
        _write(output, table, report, suite_tables(report))

    command.__doc__ = f"Reproduce {table[:5]} {table[5:]} of the paper."
    return command


def _figure(name: str) -> Callable[..., None]:
    def command(
        output: Folder,
        data_root: DataRoot = None,
        places: SetPlaces = None,
        download: Download = False,
        id: Annotated[str, typer.Option("--id", help="ID set by name.")] = "cifar10",
        ood: Annotated[str | None, typer.Option("--ood", help="OOD sets by name; the paper's if not given.")] = None,
        encoder: Encoder = None,
        weights: Weights = None,
        epochs: Epochs = None,
        protocol: Protocol = ProtocolName.NATIVE,
        limit: Limit = None,
        train_limit: TrainLimit = None,
        reduced: Reduced = False,
        store: Store = None,
        no_store: NoStore = False,
        quiet: Quiet = False,
    ) -> None:
        from dlsr.bench.suites import SIX, FigureRun, Where, draw, open_sets  # noqa: PLC0415

        where = Where(data_root, named_sets(places or [], "--set"), download)
        sets, missing = open_sets(id, _names(ood) or SIX, where)
        for why in missing.values():
            say(why, quiet)
        network = encoder or ("resnet50" if name in ("fig6", "fig7") else None)
        if reduced and name != "fig8":  # whose detector has reduced settings of its own
            epochs, train_limit = epochs or REDUCED_EPOCHS, train_limit or REDUCED_IMAGES
        run = FigureRun(
            sets,
            _settings(None, network, weights, protocol, 1, limit, train_limit, reduced),
            output / "runs",
            epochs,
            store_of(store, no_store),
            lambda what: say(what, quiet),
        )
        _write(output, name, {"id": id, "epochs": epochs, "missing": missing, **draw(name, run, output)}, None)

    command.__doc__ = {"ablation": "Table 4, fig. 4 and fig. 5.", "table4": "Reproduce table 4 of the paper."}.get(
        name, f"Draw fig. {name[3:]} of the paper."
    )
    return command


# As `dlsr.bench.suites` has them; not imported, for it is slow.
for _name in ("table1", "table2", "table3", "table5", "table6", "table7", "table8", "table9", "table10", "table11",
              "table12"):  # fmt: skip
    bench_app.command(_name)(_suite(_name))
for _name in ("fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "table4", "ablation"):
    bench_app.command(_name)(_figure(_name))


@bench_app.command()
def speed(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write; a picture lies beside it.")],
    images: Annotated[Path | None, typer.Option(help="Folder or tar; without it, photographs of scikit-learn.")] = None,
    backends: Annotated[str | None, typer.Option(help="Such as torch,openvino; all but compile if not given.")] = None,
    batch_sizes: Annotated[str, typer.Option(help="Images encoded at once.")] = "1,4,32",
    count: Annotated[int, typer.Option(min=1, help="Images a round.")] = 256,
    growth: Annotated[str, typer.Option(help="Numbers of images over which cost is watched.")] = "256,1024",
    vectors: Annotated[int, typer.Option(min=2, help="Feature vectors in the timed epoch.")] = 8192,
    encoder: Annotated[str, typer.Option(help="Encoder preset, or a network of timm.")] = "efficientnet_lite0",
    preset: Annotated[str, typer.Option(help="Whose network and training are timed.")] = "default",
    decoding: DecodingName = DecodingName.FULL,
    weights: Weights = None,
    workers: Workers = 2,
    quiet: Quiet = False,
) -> None:
    """Images per second of each backend against its encoder alone, memory, and training against matrix products."""
    from dlsr.bench.speed import SpeedSettings, default_backends, measure_speed  # noqa: PLC0415
    from dlsr.reports.evaluation import write_json  # noqa: PLC0415
    from dlsr.reports.plots import save_speed  # noqa: PLC0415

    settings = SpeedSettings(
        backends=_backends(backends) if backends else default_backends(),
        batch_sizes=numbers(batch_sizes, "--batch-sizes") or (),
        images=count,
        growth=numbers(growth, "--growth") or (),
        vectors=vectors,
        encoder=encoder,
        weights=weights,
        preset=preset,
        decoding=decoding.value,
        workers=workers,
    )
    measured = measure_speed(settings, images, lambda what: say(f"measuring {what}", quiet))
    write_json(output, {"command": _command(), **measured})
    save_speed(output.with_suffix(".png"), measured)
    show_speed(measured)


def _backends(text: str) -> Any:
    import torch  # noqa: PLC0415

    from dlsr.runtime.backends import choose_backend  # noqa: PLC0415

    names: list[Any] = text.split(",")
    return tuple(choose_backend(name, torch.device("cpu")) for name in names)


def _settings(
    detectors: str | None,
    encoder: str | None,
    weights: str | None,
    protocol: ProtocolName,
    seeds: int,
    limit: int | None,
    train_limit: int | None,
    reduced: bool,
) -> Any:
    from dlsr.baselines import DETECTORS  # noqa: PLC0415
    from dlsr.bench.compare import CompareSettings  # noqa: PLC0415

    chosen = tuple(DETECTORS) if detectors == "all" else _names(detectors)
    unknown = [name for name in chosen if name not in DETECTORS]
    if unknown:
        raise SettingsError(f"unknown detector '{unknown[0]}'; choose among {', '.join(DETECTORS)}")
    return CompareSettings(
        detectors=chosen,
        protocol=protocol.value,
        seeds=seeds,
        limit=limit,
        train_limit=train_limit,
        reduced=reduced,
        encoder=encoder or "efficientnet_lite0",
        weights=weights,
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _command() -> str:
    return "dlsr " + " ".join(sys.argv[1:])


def _comparison_markdown(report: dict[str, Any]) -> str:
    from dlsr.bench.render import METRICS, comparison_table, summary_table  # noqa: PLC0415

    parts = [f"Averages over the OOD sets, in %:\n\n{summary_table(report)}"]
    parts += [f"{title} in %:\n\n{comparison_table(report, metric)}" for metric, title in METRICS.items()]
    return "\n\n".join(parts) + "\n"


def _write(folder: Path, name: str, report: dict[str, Any], text: str | None) -> None:
    from dlsr.files import replacing  # noqa: PLC0415
    from dlsr.reports.evaluation import write_json  # noqa: PLC0415

    write_json(folder / f"{name}.json", {"command": _command(), **report})
    if text is not None:
        with replacing(folder / f"{name}.md") as temporary:
            temporary.write_text(f"`{_command()}`\n\n{text}")
        stdout.print(text, markup=False, highlight=False, soft_wrap=True)
