"""The tasks of a worker: score a part, or encode it into the feature store."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlsr.encoders.encoder import Encoder
from dlsr.encoding.pipeline import Encoded, encode_chunks, joined
from dlsr.encoding.store import KEY_BYTES, FeatureStore
from dlsr.errors import ArtifactError
from dlsr.fitted_detector import FittedDetector
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.method.noise import DIGEST_BYTES
from dlsr.reports.tables import results_table
from dlsr.results import Result
from dlsr.scale.parts import Part
from dlsr.scale.run import RunFolder, do_part
from dlsr.streaming import in_groups

AT_ONCE = 512
"""Images passed to the detector in one call, which bounds a worker's memory."""


@dataclass(frozen=True)
class PartDone:
    """Counts of a finished part."""

    index: int
    images: int
    ood: int
    """0 if the part was only encoded."""
    errors: int


def score_part(detector: FittedDetector, part: Part, run: RunFolder) -> PartDone:
    """Score a part, unless it is done; see `dlsr.scale.run.do_part`."""

    def score(items: Iterable[ImageItem]) -> Iterator[Result]:
        for group in in_groups(items, AT_ONCE):
            yield from detector.results(ImageDataset(group))

    rows = do_part(part, run, score, results_table)
    return PartDone(
        part.index, len(rows), sum(bool(row.is_ood) for row in rows), sum(row.error is not None for row in rows)
    )


@dataclass(frozen=True)
class EncodedImage:
    """An image whose features are in the store."""

    path: str
    key: bytes | None = None
    """Its key in the feature store."""
    error: str | None = None


def encode_part(encoder: Encoder, store: FeatureStore, part: Part, run: RunFolder) -> PartDone:
    """Encode a part into the feature store, unless it is done; see `dlsr.scale.run.do_part`."""

    def encode(items: Iterable[ImageItem]) -> Iterator[EncodedImage]:
        for chunk in encode_chunks(encoder, items, store=store, workers=1):
            keys = iter(chunk.keys)
            for name, error in zip(chunk.names, chunk.errors, strict=True):
                yield EncodedImage(name, None if error else next(keys).tobytes(), error)

    rows = do_part(part, run, encode, _keys_table)
    return PartDone(part.index, len(rows), 0, sum(row.error is not None for row in rows))


def encoded_images(run: RunFolder, parts: list[Part], store: FeatureStore) -> Encoded:
    """Features of all images of a run, in the order of its parts, which must all be encoded.

    Raises:
        ArtifactError: if features are missing from the store.
        OutputError: as `dlsr.encoding.pipeline.encode_all`.
    """
    tables = [run.table(part) for part in parts]
    failed = [run.failed(part) for part in parts]

    def chunks() -> Iterator[Encoded]:
        for table, reasons in zip(tables, failed, strict=True):
            keys = np.frombuffer(b"".join(table["key"].to_pylist()), np.uint8).reshape(-1, KEY_BYTES)
            found = [store.get(key.tobytes()) for key in keys]
            known = [features for features in found if features is not None]
            if len(known) < len(found):
                raise ArtifactError(
                    f"'{store.folder}' lacks features that '{run.url}' lists as encoded; delete '{run.url}', run again"
                )
            yield Encoded(
                names=[*table["path"].to_pylist(), *(name for name, _ in reasons)],
                errors=[*[None] * len(known), *(reason for _, reason in reasons)],
                z0=np.array([z0 for _, z0 in known], np.float32).reshape(-1, store.c),
                digests=np.array([digest for digest, _ in known], np.uint8).reshape(-1, DIGEST_BYTES),
                keys=keys,
            )

    images = sum(len(table) for table in tables) + sum(map(len, failed))
    return joined(chunks(), images, store.c, store.folder)


def _keys_table(rows: list[EncodedImage]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an optional extra

    return pa.table(
        {
            "path": pa.array([row.path for row in rows], pa.string()),
            "key": pa.array([row.key for row in rows], pa.binary(KEY_BYTES)),
        }
    )
