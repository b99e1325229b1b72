"""A run over a collection's parts: the files it leaves, and how a part is done. Knows nothing of who hands out tasks.

A run is a folder, here or behind any fsspec URL. For scoring:

    run.json                   what was scored, by which model, cut how
    model/                     the model, for workers that cannot see its directory
    scores/part-000000.parquet results of the images that could be read
    errors/part-000000.parquet names and reasons of those that could not
    attempts/part-000000.json  only while a part is under way

Each image is in `scores/` or in `errors/`, once. A part is done when its file in `scores/` is there, which is written
last and whole; so a run that was stopped anywhere goes on with the parts that are not done.
"""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dlsr.artifact import MANIFEST
from dlsr.detector import Detector, Result
from dlsr.errors import ArtifactError, InputError, one_line
from dlsr.files import replacing
from dlsr.images.sources import ImageItem, failing_item
from dlsr.reports.tables import results_table
from dlsr.scale.parts import Part, filesystem, items_of

SCHEMA = 1
CAREFUL_AFTER = 2
"""After so many attempts that killed their worker, a part is done image by image, to find the one that does it."""


class Row(Protocol):
    """What becomes of an image."""

    @property
    def path(self) -> str:
        """Its name."""

    @property
    def error(self) -> str | None:
        """Why it could not be read; None if it could."""


R = TypeVar("R", bound=Row)


class RunFolder:
    """The files of a run.

    Args:
        url: a folder, or any fsspec URL of one.
        results: name of the folder for what comes of the parts.
    """

    def __init__(self, url: str, results: str = "scores") -> None:
        self.url = url
        self._results = results
        self._fs, self._root = filesystem(url)

    @property
    def full_url(self) -> str:
        """The same from any working directory."""
        return str(self._fs.unstrip_protocol(self._root))

    def claim(self, about: Mapping[str, Any]) -> None:
        """Begin a run, or go on with one that is the same.

        Raises:
            ArtifactError: if the folder holds another run, or something that is none.
        """
        path = f"{self._root}/run.json"
        wanted = {"schema": SCHEMA, **about}
        if self._fs.exists(path):
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
        """Copy a model directory into the run, unless it is there. `model.json` goes last.

        Raises:
            ArtifactError: if it cannot be read.
        """
        try:
            files = sorted(
                (path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == MANIFEST
            )
            for path in files:
                if not self._fs.exists(f"{self._root}/model/{path.name}"):
                    self._write(f"model/{path.name}", path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"cannot read '{folder}': {error.strerror}; give a model directory") from error

    def load_model(self, **options: Any) -> Detector:
        """The detector of `put_model`; options as for `Detector.load`."""
        with tempfile.TemporaryDirectory() as folder:
            for path in self._fs.ls(f"{self._root}/model", detail=False):
                Path(folder, Path(path).name).write_bytes(self._fs.cat_file(path))
            return Detector.load(folder, **options)

    def is_done(self, part: Part) -> bool:
        """Whether a part needs no more work."""
        return bool(self._fs.exists(self._path(self._results, part, "parquet")))

    def done(self, parts: list[Part]) -> set[int]:
        """Indices of the parts that are done, by one listing."""
        folder = f"{self._root}/{self._results}"
        names = {Path(path).name for path in self._fs.ls(folder, detail=False)} if self._fs.isdir(folder) else set()
        return {part.index for part in parts if f"part-{part.index:06}.parquet" in names}

    def finish(self, part: Part, table: Any, failed: list[Result]) -> None:
        """Write what came of a part, an Arrow table; what could not be read apart and first."""
        if failed:
            self._write(self._name("errors", part, "parquet"), _parquet_bytes(results_table(failed)))
        self._write(self._name(self._results, part, "parquet"), _parquet_bytes(table))
        if self._fs.exists(self._path("attempts", part, "json")):
            self._fs.rm_file(self._path("attempts", part, "json"))

    def table(self, part: Part) -> Any:
        """What came of a part that is done, as `finish` was given it."""
        return self._read_table(self._path(self._results, part, "parquet"))

    def failed(self, part: Part) -> dict[str, str]:
        """Reasons by name of what could not be read in a part that is done."""
        path = self._path("errors", part, "parquet")
        if not self._fs.exists(path):
            return {}
        table = self._read_table(path)
        return dict(zip(table["path"].to_pylist(), table["error"].to_pylist(), strict=True))

    def remove(self) -> None:
        """Delete the folder."""
        self._fs.rm(self._root, recursive=True)

    def _read_table(self, path: str) -> Any:
        from pyarrow import parquet  # noqa: PLC0415 - an optional extra

        return parquet.read_table(io.BytesIO(self._fs.cat_file(path)))

    def attempts(self, part: Part) -> dict[str, Any]:
        """How often a part was begun without an end, and which images killed their worker."""
        path = self._path("attempts", part, "json")
        fresh: dict[str, Any] = {"attempts": 0, "current": None, "poisoned": []}
        if not self._fs.exists(path):
            return fresh
        try:
            return fresh | dict(json.loads(self._fs.cat_file(path)))
        except ValueError:  # the worker was killed while it wrote to a file system that does not replace whole files
            return fresh | {"attempts": 1}

    def note(self, part: Part, attempts: Mapping[str, Any]) -> None:
        """Keep what `attempts` is to tell next time."""
        self._write(self._name("attempts", part, "json"), json.dumps(attempts).encode())

    def _name(self, folder: str, part: Part, suffix: str) -> str:
        return f"{folder}/part-{part.index:06}.{suffix}"

    def _path(self, folder: str, part: Part, suffix: str) -> str:
        return f"{self._root}/{self._name(folder, part, suffix)}"

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        if "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)):
            with replacing(Path(path)) as temporary:
                temporary.write_bytes(content)
        else:  # object stores put whole objects or none
            self._fs.pipe_file(path, content)


def do_part(
    part: Part,
    run: RunFolder,
    work: Callable[[Iterable[ImageItem]], Iterable[R]],
    table: Callable[[list[R]], Any],
) -> list[R]:
    """Do a part and write its files, unless it is done.

    What cannot be read is a row in `errors/`: an image, or the rest of a part whose tar or table is damaged. An image
    that kills the process is found by the attempts that follow, and becomes such a row too.

    Args:
        part: what to do.
        run: where its files go.
        work: makes a row of each image, in order.
        table: makes an Arrow table of the rows without an error.

    Returns:
        All rows; none if the part was done before.
    """
    if run.is_done(part):
        return []
    attempts = run.attempts(part)
    if attempts["current"] is not None:
        attempts["poisoned"].append(attempts["current"])
    attempts |= {"attempts": attempts["attempts"] + 1, "current": None}
    run.note(part, attempts)
    items = _items_or_reason(part)
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
    for item in items:
        if item.name in attempts["poisoned"]:
            yield from work([failing_item(item.name, "reading or scoring it killed the worker")])
            continue
        run.note(part, {**attempts, "current": item.name})
        yield from work([item])


def _items_or_reason(part: Part) -> Iterator[ImageItem]:
    """A part's images; what hinders reading them all is one more, which cannot be read."""
    try:
        yield from items_of(part)
    except (OSError, ValueError, tarfile.TarError, InputError) as error:
        yield failing_item(part.url, f"the rest of this part cannot be read: {one_line(error)}")


def _parquet_bytes(table: Any) -> bytes:
    from pyarrow import parquet  # noqa: PLC0415 - an optional extra

    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()
