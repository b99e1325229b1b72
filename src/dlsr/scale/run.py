"""A run over the parts of a collection: its files, and the processing of one part, whatever schedules the tasks.

A run is a folder, local or at any fsspec URL. For scoring:

    run.json                   the collection, how it was split, and the model
    model/                     the model, for workers that cannot read its directory
    scores/part-000000.parquet results of the images that could be read
    errors/part-000000.parquet names of unreadable images, and why
    attempts/part-000000.json  only while a part is being processed

Each image is in `scores/` or in `errors/`, exactly once. A part is done if its file in `scores/` exists. That file is
written last and atomically, so a run that was stopped at any point resumes with the parts that are not done.
"""

import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dlsr.errors import ArtifactError, OutputError, one_line
from dlsr.files import remove_old, replacing, target_of
from dlsr.fitted_detector import FittedDetector
from dlsr.images.sources import ImageItem, failing_item
from dlsr.model_folder import MANIFEST, read_files
from dlsr.reports.tables import results_table
from dlsr.results import Result
from dlsr.scale.parts import Part, filesystem, is_local, items_of

SCHEMA = 1
CAREFUL_AFTER = 2
"""After this many attempts that killed the worker, a part is processed one image at a time, to find the cause."""


class Row(Protocol):
    """The outcome for one image."""

    @property
    def path(self) -> str:
        """Name of the image."""

    @property
    def error(self) -> str | None:
        """Why the image could not be read; None if it could."""


R = TypeVar("R", bound=Row)


class RunFolder:
    """The files of a run.

    Args:
        url: a local folder, or any fsspec URL.
        results: name of the subfolder for the results of the parts.
    """

    def __init__(self, url: str, results: str = "scores") -> None:
        self.url = url
        self._results = results
        self._fs, self._root = filesystem(url)

    @property
    def full_url(self) -> str:
        """The URL, valid in any working directory."""
        return str(self._fs.unstrip_protocol(self._root))

    def claim(self, about: Mapping[str, Any]) -> None:
        """Start a run, or resume the same run.

        Args:
            about: everything that must be equal for a run to be resumed.

        Raises:
            ArtifactError: if the folder holds another run, or a damaged one.
            OutputError: if it cannot be opened or written.
        """
        path = f"{self._root}/run.json"
        wanted = {"schema": SCHEMA, **about}
        try:
            exists = self._fs.exists(path)
        except Exception as error:  # each file system raises errors of its own
            raise OutputError(f"cannot open '{self.url}': {one_line(error)}; give another folder") from error
        if exists:
            try:
                found = json.loads(self._fs.cat_file(path))
            except ValueError as error:
                raise ArtifactError(f"'{self.url}/run.json' is damaged; delete it or give another folder") from error
            if found != wanted:
                differ = sorted(k for k in wanted.keys() | found.keys() if found.get(k) != wanted.get(k))
                raise ArtifactError(
                    f"'{self.url}' holds a run with another {', '.join(differ)}; delete it or give another folder"
                )
            return
        self._write("run.json", json.dumps(wanted, indent=2).encode())

    def put_model(self, folder: Path) -> None:
        """Copy a model directory into the run, unless it is there.

        Raises:
            ArtifactError: if the model directory cannot be read.
        """
        if not self._fs.exists(f"{self._root}/model/{MANIFEST}"):
            for name, content in read_files(folder).items():
                self._write(f"model/{name}", content)

    def load_model(self, **options: Any) -> FittedDetector:
        """Load the model that `put_model` copied; options as for `FittedDetector.load`."""
        with tempfile.TemporaryDirectory() as folder:
            for path in map(Path, self._fs.ls(f"{self._root}/model", detail=False)):
                if target_of(path) is None:
                    Path(folder, path.name).write_bytes(self._fs.cat_file(str(path)))
            return FittedDetector.load(folder, **options)

    def is_done(self, part: Part) -> bool:
        """Whether a part is done."""
        return bool(self._fs.exists(self._path(self._results, part, "parquet")))

    def done(self, parts: list[Part]) -> set[int]:
        """Indices of the parts that are done."""
        folder = f"{self._root}/{self._results}"
        names = {Path(path).name for path in self._fs.ls(folder, detail=False)} if self._fs.isdir(folder) else set()
        return {part.index for part in parts if f"part-{part.index:06}.parquet" in names}

    def finish(self, part: Part, table: Any, failed: list[Result]) -> None:
        """Write the results of a part.

        Args:
            part: becomes done.
            table: a `pyarrow.Table` of the images that could be read.
            failed: results of the images that could not be read; written first.
        """
        errors = self._name("errors", part, "parquet")
        if failed:
            self._write(errors, _parquet_bytes(results_table(failed)))
        elif self._fs.exists(f"{self._root}/{errors}"):
            self._fs.rm_file(f"{self._root}/{errors}")  # of an earlier attempt
        self._write(self._name(self._results, part, "parquet"), _parquet_bytes(table))
        if self._fs.exists(self._path("attempts", part, "json")):
            self._fs.rm_file(self._path("attempts", part, "json"))

    def table(self, part: Part) -> Any:
        """The table that `finish` wrote for a part that is done."""
        return self._read_table(self._path(self._results, part, "parquet"))

    def failed(self, part: Part) -> list[tuple[str, str]]:
        """Names of the images of a part that is done that could not be read, and why; names may repeat."""
        path = self._path("errors", part, "parquet")
        if not self._fs.exists(path):
            return []
        table = self._read_table(path)
        return list(zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True))

    def _read_table(self, path: str) -> Any:
        from pyarrow import parquet  # noqa: PLC0415 - an optional extra

        return parquet.read_table(io.BytesIO(self._fs.cat_file(path)))

    def attempts(self, part: Part) -> dict[str, Any]:
        """How often a part was started but not finished, and its images in progress when the worker died.

        `current` is the one in progress now, `suspects` are those of one death, `poisoned` those of two. All are
        numbers of images in the part, since names may repeat.
        """
        path = self._path("attempts", part, "json")
        fresh: dict[str, Any] = {"attempts": 0, "current": None, "suspects": [], "poisoned": []}
        if not self._fs.exists(path):
            return fresh
        try:
            return fresh | dict(json.loads(self._fs.cat_file(path)))
        except ValueError:  # the worker was killed while it wrote, on a file system without atomic writes
            return fresh | {"attempts": 1}

    def note(self, part: Part, attempts: Mapping[str, Any]) -> None:
        """Write the value that `attempts` returns next time."""
        self._write(self._name("attempts", part, "json"), json.dumps(attempts).encode())

    def _name(self, folder: str, part: Part, suffix: str) -> str:
        return f"{folder}/part-{part.index:06}.{suffix}"

    def _path(self, folder: str, part: Part, suffix: str) -> str:
        return f"{self._root}/{self._name(folder, part, suffix)}"

    def remove_temporary(self) -> None:
        """Remove the files that killed workers left unfinished. Call it when all parts are done, and none is written.

        They are hidden, and never taken for results.
        """
        if is_local(self._fs):
            remove_old((path for path in Path(self._root).glob("*/.*") if target_of(path) is not None), 0)

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        if is_local(self._fs):
            with replacing(Path(path)) as temporary:
                temporary.write_bytes(content)
            return
        try:  # object stores write an object atomically
            self._fs.pipe_file(path, content)
        except Exception as error:  # each file system raises errors of its own
            raise OutputError(f"cannot write '{self.url}/{name}': {one_line(error)}; run the same again") from error


def do_part(
    part: Part,
    run: RunFolder,
    work: Callable[[Iterable[ImageItem]], Iterable[R]],
    table: Callable[[list[R]], Any],
) -> list[R]:
    """Process a part and write its files, unless it is done.

    An unreadable image becomes a row in `errors/`, as does the rest of a part whose tar or table is damaged. An image
    that kills the process twice is found by later attempts, and becomes a row in `errors/` too. A process that is
    killed for another reason, once, costs no image.

    Args:
        part: to process.
        run: to write to.
        work: turns images into rows, in order.
        table: turns the rows without an error into a `pyarrow.Table`.

    Returns:
        All rows; an empty list if the part was done before.
    """
    if run.is_done(part):
        return []
    attempts = run.attempts(part)
    if attempts["current"] is not None:
        again = attempts["current"] in attempts["suspects"]
        attempts["poisoned" if again else "suspects"].append(attempts["current"])
    attempts |= {"attempts": attempts["attempts"] + 1, "current": None}
    run.note(part, attempts)
    items = _items_and_damage(part)
    if attempts["attempts"] > CAREFUL_AFTER:
        rows = list(_one_by_one(part, run, work, items, attempts))
    else:
        rows = list(work(items))
    failed = [Result(row.path, error=row.error) for row in rows if row.error is not None]
    run.finish(part, table([row for row in rows if row.error is None]), failed)
    return rows


def _one_by_one(
    part: Part,
    run: RunFolder,
    work: Callable[[Iterable[ImageItem]], Iterable[R]],
    items: Iterable[ImageItem],
    attempts: Mapping[str, Any],
) -> Iterator[R]:
    for number, item in enumerate(items):
        if number in attempts["poisoned"]:
            yield from work([failing_item(item.name, "reading or scoring it killed the worker")])
            continue
        run.note(part, {**attempts, "current": number})
        try:
            yield from work([item])
        except Exception:
            run.note(part, attempts)  # the process lives
            raise
    run.note(part, attempts)


def _items_and_damage(part: Part) -> Iterator[ImageItem]:
    """The images of a part; damage that ends the part early becomes one more image, which fails with the reason."""
    try:
        yield from items_of(part)
    except Exception as error:  # libraries of datasets raise errors of any kind
        yield failing_item(part.url, f"the rest of this part cannot be read: {one_line(error)}")


def _parquet_bytes(table: Any) -> bytes:
    from pyarrow import parquet  # noqa: PLC0415 - an optional extra

    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()
