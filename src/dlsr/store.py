"""The feature store: each image is encoded once, its features kept on disk.

A row's key is the SHA-256 of the image's bytes; a folder's name is the digest of everything else that features
depend on (weights, stages, preprocessing, protocol). So a changed image, weight or preprocessing is another key,
and nothing stale can be found. Rows lie in shards that are written whole and never changed, so any number of
processes may share a store.
"""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dlsr.errors import ArtifactError
from dlsr.files import cache_root, replacing
from dlsr.noise import DIGEST_BYTES

SCHEMA = "1"
KEY_BYTES = 32
ROWS_PER_SHARD = 4096
MANY_SHARDS = 64


def default_store_root() -> Path:
    """`features` below the cache, see `dlsr.files.cache_root`."""
    return cache_root() / "features"


class FeatureStore:
    """Features of images for one encoder and preprocessing.

    Args:
        root: folder of all stores.
        key: digest of what features depend on besides the image.
        c: dimension of the features.

    Raises:
        ArtifactError: if a shard is damaged or foreign.
    """

    def __init__(self, root: Path, key: str, c: int) -> None:
        self.folder = root / key
        self._c = c
        self._rows: dict[bytes, tuple[Any, int]] = {}
        self._digests: dict[bytes, NDArray[np.uint8]] = {}
        self._new: dict[bytes, tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}
        shards = sorted(self.folder.glob("*.safetensors"))
        for shard in shards:
            self._index(shard)
        if len(shards) > MANY_SHARDS:
            self._merge(shards)

    def __len__(self) -> int:
        return len(self._rows) + len(self._new)

    def get(self, key: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """The content digest, shape `(16,)`, and features, shape `(c,)`, of an image, if known."""
        if key in self._new:
            return self._new[key]
        if key not in self._rows:
            return None
        table, row = self._rows[key]
        return self._digests[key], table[row : row + 1][0]

    def add(self, key: bytes, digest: NDArray[np.uint8], z0: NDArray[np.float32]) -> None:
        """Keep the features of an image; written with the next full shard, or by `flush`."""
        if key not in self._rows:
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
        rows, self._new = self._new, {}
        self._index(self._write(rows))

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

    def _index(self, shard: Path) -> None:
        try:
            with safe_open(shard, framework="numpy") as file:
                keys, digests = file.get_tensor("keys"), file.get_tensor("digests")
                table = file.get_slice("z0")
                shapes = keys.shape, digests.shape, tuple(table.get_shape())
                rows = len(keys)
                if (file.metadata() or {}).get("schema") != SCHEMA or shapes != (
                    (rows, KEY_BYTES),
                    (rows, DIGEST_BYTES),
                    (rows, self._c),
                ):
                    raise ArtifactError(f"'{shard}' is no feature shard of this dlsr; delete it")
        except FileNotFoundError:
            return  # merged away by another process since it was listed
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"'{shard}' is damaged ({error}); delete it") from error
        for row, key in enumerate(keys):
            self._rows[key.tobytes()] = table, row
            self._digests[key.tobytes()] = digests[row]

    def _merge(self, shards: list[Path]) -> None:
        # Many small runs leave many small shards. The merged ones are written first, so that a reader that lists
        # the folder at any moment finds every row in one or the other.
        rows = {key: found for key in list(self._rows) if (found := self.get(key)) is not None}
        keys = list(rows)
        for start in range(0, len(keys), ROWS_PER_SHARD):
            self._index(self._write({key: rows[key] for key in keys[start : start + ROWS_PER_SHARD]}))
        for shard in shards:
            shard.unlink(missing_ok=True)
