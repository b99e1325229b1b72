"""Output of the command line: progress bars and messages on stderr, results on stdout."""

import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dlsr.files import without_infinity

if TYPE_CHECKING:
    from dlsr.audit import Audit
    from dlsr.baselines import DetectorInfo
    from dlsr.calibration.drift import DriftReport, ReferenceTest
    from dlsr.calibration.two_samples import PropertyTest
    from dlsr.evaluation import Report
    from dlsr.explaining.groups import Group
    from dlsr.images.sources import ImageDataset
    from dlsr.model import FitSummary
    from dlsr.results import TextWriter
    from dlsr.training.log import EpochLog

NAMES_SHOWN = 20

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False)


class ProgressBars:
    """Makes progress bars; each method returns the callbacks that advance its bar."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def images(self, name: str, total: int) -> Callable[[int], None]:
        """A bar for `total` images, with images per second; call it with the number of images just done."""
        task = self._bars.add_task(name, total=total, speed="")

        def advance(count: int) -> None:
            self._bars.advance(task, count)
            speed = self._bars.tasks[self._bars.task_ids.index(task)].speed
            self._bars.update(task, speed=f"{speed:.0f} images/s" if speed else "")

        return advance

    def parts(self, name: str) -> tuple[Callable[[int, int], None], Callable[[object], None]]:
        """A bar for the parts of a run on a cluster: callbacks `on_plan(parts, done_before)` and `on_part(part)`."""
        task: list[TaskID] = []

        def on_plan(parts: int, before: int) -> None:
            task.append(self._bars.add_task(name, total=parts, completed=before, speed=""))

        return on_plan, lambda _: self._bars.advance(task[0])

    def epochs(self, name: str) -> Callable[["EpochLog", int], None]:
        """A bar for epochs of training, with the losses: callback `on_epoch(log, most_epochs)`."""
        task: list[TaskID] = []

        def advance(entry: "EpochLog", total: int) -> None:
            if not task:
                task.append(self._bars.add_task(name, total=total, speed=""))
            loss = f"loss {entry.train_loss:.4f}, held out {entry.validation_loss:.4f}"
            self._bars.update(task[0], completed=entry.epoch, speed=loss)

        return advance


def printable(text: str) -> str:
    r"""A text for the terminal, in one line. Escape codes, which names of files can hold, are written as `\x1b`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Terminal:
    """Stdout that is a terminal. Only line breaks of what is written have an effect."""

    def write(self, text: str) -> int:
        return sys.stdout.write("\n".join(map(printable, text.replace("\r\n", "\n").split("\n"))))


def results_file() -> "TextWriter":
    """Where results are printed: stdout, without escape codes if it is a terminal."""
    return _Terminal() if sys.stdout.isatty() else sys.stdout


@contextmanager
def progress_bars(quiet: bool) -> Iterator[ProgressBars]:
    """Progress bars on stderr; none if quiet, or if stderr is not a terminal."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=stderr,
        disable=quiet or not stderr.is_terminal,
    )
    with bars:
        yield ProgressBars(bars)


def print_message(message: str, quiet: bool) -> None:
    """Print a line for people on stderr."""
    if not quiet:
        stderr.print(printable(message), markup=False)


def print_json(value: Any) -> None:
    """Print a result as JSON on stdout."""
    results_file().write(json.dumps(without_infinity(value), indent=2, ensure_ascii=False) + "\n")


def print_skipped(images: "ImageDataset", quiet: bool) -> None:
    """Say how many files and linked folders of a source are left out, if any are."""
    if images.skipped is not None:
        print_message(f"skipped {images.skipped}", quiet)


def skipped_printer(quiet: bool) -> Callable[[list[str]], None]:
    """A callback that says how many files are left out, from their names."""
    from dlsr.images.sources import ImageDataset  # noqa: PLC0415

    return lambda names: print_skipped(ImageDataset([], names), quiet)


def print_unreadable(unreadable: Collection[tuple[str, str]], total: int) -> None:
    """Name the images that could not be read, with reasons. Printed even if quiet: nothing is dropped silently.

    Args:
        unreadable: names and reasons. Two images may have one name.
        total: number of images, with the unreadable ones.
    """
    if not unreadable:
        return
    stderr.print(f"{len(unreadable)} of {total} images could not be read:", markup=False)
    for name, reason in islice(unreadable, NAMES_SHOWN):
        stderr.print(f"  {printable(name)}: {printable(reason)}", markup=False)
    if len(unreadable) > NAMES_SHOWN:
        stderr.print(f"  and {len(unreadable) - NAMES_SHOWN} more")


@contextmanager
def no_unreadable_warnings() -> Iterator[None]:
    """Silence the library's warning of unreadable images, for commands that print them (`print_unreadable`)."""
    from dlsr.images.sources import UnreadableImagesWarning  # noqa: PLC0415

    with warnings.catch_warnings(action="ignore", category=UnreadableImagesWarning):
        yield


@contextmanager
def unreadable_warnings_as_lines() -> Iterator[None]:
    """Print the library's warning of unreadable images as a line, for commands that do not have their names."""
    from dlsr.images.sources import UnreadableImagesWarning  # noqa: PLC0415

    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, UnreadableImagesWarning):
            stderr.print(printable(str(message)), markup=False)
        else:
            others(message, category, filename, lineno, file, line)

    with warnings.catch_warnings(action="always", category=UnreadableImagesWarning):
        warnings.showwarning = show
        yield


def print_doubts(summary: "FitSummary", quiet: bool) -> None:
    """Say if the images do not look exchangeable, which the false-alarm rate assumes."""
    if summary.check.fired:
        print_message(f"the false-alarm rate may not hold: {summary.check.message}", quiet)


def print_evaluation(report: "Report") -> None:
    """Print an evaluation as a table."""
    title = f"{report.score} ({report.preset}), {report.protocol} protocol, {report.id_images} ID images"
    table = Table(
        title=Text(title, style="table.title"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("OOD dataset", min_width=12, overflow="fold")
    table.add_column("images", justify="right")
    columns = {
        "auroc": "AUROC",
        "aupr_ood": "AUPR-OOD",
        "aupr_id": "AUPR-ID",
        "fpr95_id_positive": "FPR95 ID+",
        "fpr95_ood_positive": "FPR95 OOD+",
    }
    for name in columns.values():
        table.add_column(name, justify="right", no_wrap=True)
    for dataset in report.datasets:
        cells = [f"{100 * dataset.mean[key]:.2f}" for key in columns]
        if len(report.seeds) > 1:
            cells[0] += f" ± {100 * dataset.std['auroc']:.2f}"
        table.add_row(Text(printable(dataset.name)), str(dataset.images), *cells)
    table.add_section()
    table.add_row("average", "", f"{100 * report.average_auroc:.2f}")
    stdout.print(table)
    stdout.print(
        f"{100 * report.false_alarms:.1f} % of the ID images are called OOD, at a false-alarm rate of "
        f"{100 * report.false_alarm_rate:g} %."
    )


def print_audit(found: "Audit") -> None:
    """Print an audit as a table of faults, each with the name of an image."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("fault", no_wrap=True)
    for column in ("images", "sets"):
        table.add_column(column, justify="right")
    table.add_column("such as", overflow="fold")
    for kind, positions in found.faults.items():
        sets = str(len(found.sets[kind])) if kind in found.sets else ""
        example = printable(found.names[positions[0]]) if positions else ""
        table.add_row(kind, str(len(positions)), sets, Text(example))
    stdout.print(table)
    first = [f"{printable(found.names[i])} ({found.deviations[i]:.1f})" for i in found.least_like_the_rest(3)]
    if first:
        line = f"least like the rest, with standard deviations above the median: {', '.join(first)}"
        stdout.print(line, markup=False, soft_wrap=True)
    for note in found.notes:
        stdout.print(note, markup=False, soft_wrap=True)
    stdout.print(f"{found.faulty()} of {len(found.names)} images have a fault", soft_wrap=True)


def print_drift(report: "DriftReport", first: str | None, typical: Sequence[str] = ()) -> None:
    """Print a drift test.

    Args:
        report: the test.
        first: names the image at which the change began.
        typical: name the images that are most typical of a change of the features.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("images", "mean p-value", "Kolmogorov-Smirnov p"):
        table.add_column(name, justify="right")
    for window in report.windows:
        images = f"{window.start}..{window.start + window.images - 1}"
        table.add_row(images, f"{window.mean_p_value:.3f}", f"{window.p_value:.2g}")
    stdout.print(table)
    if report.stream is not None:
        stdout.print(f"test martingale: maximum 10^{report.stream.log10_capital:.1f}")
    others = "the calibration images"
    if report.reference is not None:
        _print_causes(report.reference, "scores" in report.drifted_in, typical)
        others += f" and the {report.reference.reference_images} reference images"
    if not report.drifted:
        stdout.print(f"no drift: {report.images} images match {others} (alpha {report.alpha:g})", soft_wrap=True)
    else:
        since = f", since about {first}" if first is not None else ""
        where = f" in {', '.join(report.drifted_in)}" if report.reference is not None else ""
        line = f"drift: {report.images} images differ from {others}{where} (alpha {report.alpha:g}){since}"
        stdout.print(printable(line), markup=False, soft_wrap=True)
    if report.reference is None:
        stdout.print("to see what changed, give --reference FOLDER with earlier images")


def _print_causes(test: "ReferenceTest", scores_moved: bool, typical: Sequence[str]) -> None:
    lines = [f"scores {'moved' if scores_moved else 'did not move'}"]
    lines.append(f"features {'moved' if test.features_moved else 'did not move'} (p = {test.features.p_value:.2g})")
    if test.features_moved:
        lines.append(f"  most typical of the change: {', '.join(typical)}")
    lines += [f"{moved.name} moved: {_change_of(moved)} (p = {moved.p_value:.2g})" for moved in test.moved]
    still = [result.name for result in test.properties if result.p_value > test.level]
    if still:
        lines.append(f"did not move: {', '.join(still)}")
    for line in lines:
        stdout.print(printable(line), markup=False, soft_wrap=True)


def _change_of(test: "PropertyTest") -> str:
    """What a property was before, and what it is now: of equal medians, the shares above the most telling value."""
    before, after, widest = _shown(test.before), _shown(test.after), test.widest
    if widest is not None and before == after:
        earlier, later = 100 * widest.before_above, 100 * widest.after_above
        return f"{earlier:.3g} % above {_number(widest.value)} before, {later:.3g} % now"
    return f"{'' if widest is None else 'median '}{before} before, {after} now"


def _shown(value: float | Mapping[str, float]) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{100 * share:.3g} % {name}" for name, share in value.items() if share)
    return _number(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def print_groups(groups: Sequence["Group"]) -> None:
    """Print the groups of refused images as a table on stderr."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("group")
    table.add_column("images", justify="right")
    table.add_column("its images share", overflow="fold")
    for group in groups:
        table.add_row(group.name, str(len(group.members)), Text(printable(", ".join(group.shared))))
    stderr.print(table)


def print_speed(measured: Mapping[str, Any]) -> None:
    """Print the result of `dlsr bench speed` as tables."""
    parts = measured["parts"]
    table = Table(title="core-milliseconds an image", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in (*parts["core_ms"], "sum", "end to end", "share"):
        table.add_column(name, justify="right")
    numbers = [*parts["core_ms"].values(), parts["sum"], parts["end_to_end"]]
    table.add_row(*(f"{number:.2f}" for number in numbers), f"{parts['share']:.2f}")
    stdout.print(table)
    for name, rate in measured["others"].items():
        cost = rate if isinstance(rate, str) else f"{1000 * parts['cores'] / rate:.2f} core-milliseconds an image"
        stdout.print(f"{name}: {cost}", markup=False)
    table = Table(title="images per second", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("backend", "batch", "end to end", "encoder alone", "ratio", "first score", "peak memory"):
        table.add_column(name, justify="left" if name == "backend" else "right")
    for row in measured["scoring"]:
        for batch, rate in row["end_to_end"].items():
            table.add_row(
                row["backend"],
                batch,
                f"{rate:.0f}",
                f"{row['encoder_alone'][batch]:.0f}",
                f"{row['end_to_end_over_encoder'][batch]:.2f}",
                f"{row['seconds_to_first_score']:.1f} s",
                f"{row['peak_memory_bytes'] / 2**20:.0f} MiB",
            )
    stdout.print(table)
    eager = measured["eager_default_layout_images_per_second"]
    stdout.print(f"eager PyTorch in its default layout: {eager:.0f} images/s for the encoder alone")
    for row in measured["training"]:
        stdout.print(
            f"training in {row['precision']}: {row['gflops']:.0f} GFLOP/s, {100 * row['share_of_products']:.0f} % of "
            "bare matrix products of the same shapes"
        )


def print_detectors(detectors: "Mapping[str, DetectorInfo]") -> None:
    """Print the registry of detectors as a table."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("detector", "kind", "paper", "needs", "cost at full size"):
        table.add_column(column, overflow="fold")
    for info in detectors.values():
        needs = [name for name, needed in (("labels", info.needs_labels), ("GPU", info.needs_gpu)) if needed]
        table.add_row(info.name, info.kind, info.paper, ", ".join(needs), info.cost)
    stdout.print(table)
