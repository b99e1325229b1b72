"""From images to features: read, look up or encode, keep. The one path that every front end takes."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlsr.encoders import Encoder
from dlsr.encoding.store import KEY_BYTES, FeatureStore, empty_table
from dlsr.errors import ImageError, NoImagesError, OutputError
from dlsr.images.decode import decode, reason_of
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.images.transforms import Transform, resize
from dlsr.method.noise import DIGEST_BYTES, pixel_digest
from dlsr.streaming import in_groups, map_ahead

CHUNK = 512

Progress = Callable[[int], None]
"""Told how many more images are done."""


@dataclass(frozen=True)
class Encoded:
    """Images in their order, with the features of those that could be read."""

    names: list[str]
    errors: list[str | None]
    """Why an image could not be read; None if it could. One for each name."""
    z0: NDArray[np.float32]
    """Features of the readable images, shape `(R, c)`; memory-mapped if they are many."""
    digests: NDArray[np.uint8]
    """Their content digests, from which noise is derived, shape `(R, 16)`."""
    keys: NDArray[np.uint8]
    """SHA-256 of their files, by which the feature store knows them, shape `(R, 32)`."""

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images have features, shape `(N,)`."""
        return np.array([error is None for error in self.errors], dtype=np.bool_)

    @property
    def unreadable(self) -> dict[str, str]:
        """Reasons by name."""
        return {name: error for name, error in zip(self.names, self.errors, strict=True) if error is not None}


@dataclass
class _Prepared:
    name: str
    key: bytes = b""
    error: str | None = None
    known: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None
    pixels: NDArray[np.uint8] | None = None
    digest: NDArray[np.uint8] | None = None
    is_new: bool = False


def open_store(root: Path | None, encoder: Encoder, transform: Transform | None = None) -> FeatureStore | None:
    """The store of this encoder and transform below `root`; None without a root."""
    if root is None:
        return None
    key = hashlib.sha256(f"{encoder.key}\n{transform.name if transform else ''}".encode()).hexdigest()
    return FeatureStore(root, key, encoder.c)


def encode_chunks(
    encoder: Encoder,
    items: Iterable[ImageItem],
    *,
    store: FeatureStore | None = None,
    transform: Transform | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Iterator[Encoded]:
    """Encode images in order, a chunk at a time, so that memory does not grow with their number.

    Args:
        encoder: what to encode with.
        items: what to encode, taken as needed.
        store: where features are looked up and kept.
        transform: applied to each decoded image.
        batch_size: images in one call of the engine; None for what it is quickest with.
        workers: threads that read and decode ahead of the encoder.
        progress: told of each image done.
    """

    def prepare(item: ImageItem) -> _Prepared:
        return _prepare(item, encoder, store, transform)

    def encode(batch: list[_Prepared]) -> list[_Prepared]:
        _encode(batch, encoder)
        return batch

    size, streams = batch_size or encoder.batch, encoder.streams
    with (
        closing(map_ahead(prepare, items, workers, ahead=max(CHUNK // 4, 2 * size * streams))) as prepared,
        closing(map_ahead(encode, _batches(prepared, size), streams, ahead=8 * streams)) as batches,
        _flushed(store),
    ):
        for chunk in in_groups(_kept(batches, store, progress), CHUNK):
            known = [(*one.known, one.key) for one in chunk if one.known is not None]
            yield Encoded(
                names=[one.name for one in chunk],
                errors=[one.error for one in chunk],
                z0=np.array([z0 for _, z0, _ in known], np.float32).reshape(-1, encoder.c),
                digests=np.array([digest for digest, _, _ in known], np.uint8).reshape(-1, DIGEST_BYTES),
                keys=np.frombuffer(b"".join(key for _, _, key in known), np.uint8).reshape(-1, KEY_BYTES),
            )


@contextmanager
def _flushed(store: FeatureStore | None) -> Iterator[None]:
    """Flush the store at the end, come what may."""
    try:
        yield
    except BaseException:
        # What is done is kept; but the error under way says more than one of the store's would.
        if store is not None:
            with suppress(OutputError):
                store.flush()
        raise
    if store is not None:
        store.flush()


def encode_all(
    encoder: Encoder,
    images: ImageDataset,
    *,
    store: FeatureStore | None = None,
    transform: Transform | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Encoded:
    """As `encode_chunks`, all in one.

    Raises:
        OutputError: if features that are more than fit in memory find no space on disk.
    """
    chunks = encode_chunks(encoder, images.items, store=store, transform=transform, workers=workers, progress=progress)
    return joined(chunks, len(images), encoder.c, store.folder if store else None)


def joined(chunks: Iterable[Encoded], images: int, c: int, folder: Path | None) -> Encoded:
    """Chunks in one; features that are more than fit in memory are in a file, see `dlsr.encoding.store.empty_table`."""
    z0 = empty_table(images, c, folder)
    names: list[str] = []
    errors: list[str | None] = []
    digests, keys = [np.empty((0, DIGEST_BYTES), np.uint8)], [np.empty((0, KEY_BYTES), np.uint8)]
    filled = 0
    for chunk in chunks:
        z0[filled : filled + len(chunk.z0)] = chunk.z0
        filled += len(chunk.z0)
        names += chunk.names
        errors += chunk.errors
        digests.append(chunk.digests)
        keys.append(chunk.keys)
    return Encoded(names, errors, z0[:filled], np.concatenate(digests), np.concatenate(keys))


def readable_pixels(encoder: Encoder, images: ImageDataset, limit: int, workers: int = 2) -> NDArray[np.uint8]:
    """The first images that can be read, resized for an encoder: uint8 of shape `(at most limit, size, size, 3)`.

    Raises:
        NoImagesError: if none can.
    """
    pixels: list[NDArray[np.uint8]] = []
    for one in map_ahead(lambda item: _prepare(item, encoder, None, None), images.items, workers, ahead=CHUNK // 4):
        if one.pixels is not None:
            pixels.append(one.pixels)
        if len(pixels) == limit:
            break
    if not pixels:
        raise NoImagesError(f"none of {len(images)} images can be read")
    return np.stack(pixels)


def _prepare(item: ImageItem, encoder: Encoder, store: FeatureStore | None, transform: Transform | None) -> _Prepared:
    try:
        raw = item.read()
        image = None
        if not isinstance(raw, bytes):
            image = decode(raw)
            raw = image.tobytes() + repr(image.size).encode()
        key = hashlib.sha256(raw).digest()
        known = store.get(key) if store is not None else None
        if known is not None:
            return _Prepared(item.name, key, known=known)
        image = image or decode(raw, encoder.spec.size if encoder.spec.decoding == "draft" else None)
        if transform is not None:
            image = transform.apply(image)
        pixels = resize(image, encoder.spec.size, encoder.spec.interpolation)
        # Here, in the threads that decode: the engine would wait for it otherwise.
        return _Prepared(item.name, key, pixels=pixels, digest=pixel_digest(pixels))
    except (ImageError, OSError) as error:
        return _Prepared(item.name, error=reason_of(error))


def _batches(prepared: Iterable[_Prepared], size: int) -> Iterator[list[_Prepared]]:
    """Images in order, in groups of which at most `size` are to be encoded."""
    batch: list[_Prepared] = []
    missing = 0
    for one in prepared:
        batch.append(one)
        missing += one.pixels is not None
        if missing == size or len(batch) == CHUNK:
            yield batch
            batch, missing = [], 0
    if batch:
        yield batch


def _encode(batch: list[_Prepared], encoder: Encoder) -> None:
    """Encode what is not known."""
    missing = [one for one in batch if one.pixels is not None]
    if missing:
        features = encoder.encode(np.stack([one.pixels for one in missing if one.pixels is not None]))
        for one, z0 in zip(missing, features, strict=True):
            assert one.digest is not None
            one.known, one.pixels, one.is_new = (one.digest, z0), None, True


def _kept(
    batches: Iterable[list[_Prepared]], store: FeatureStore | None, progress: Progress | None
) -> Iterator[_Prepared]:
    """Put what was encoded into the store."""
    for batch in batches:
        for one in batch:
            if store is not None and one.is_new and one.known is not None:
                store.add(one.key, *one.known)
        if progress is not None:
            progress(len(batch))
        yield from batch
