"""The feature store: each image is encoded once, its features kept on disk.

A row's key is the SHA-256 of the image's bytes; a folder's name is the digest of everything else that features
depend on (weights, stages, preprocessing, protocol). So a changed image, weight or preprocessing is another key,
and nothing stale can be found. Rows lie in shards that are written whole and never changed, so any number of
processes may share a store.
"""

import os
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dlsr.errors import ArtifactError, OutputError
from dlsr.files import cache_root, replacing
from dlsr.method.noise import DIGEST_BYTES
from dlsr.training.data import IN_MEMORY_BYTES

SCHEMA = "1"
KEY_BYTES = 32
ROWS_PER_SHARD = 4096
MANY_SHARDS = 64
"""More that are not half full are merged."""
RECENT_ROWS = 65_536
"""So many keys may wait to be sorted in."""


def default_store_root() -> Path:
    """`features` below the cache, see `dlsr.files.cache_root`."""
    return cache_root() / "features"


class FeatureStore:
    """Features of images for one encoder and preprocessing.

    Features stay on disk, memory-mapped; some 40 bytes a row are in memory.

    Args:
        root: folder of all stores.
        key: digest of what features depend on besides the image.
        c: dimension of the features.

    Raises:
        ArtifactError: if a shard is damaged or foreign.
    """

    def __init__(self, root: Path, key: str, c: int) -> None:
        self.folder = root / key
        self.c = c
        self._new: dict[bytes, tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}
        opened = self._open_all()
        self._shards = [shard for shard, _ in opened]
        self._index = _Index([keys for _, keys in opened])
        small = [(shard, keys) for shard, keys in opened if len(keys) < ROWS_PER_SHARD // 2]
        if len(small) > MANY_SHARDS:
            self._merge(small)

    def __len__(self) -> int:
        return len(self._index) + len(self._new)

    def get(self, key: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """The content digest, shape `(16,)`, and features, shape `(c,)`, of an image, if known."""
        if (new := self._new.get(key)) is not None:
            return new
        if (place := self._index.find(key)) is None:
            return None
        shard, row = self._shards[place[0]], place[1]
        return shard.digests[row], shard.z0[row : row + 1][0]

    def add(self, key: bytes, digest: NDArray[np.uint8], z0: NDArray[np.float32]) -> None:
        """Keep the features of an image; written with the next full shard, or by `flush`."""
        if key not in self._new and self._index.find(key) is None:
            self._new[key] = digest, z0
        if len(self._new) >= ROWS_PER_SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk.

        Raises:
            OutputError: if that fails.
        """
        if not self._new:
            return
        self._append(self._write(self._new))
        self._new = {}

    def _append(self, path: Path) -> None:
        if (opened := self._open(path)) is not None:
            shard, keys = opened
            self._shards.append(shard)
            self._index.add(len(self._shards) - 1, keys)

    def _write(self, rows: dict[bytes, tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> Path:
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        tensors: dict[str, NDArray[Any]] = {
            "keys": np.stack([np.frombuffer(key, np.uint8) for key in rows]),
            "digests": np.stack([digest for digest, _ in rows.values()]),
            "z0": np.stack([z0 for _, z0 in rows.values()]),
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"schema": SCHEMA})
        return path

    def _open_all(self) -> list[tuple["_Shard", NDArray[np.uint8]]]:
        """All shards; listed again if another process merged some between listing and opening."""
        while True:
            # Names that begin with a dot are of files that are being written, see `dlsr.files.replacing`.
            opened = [self._open(path) for path in sorted(self.folder.glob("[!.]*.safetensors"))]
            there = [one for one in opened if one is not None]
            if len(there) == len(opened):
                return there

    def _open(self, path: Path) -> tuple["_Shard", NDArray[np.uint8]] | None:
        """A shard and its keys, shape `(rows, 32)`."""
        try:
            with safe_open(path, framework="numpy") as file:
                keys, digests = file.get_tensor("keys"), file.get_tensor("digests")
                table = file.get_slice("z0")
                shapes = keys.shape, digests.shape, tuple(table.get_shape())
                rows = len(keys)
                if (file.metadata() or {}).get("schema") != SCHEMA or shapes != (
                    (rows, KEY_BYTES),
                    (rows, DIGEST_BYTES),
                    (rows, self.c),
                ):
                    raise ArtifactError(f"'{path}' is no feature shard of this dlsr; delete it")
        except FileNotFoundError:
            return None  # merged away by another process since it was listed
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"'{path}' is damaged ({error}); delete it") from error
        return _Shard(path, digests, table), keys

    def _merge(self, small: list[tuple["_Shard", NDArray[np.uint8]]]) -> None:
        # Many small runs leave many small shards. The merged ones are written first, so that a reader that lists
        # the folder at any moment finds every row in one or the other.
        rows = {}
        for shard, keys in small:
            for row, key in enumerate(keys):
                rows[key.tobytes()] = shard.digests[row], shard.z0[row : row + 1][0]
            if len(rows) >= ROWS_PER_SHARD:
                self._append(self._write(rows))
                rows = {}
        if rows:
            self._append(self._write(rows))
        for shard, _ in small:
            shard.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Shard:
    """A file of the store; its features are read when they are asked for."""

    path: Path
    digests: NDArray[np.uint8]
    z0: Any


class _Index:
    """Where the row of each key lies: the number of its shard, and its place there.

    Half of each key is kept, sorted: 128 bits of a SHA-256 are as good as unique.

    Args:
        keys: of each shard, shape `(rows, 32)`.
    """

    def __init__(self, keys: Sequence[NDArray[np.uint8]]) -> None:
        self._recent: dict[bytes, tuple[int, int]] = {}
        shards = np.repeat(np.arange(len(keys), dtype=np.uint32), [len(one) for one in keys])
        rows = np.concatenate([np.empty(0, np.uint32), *(np.arange(len(one), dtype=np.uint32) for one in keys)])
        self._sorted = self._sort(np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *keys]), shards, rows)

    def __len__(self) -> int:
        return len(self._sorted[0]) + len(self._recent)

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Shard and row of a key, if known."""
        if (recent := self._recent.get(key)) is not None:
            return recent
        highs, lows, shards, rows = self._sorted
        high, low = (np.uint64(int.from_bytes(part, "big")) for part in (key[:8], key[8:16]))
        i = int(np.searchsorted(highs, high))
        while i < len(highs) and highs[i] == high:
            if lows[i] == low:
                return int(shards[i]), int(rows[i])
            i += 1
        return None

    def add(self, shard: int, keys: NDArray[np.uint8]) -> None:
        """Learn a new shard's keys, shape `(rows, 32)`."""
        for row, key in enumerate(keys):
            if self.find(key.tobytes()) is None:
                self._recent[key.tobytes()] = shard, row
        if len(self._recent) > max(RECENT_ROWS, len(self._sorted[0]) // 4):
            self._settle()

    def _settle(self) -> None:
        """Sort the recent keys in. Other threads may look for keys meanwhile, and find them in the one or the other."""
        highs, lows, shards, rows = self._sorted
        halves = np.stack([highs, lows], axis=1).astype(">u8").view(np.uint8)
        keys = np.frombuffer(b"".join(self._recent), np.uint8).reshape(-1, KEY_BYTES)[:, :16]
        places = np.array(list(self._recent.values()), np.uint32)
        self._sorted = self._sort(
            np.concatenate([halves, keys]),
            np.concatenate([shards, places[:, 0]]),
            np.concatenate([rows, places[:, 1]]),
        )
        self._recent = {}

    @staticmethod
    def _sort(
        keys: NDArray[np.uint8], shards: NDArray[np.uint32], rows: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
        halves = np.ascontiguousarray(keys[:, :16]).view(">u8").astype(np.uint64)
        highs, lows = halves[:, 0], halves[:, 1]
        order = np.lexsort((lows, highs))
        highs, lows = highs[order], lows[order]
        first = np.ones(len(order), np.bool_)  # two processes may have encoded the same image
        first[1:] = (highs[1:] != highs[:-1]) | (lows[1:] != lows[:-1])
        order = order[first]
        return highs[first], lows[first], shards[order], rows[order]


def empty_table(rows: int, c: int, folder: Path | None) -> NDArray[np.float32]:
    """An array for features, shape `(rows, c)`: in memory if it is small, else memory-mapped.

    Args:
        rows: how many.
        c: dimension of the features.
        folder: where the file goes, which has no name and is gone with the array; None for the system's place.

    Raises:
        OutputError: if there is no space for it.
    """
    size = rows * c * np.dtype(np.float32).itemsize
    if size <= IN_MEMORY_BYTES:
        return np.empty((rows, c), np.float32)
    place = folder or Path(tempfile.gettempdir())
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            if hasattr(os, "posix_fallocate"):  # macOS has it not
                # A mapped file that finds the disk full only when it is written to kills the process.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, "r+", shape=(rows, c))
    except OSError as error:
        raise OutputError(
            f"cannot keep {size / 1e9:.1f} GB of features in '{place}': {error.strerror}; give --store another place"
        ) from error
