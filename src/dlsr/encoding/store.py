"""The feature store: features on disk, so that each image is encoded once.

An entry's key is the SHA-256 of the image's file. The name of the store's folder is a digest of everything else that
features depend on: weights, stages, preprocessing, protocol, and the versions of the code that computes them (dlsr's
own, timm's and Pillow's; see `Encoder.key`). A change of any of these changes a key, so stale features are never found.
Entries are in shards, files that are written atomically and never changed, so several processes can share a store.
"""

import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dlsr.errors import ArtifactError, OutputError
from dlsr.files import cache_root, remove_old, target_of, write_arrays
from dlsr.method.noise import DIGEST_BYTES
from dlsr.streaming import IN_MEMORY_BYTES

SCHEMA = "1"
KEY_BYTES = 32
SHARD_SIZE = 4096
"""Entries in a full shard."""
FLUSH_SECONDS = 30.0
"""Entries that wait longer for a full shard are written as they are: a process that is killed loses no more work."""
MANY_SHARDS = 64
"""If more shards than this are less than half full, they are merged."""
RECENT_KEYS = 65_536
"""The index is sorted again when it has more unsorted keys than this."""


def default_store_root() -> Path:
    """The folder `features` in the cache, see `dlsr.files.cache_root`."""
    return cache_root() / "features"


class FeatureStore:
    """Features of images for one encoder and preprocessing.

    Features stay on disk and are memory-mapped. The index takes about 40 bytes of memory for each image.

    Args:
        root: folder of all stores.
        key: digest of everything that features depend on besides the image.
        c: dimension of the features.

    Raises:
        ArtifactError: if a shard is damaged or of another format.
    """

    def __init__(self, root: Path, key: str, c: int) -> None:
        self.folder = root / key
        self.c = c
        self._new: dict[bytes, tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}
        self._oldest_new = 0.0
        remove_old(path for path in self.folder.glob(".*") if target_of(path) is not None)
        opened = self._open_all()
        self._shards = [shard for shard, _ in opened]
        self._index = _Index([keys for _, keys in opened])
        small = [(shard, keys) for shard, keys in opened if len(keys) < SHARD_SIZE // 2 and _is_own(shard.path)]
        if len(small) > MANY_SHARDS:
            with suppress(OutputError):  # nothing is lost if there is no space to merge them
                self._merge(small)

    def __len__(self) -> int:
        return len(self._index) + len(self._new)

    def get(self, key: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """Content digest, shape `(16,)`, and features, shape `(c,)`, of an image; None if it is not in the store."""
        if (new := self._new.get(key)) is not None:
            return new
        if (place := self._index.find(key)) is None:
            return None
        shard, i = self._shards[place[0]], place[1]
        return shard.digests[i], shard.z0[i : i + 1][0]

    def add(self, key: bytes, digest: NDArray[np.uint8], z0: NDArray[np.float32]) -> None:
        """Add the features of an image. They are written with the next full shard, after a while, or by `flush`.

        Raises:
            OutputError: if a shard cannot be written.
        """
        now = time.monotonic()
        if key not in self._new and self._index.find(key) is None:
            self._oldest_new = self._oldest_new if self._new else now
            self._new[key] = digest, z0
        if len(self._new) >= SHARD_SIZE or (self._new and now - self._oldest_new >= FLUSH_SECONDS):
            self.flush()

    def flush(self) -> None:
        """Write the entries that are not yet on disk.

        Raises:
            OutputError: if they cannot be written.
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

    def _write(self, entries: dict[bytes, tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> Path:
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        arrays: dict[str, NDArray[Any]] = {
            "keys": np.stack([np.frombuffer(key, np.uint8) for key in entries]),
            "digests": np.stack([digest for digest, _ in entries.values()]),
            "z0": np.stack([z0 for _, z0 in entries.values()]),
        }
        write_arrays(path, arrays, {"schema": SCHEMA})
        return path

    def _open_all(self) -> list[tuple["_Shard", NDArray[np.uint8]]]:
        """All shards. They are listed again if another process merged some between listing and opening."""
        while True:
            # Names that begin with a dot are those of unfinished files, see `dlsr.files.replacing`.
            opened = [self._open(path) for path in sorted(self.folder.glob("[!.]*.safetensors"))]
            found = [shard for shard in opened if shard is not None]
            if len(found) == len(opened):
                return found

    def _open(self, path: Path) -> tuple["_Shard", NDArray[np.uint8]] | None:
        """A shard and its keys, shape `(n, 32)`; None if another process has merged it."""
        try:
            with safe_open(path, framework="numpy") as file:
                keys, digests = file.get_tensor("keys"), file.get_tensor("digests")
                table = file.get_slice("z0")
                shapes = keys.shape, digests.shape, tuple(table.get_shape())
                n = len(keys)
                if (file.metadata() or {}).get("schema") != SCHEMA or shapes != (
                    (n, KEY_BYTES),
                    (n, DIGEST_BYTES),
                    (n, self.c),
                ):
                    raise ArtifactError(f"'{path}' is not a feature shard of this version of dlsr; delete it")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"'{path}' is damaged ({error}); delete it") from error
        return _Shard(path, digests, table), keys

    def _merge(self, small: list[tuple["_Shard", NDArray[np.uint8]]]) -> None:
        # Many short runs leave many small shards. They are deleted after the merged shards are written, so that a
        # process that lists the folder meanwhile finds every entry.
        entries = {}
        for shard, keys in small:
            for i, key in enumerate(keys):
                entries[key.tobytes()] = shard.digests[i], shard.z0[i : i + 1][0]
            if len(entries) >= SHARD_SIZE:
                self._append(self._write(entries))
                entries = {}
        if entries:
            self._append(self._write(entries))
        for shard, _ in small:
            with suppress(OSError):  # another user's
                shard.path.unlink()


def _is_own(path: Path) -> bool:
    """Whether a file is this user's, who may then delete it."""
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


@dataclass(frozen=True)
class _Shard:
    """A file of the store. Its features are read on access."""

    path: Path
    digests: NDArray[np.uint8]
    z0: Any


class _Index:
    """The place of each key: the number of its shard and the position there.

    Only half of each key is kept, since 128 bits of a SHA-256 are unique for all practical purposes.

    Args:
        keys: keys of each shard, shape `(n, 32)`.
    """

    def __init__(self, keys: Sequence[NDArray[np.uint8]]) -> None:
        self._recent: dict[bytes, tuple[int, int]] = {}
        shards = np.repeat(np.arange(len(keys), dtype=np.uint32), [len(part) for part in keys])
        places = np.concatenate([np.empty(0, np.uint32), *(np.arange(len(part), dtype=np.uint32) for part in keys)])
        self._sorted = self._sort(np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *keys]), shards, places)

    def __len__(self) -> int:
        return len(self._sorted[0]) + len(self._recent)

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Number of the shard and position there for a key; None if the key is unknown."""
        if (recent := self._recent.get(key)) is not None:
            return recent
        highs, lows, shards, places = self._sorted
        high, low = (np.uint64(int.from_bytes(part, "big")) for part in (key[:8], key[8:16]))
        i = int(np.searchsorted(highs, high))
        while i < len(highs) and highs[i] == high:
            if lows[i] == low:
                return int(shards[i]), int(places[i])
            i += 1
        return None

    def add(self, shard: int, keys: NDArray[np.uint8]) -> None:
        """Add the keys of a new shard, shape `(n, 32)`."""
        for i, key in enumerate(keys):
            if self.find(key.tobytes()) is None:
                self._recent[key.tobytes()] = shard, i
        if len(self._recent) > max(RECENT_KEYS, len(self._sorted[0]) // 4):
            self._sort_recent()

    def _sort_recent(self) -> None:
        # Other threads may call `find` meanwhile: a key is in the new sorted arrays before it leaves the recent keys.
        highs, lows, shards, places = self._sorted
        halves = np.stack([highs, lows], axis=1).astype(">u8").view(np.uint8)
        keys = np.frombuffer(b"".join(self._recent), np.uint8).reshape(-1, KEY_BYTES)[:, :16]
        recent = np.array(list(self._recent.values()), np.uint32)
        self._sorted = self._sort(
            np.concatenate([halves, keys]),
            np.concatenate([shards, recent[:, 0]]),
            np.concatenate([places, recent[:, 1]]),
        )
        self._recent = {}

    @staticmethod
    def _sort(
        keys: NDArray[np.uint8], shards: NDArray[np.uint32], places: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
        halves = np.ascontiguousarray(keys[:, :16]).view(">u8").astype(np.uint64)
        highs, lows = halves[:, 0], halves[:, 1]
        order = np.lexsort((lows, highs))
        highs, lows = highs[order], lows[order]
        first = np.ones(len(order), np.bool_)  # two processes may have encoded the same image
        first[1:] = (highs[1:] != highs[:-1]) | (lows[1:] != lows[:-1])
        order = order[first]
        return highs[first], lows[first], shards[order], places[order]


def empty_table(n: int, c: int, folder: Path | None) -> NDArray[np.float32]:
    """An uninitialised array for features, shape `(n, c)`: in memory if it is small, else memory-mapped.

    Args:
        n: number of feature vectors.
        c: dimension of the features.
        folder: folder of the mapped file, which has no name and is deleted with the array; None for the system's
            temporary folder.

    Raises:
        OutputError: if the disk has no space for it.
    """
    size = n * c * np.dtype(np.float32).itemsize
    if size <= IN_MEMORY_BYTES:
        return np.empty((n, c), np.float32)
    place = folder or Path(tempfile.gettempdir())
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                # Without reserved space, writing to the mapping on a full disk kills the process.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, "r+", shape=(n, c))
    except OSError as error:
        raise OutputError(
            f"cannot keep {size / 1e9:.1f} GB of features in '{place}': {error.strerror}; give another --store"
        ) from error
