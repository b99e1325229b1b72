"""What the command line shows: progress on stderr while it is a terminal, results on stdout."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from dlsr.baselines import DetectorInfo
    from dlsr.calibration.drift import DriftReport
    from dlsr.evaluation import Report
    from dlsr.training.loop import EpochLog

NAMES_SHOWN = 20

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False)


class Progresses:
    """Makes progress bars with images per second."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def images(self, name: str, total: int) -> Callable[[int], None]:
        """A bar for `total` images; returns what advances it."""
        task = self._bars.add_task(name, total=total, speed="")

        def advance(count: int) -> None:
            self._bars.advance(task, count)
            speed = self._bars.tasks[self._index(task)].speed
            self._bars.update(task, speed=f"{speed:.0f} images/s" if speed else "")

        return advance

    def parts(self, name: str) -> tuple[Callable[[int, int], None], Callable[[object], None]]:
        """A bar for the parts of a run: what is told how many there are, and are done; and what is told of each."""
        task: list[TaskID] = []

        def on_plan(parts: int, before: int) -> None:
            task.append(self._bars.add_task(name, total=parts, completed=before, speed=""))

        return on_plan, lambda _: self._bars.advance(task[0])

    def epochs(self, name: str) -> Callable[["EpochLog", int], None]:
        """A bar for epochs of training."""
        task: list[TaskID] = []

        def advance(entry: "EpochLog", total: int) -> None:
            if not task:
                task.append(self._bars.add_task(name, total=total, speed=""))
            loss = f"loss {entry.train_loss:.4f}, held out {entry.validation_loss:.4f}"
            self._bars.update(task[0], completed=entry.epoch, speed=loss)

        return advance

    def _index(self, task: TaskID) -> int:
        return self._bars.task_ids.index(task)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progresses]:
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
        yield Progresses(bars)


def say(message: str, quiet: bool) -> None:
    """A line for people, on stderr."""
    if not quiet:
        stderr.print(message, markup=False)


def say_unreadable(unreadable: Mapping[str, str], of: int) -> None:
    """Name what could not be read, and why. Said even when quiet, for nothing is dropped silently."""
    if not unreadable:
        return
    stderr.print(f"{len(unreadable)} of {of} images could not be read:", markup=False)
    for name, reason in list(unreadable.items())[:NAMES_SHOWN]:
        stderr.print(f"  {name}: {reason}", markup=False)
    if len(unreadable) > NAMES_SHOWN:
        stderr.print(f"  and {len(unreadable) - NAMES_SHOWN} more")


def show_report(report: "Report") -> None:
    """An evaluation as a table."""
    title = f"{report.score} ({report.preset}), {report.protocol} protocol, {report.id_images} ID images"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("OOD set", min_width=12, overflow="fold")
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
    many = len(report.seeds) > 1
    for one in report.sets:
        cells = [f"{100 * one.mean[key]:.2f}" for key in columns]
        if many:
            cells[0] += f" ± {100 * one.std['auroc']:.2f}"
        table.add_row(one.name, str(one.images), *cells)
    table.add_section()
    table.add_row("average", "", f"{100 * report.average_auroc:.2f}")
    stdout.print(table)
    stdout.print(
        f"{100 * report.false_alarms:.1f} % of the ID images are called OOD, at a false-alarm rate of "
        f"{100 * report.false_alarm_rate:g} %."
    )


def show_drift(told: "DriftReport", first: str | None) -> None:
    """What `dlsr drift` found."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("images", "mean p-value", "Kolmogorov-Smirnov p"):
        table.add_column(name, justify="right")
    for one in told.windows:
        table.add_row(f"{one.start}..{one.start + one.images - 1}", f"{one.mean_p_value:.3f}", f"{one.p_value:.2g}")
    stdout.print(table)
    if told.stream is not None:
        stdout.print(f"test martingale: 10^{told.stream.log10_capital:.1f} at most")
    if not told.drifted:
        stdout.print(f"no drift: {told.images} images look as the calibration images do (alpha {told.alpha:g})")
        return
    since = f", since about {first}" if first is not None else ""
    stdout.print(f"drift: {told.images} images do not look as the calibration images do (alpha {told.alpha:g}){since}")


def show_speed(measured: Mapping[str, Any]) -> None:
    """What `dlsr bench speed` measured, as a table."""
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


def show_detectors(detectors: "Mapping[str, DetectorInfo]") -> None:
    """The registry as a table."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("detector", "kind", "paper", "needs", "cost at full size"):
        table.add_column(column, overflow="fold")
    for info in detectors.values():
        needs = [what for what, needed in (("labels", info.needs_labels), ("GPU", info.needs_gpu)) if needed]
        table.add_row(info.name, info.kind, info.paper, ", ".join(needs), info.cost)
    stdout.print(table)


def quiet_library() -> Any:
    """The command names unreadable images itself, so the library's warning of them would be the second."""
    import warnings  # noqa: PLC0415

    from dlsr.images.sources import UnreadableImagesWarning  # noqa: PLC0415

    return warnings.catch_warnings(action="ignore", category=UnreadableImagesWarning)


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
