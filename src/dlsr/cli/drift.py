"""`dlsr drift`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlsr.cli.console import (
    ProgressBars,
    print_drift,
    print_json,
    print_message,
    print_skipped,
    print_unreadable,
    progress_bars,
)
from dlsr.cli.options import Every, Images, Json, Model, Quiet, Runtime, with_groups
from dlsr.errors import SettingsError
from dlsr.files import check_writable

if TYPE_CHECKING:
    from dlsr.calibration.two_samples import Sample
    from dlsr.fitted_detector import FittedDetector
    from dlsr.images.sources import ImageDataset

DRIFTED = 1
"""Exit status if the images are no longer in distribution."""
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
MOST_COMPARED = 2000
"""Images, and reference images, that are compared: so many are drawn at random from more."""

app = typer.Typer(add_completion=False)


@app.command()
@with_groups
def drift(
    model: Model,
    images: Images,
    reference: Annotated[
        Path | None,
        typer.Option(help="Earlier ID images, such as those of the fit. The test then also reports what changed."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Probability of an alarm on in-distribution images.")] = 0.01,
    window: Annotated[
        int | None, typer.Option(help="Test the scores of this many images at a time, in order. Default: all at once.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Also test the order of the images: sorted by name, as they arrived.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of the scores, and of what moved: a .png, .svg or .pdf file.")
    ] = None,
    every: Every = None,
    *,
    runtime: Runtime,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Test whether images, taken together, are still in distribution. Exit status 0: they are; 1: they are not."""
    import numpy as np  # noqa: PLC0415

    from dlsr.calibration.drift import check_settings  # noqa: PLC0415
    from dlsr.calibration.drift import drift as test_drift  # noqa: PLC0415
    from dlsr.images.sources import open_images  # noqa: PLC0415

    check_settings(alpha, window, reference is not None)
    if plot is not None:
        from dlsr.reports.drift import save_drift  # noqa: PLC0415

        if plot.suffix.lower() not in PLOT_SUFFIXES:
            raise SettingsError(
                f"cannot draw a '{plot.suffix}' file; end the name in one of {', '.join(PLOT_SUFFIXES)}"
            )
        check_writable(plot)
    detector = runtime.load(model)
    dataset, seed = open_images(images, every=every), detector.settings_.seed
    past = None if reference is None else open_images(reference)
    print_skipped(dataset, quiet)
    if past is not None:
        print_skipped(past, quiet)
    before = after = None
    with progress_bars(quiet) as bars:
        if past is not None:
            before = _compared(detector, past.sample(MOST_COMPARED, seed), "reference images", bars)
        results = list(detector.results(dataset, progress=bars.images("scoring", len(dataset))))
        if past is not None:
            after = _compared(detector, dataset.sample(MOST_COMPARED, seed), "images", bars)
    unreadable = [(result.path, result.error) for result in results if result.error is not None]
    print_unreadable(unreadable, len(dataset))
    if before is not None:
        print_unreadable(before.unreadable.items(), before.images)
    readable = [result for result in results if result.error is None]
    scores = np.array([result.score for result in readable])
    samples = (before.sample, after.sample) if before and after else None
    report = test_drift(
        scores,
        detector.calibration_scores_,
        alpha=alpha,
        window=window,
        stream=stream,
        groups=detector.calibration_.groups,
        samples=samples,
        seed=seed,
    )
    first = None if report.first_changed is None else readable[report.first_changed].path
    typical = [after.names[i] for i in report.reference.features.most_typical] if after and report.reference else []
    if as_json:
        paths: dict[str, Any] = {
            "first_changed_path": first,
            "most_typical_paths": typical,
            "unreadable": dict(unreadable),
        }
        print_json(asdict(report) | paths | {"reference_unreadable": before.unreadable if before else {}})
    else:
        print_drift(report, first, typical)
    if plot is not None:
        moved = [test.name for test in report.reference.moved] if report.reference else []
        save_drift(plot, scores, detector.calibration_scores_, samples, moved)
        print_message(f"wrote {plot}", quiet)
    raise typer.Exit(DRIFTED if report.drifted else 0)


@dataclass(frozen=True)
class _Compared:
    """Images that are compared with others."""

    sample: "Sample"
    names: list[str]
    """Of the images that could be read."""
    images: int
    """Number of all."""
    unreadable: dict[str, str]


def _compared(detector: "FittedDetector", images: "ImageDataset", name: str, bars: ProgressBars) -> _Compared:
    """Features and properties of images.

    Raises:
        NoImagesError: if none of them can be read.
    """
    from dlsr.calibration.two_samples import Sample  # noqa: PLC0415
    from dlsr.images.properties import measure  # noqa: PLC0415

    encoded = detector.extractor_.encode(images, progress=bars.images(f"encoding {name}", len(images)))
    encoded.check_readable(name)
    measured = measure(images, workers=detector.workers, progress=bars.images(f"measuring {name}", len(images)))
    names = [path for path, error in zip(encoded.names, encoded.errors, strict=True) if error is None]
    return _Compared(Sample(encoded.z0, measured.properties), names, len(images), encoded.unreadable)
