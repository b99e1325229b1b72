"""Time and memory of a fit to features that do not fit in memory.

    python benchmarks/large.py --work /tmp/large --gigabytes 30 --output docs/large.json

Writes features, memory-maps them, and fits `Detector` to them for one epoch. Memory is that of the process itself
(anonymous pages), without the pages of the file that the system caches while it has room.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from dlsr import Detector
from dlsr.artifact import installed_versions
from dlsr.files import write_json

COLUMNS = 512
CHUNK = 100_000


def main(
    work: Annotated[Path, typer.Option(help="Folder for the features, which are deleted at the end.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    gigabytes: float = 30.0,
) -> None:
    rows = int(gigabytes * 1e9 / 4 / COLUMNS)
    table = written(work / "z0.npy", rows)
    peak = PeakMemory()
    before = peak.now()
    start = time.perf_counter()
    epochs: list[float] = []
    with peak:
        detector = Detector(score="residual", epochs=1, false_alarm_rate=0.01).fit_features(
            table, on_epoch=lambda entry, total: epochs.append(time.perf_counter() - start)
        )
    seconds = time.perf_counter() - start
    (work / "z0.npy").unlink()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    content = {
        "command": "python benchmarks/large.py " + " ".join(sys.argv[1:]),
        "rows": rows,
        "gigabytes_of_features": rows * COLUMNS * 4 / 1e9,
        "gigabytes_of_the_machine": total / 1e9,
        "gigabytes_held_before": before / 1e9,
        "gigabytes_held_at_most": peak.most / 1e9,
        "seconds": seconds,
        "seconds_until_the_epoch_was_done": epochs[0],
        "training_images": detector.fit_summary_.training_images,
        "validation_loss": detector.fit_summary_.log[0].validation_loss,
        "versions": installed_versions(),
    }
    write_json(output, content)
    print(json.dumps(content, indent=1))


def written(path: Path, rows: int) -> NDArray[np.float32]:
    """Memory-mapped features, correlated as those of an encoder are."""
    random = np.random.default_rng(0)
    mixing = random.standard_normal((64, COLUMNS), dtype=np.float32)
    few = np.tanh(random.standard_normal((CHUNK, 64), dtype=np.float32)) @ mixing
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.lib.format.open_memmap(path, "w+", np.float32, (rows, COLUMNS))
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        noise = random.standard_normal((count, COLUMNS), dtype=np.float32)
        table[start : start + count] = few[random.permutation(CHUNK)[:count]] + noise
    table.flush()
    opened: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return opened


class PeakMemory:
    """The peak of this process's anonymous memory, sampled ten times a second."""

    most = 0

    def __enter__(self) -> None:
        self._done = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._watching.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, self.now())

    @staticmethod
    def now() -> int:
        """Anonymous memory, in bytes."""
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


if __name__ == "__main__":
    typer.run(main)
