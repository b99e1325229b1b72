"""Watching: list, score, write, and again, until it is stopped or everything is done."""

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dlsr.errors import InputError
from dlsr.images.names import in_utf8
from dlsr.images.sources import ImageDataset
from dlsr.results import Result
from dlsr.watch.arrivals import MOST_READY, Arrival, Arrivals
from dlsr.watch.drifting import DriftVerdict, RunningDrift
from dlsr.watch.journal import Journal
from dlsr.watch.webhook import Delivery

if TYPE_CHECKING:
    from dlsr.fitted_detector import FittedDetector

LISTING_SHARE = 0.2
"""Listing the folder takes at most this share of the time: in a huge folder it is done less often."""


@dataclass(frozen=True)
class WatchSettings:
    """How a folder is watched. Times are in seconds."""

    interval: float = 2.0
    """Between two listings of the folder."""
    settle: float = 2.0
    """A file is complete if its size and time have not changed for so long."""
    patience: float = 10.0
    """A file that cannot be read is tried again for so long before it gets a row with the error."""
    window: int = 500
    """Images in the running test of drift."""
    alpha: float = 0.001
    """Probability of a false alarm of each test of drift."""
    once: bool = False
    """End when everything that is there is done."""


def check_folder(folder: Path) -> None:
    """Raise InputError if there is no such folder to watch."""
    if not folder.is_dir():
        raise InputError(f"there is no folder '{folder}' to watch; check the path")


class Stop:
    """Ends a `Watcher.run`. It may be set by a signal handler, where setting a `threading.Event` may wait for ever."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Ask for the end."""
        self._calls.put(None)

    def is_set(self) -> bool:
        """Whether the end was asked for."""
        return not self._calls.empty()

    def wait(self, seconds: float) -> None:
        """Return when the end is asked for, or after this time."""
        with suppress(queue.Empty):
            self._calls.put(self._calls.get(timeout=seconds))


@dataclass
class Watched:
    """What was done."""

    images: int = 0
    """Rows written."""
    ood: int = 0
    unreadable: int = 0
    waiting: int = 0
    """Files that are left for the next time, since they are still being written."""
    drift: DriftVerdict | None = None
    """The last verdict; None before there were enough images."""


class Watcher:
    """Scores the images of a folder as they arrive.

    Args:
        detector: scores the images.
        model: its id, which is written with each row. Scores of other models are left out of the test of drift.
        folder: to watch, with its subfolders.
        journal: where the rows go; what it has is not scored again.
        settings: how to watch.
        delivery: posts the rows, if they are to be posted.
        tell: callback for a line when something needs attention, and when it no longer does.
        on_rows: callback for results just written, several at once if several images arrived.

    Raises:
        InputError: if the folder does not exist.
        SettingsError: for a window or an alpha that cannot be.
    """

    def __init__(
        self,
        detector: "FittedDetector",
        model: str,
        folder: Path,
        journal: Journal,
        settings: WatchSettings,
        *,
        delivery: Delivery | None = None,
        tell: Callable[[str], None] = lambda _: None,
        on_rows: Callable[[Sequence[Result]], None] = lambda _: None,
    ) -> None:
        check_folder(folder)
        calibration = detector.calibration_
        self._drift = RunningDrift(
            calibration.scores,
            calibration.groups,
            window=settings.window,
            alpha=settings.alpha,
            seed=detector.settings_.seed,
        )
        self._drift.restore(score for scored_by, score in journal.recent if scored_by == model)
        self._detector, self._model, self._folder, self._journal = detector, model, folder, journal
        self._settings, self._delivery, self._tell, self._on_rows = settings, delivery, tell, on_rows
        self._arrivals = Arrivals(folder, journal.done, settings.settle)
        self._problems: dict[str, str] = {}
        self._gone: str | None = None
        self._drifted = self._drift.verdict is not None and self._drift.verdict.drifted
        self.watched = Watched(drift=self._drift.verdict)

    def run(self, stop: Stop) -> Watched:
        """Watch until `stop` is set, or with `once` until everything is done.

        Raises:
            OutputError: if rows cannot be written.
            InputError: with `once`, if the folder is gone.
        """
        self._hand_over()
        worked = time.monotonic()
        while not stop.is_set():
            start = time.monotonic()
            ready = self._listed()
            listing = time.monotonic() - start
            if self._score(ready, stop):
                worked = time.monotonic()
            self.watched.waiting = self._arrivals.waiting
            idle = time.monotonic() - worked
            if self._settings.once and (
                not self._arrivals.waiting or idle > self._settings.settle + self._settings.patience
            ):
                break
            if len(ready) == MOST_READY:
                continue
            pause = self._settings.settle / 2 if self._settings.once else self._settings.interval
            stop.wait(max(pause, listing / LISTING_SHARE))
        return self.watched

    def _listed(self) -> list[Arrival]:
        try:
            ready = self._arrivals.ready()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if self._settings.once:
                raise InputError(f"'{self._folder}' cannot be listed any more: {reason}; run it again") from error
            if self._gone is None:
                self._tell(f"{self._folder} cannot be listed ({reason}); waiting for it to come back")
            self._gone = reason
            return []
        if self._gone is not None:
            self._gone = None
            self._tell(f"{self._folder} is back")
        for path, reason in self._arrivals.problems.items():
            if path not in self._problems:
                self._tell(f"{path} cannot be looked at: {reason}")
        self._problems = self._arrivals.problems
        return ready

    def _score(self, arrivals: Sequence[Arrival], stop: Stop) -> int:
        """Score files and write their rows. Returns the number of rows."""
        if not arrivals:
            return 0
        rows: list[Result] = []
        dataset = ImageDataset([arrival.item for arrival in arrivals])
        with closing(self._detector.results(dataset)) as results:
            for arrival, result in zip(arrivals, results, strict=True):
                if stop.is_set():
                    break
                if result.error is None or self._is_final(arrival):
                    self._write(arrival, result)
                    rows.append(result)
        if rows:
            self._hand_over()
            self._on_rows(rows)
        return len(rows)

    def _is_final(self, arrival: Arrival) -> bool:
        """Whether a file that cannot be read gets its row now. It may be incomplete, or out of reach for a while."""
        return time.monotonic() - arrival.since >= self._settings.patience and arrival.is_there()

    def _write(self, arrival: Arrival, result: Result) -> None:
        if result.score is not None:
            self._drift.add(result.score)
        verdict = self._drift.verdict
        self._journal.append(
            {
                **result.row(),
                "drift": None if verdict is None else verdict.drifted,
                "scored": _utc(time.time()),
                "modified": _utc(arrival.modified_ns / 1e9),
                "size": arrival.size,
                "model": self._model,
                "id": arrival.id.hex(),
            }
        )
        self.watched.images += 1
        self.watched.ood += bool(result.is_ood)
        self.watched.unreadable += result.error is not None
        self.watched.drift = verdict
        if result.error is not None:
            self._tell(f"{in_utf8(arrival.path)} cannot be read: {result.error}")
        if verdict is not None and verdict.drifted != self._drifted:
            self._drifted = verdict.drifted
            differ = "differ from" if verdict.drifted else "match"
            self._tell(
                f"{'drift' if verdict.drifted else 'no drift any more'}: the last {verdict.images} images {differ} the "
                f"calibration images (p = {verdict.p_value:.2g}, alpha {self._settings.alpha:g})"
            )

    def _hand_over(self) -> None:
        """Have the rows on the disk, and let them be posted."""
        self._journal.sync()
        if self._delivery is not None:
            self._delivery.written(self._journal.size)


def _utc(seconds: float) -> str | None:
    """A time as ISO 8601; None if it lies outside the years 1 to 9999, which file systems can state."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None
