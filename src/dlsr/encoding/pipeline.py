"""The pipeline from images to features: read, look up in the store, encode, keep in the store."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from dlsr.encoding.store import KEY_BYTES, FeatureStore, empty_table
from dlsr.errors import NoImagesError, NoSuchImageError, OutputError
from dlsr.images.decode import UNREADABLE, decode, reason_of, undecodable
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.images.transforms import Transform
from dlsr.method.noise import DIGEST_BYTES, pixel_digest
from dlsr.streaming import in_groups, map_ahead

if TYPE_CHECKING:
    from dlsr.encoders.encoder import Encoder

CHUNK = 128
"""Images in a chunk: as many results as may be lost when a run is killed."""
AHEAD = 128
"""Images that are read and decoded ahead of the encoder, at least."""
BATCHED_AHEAD = 64
"""Images that wait for the encoder in batches, or for earlier batches."""

Progress = Callable[[int], None]
"""Callback that gets the number of images done since its last call."""


@dataclass(frozen=True)
class Encoded:
    """Images in order, with the features of those that could be read."""

    names: list[str]
    errors: list[str | None]
    """For each name the reason why the image could not be read, or None if it could."""
    z0: NDArray[np.float32]
    """Features of the R readable images, shape `(R, c)`; memory-mapped if they are large."""
    digests: NDArray[np.uint8]
    """Digests of the readable images' pixels, from which noise is derived, shape `(R, 16)`."""
    keys: NDArray[np.uint8]
    """SHA-256 of the readable images' files, their keys in the feature store, shape `(R, 32)`."""

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Whether each image could be read, shape `(N,)`."""
        return np.array([error is None for error in self.errors], dtype=np.bool_)

    @property
    def readable_names(self) -> list[str]:
        """Names of the readable images."""
        return [name for name, error in zip(self.names, self.errors, strict=True) if error is None]

    @property
    def unreadable(self) -> dict[str, str]:
        """Reasons why images could not be read, by name."""
        return {name: error for name, error in zip(self.names, self.errors, strict=True) if error is not None}

    def check_readable(self, what: str = "images") -> None:
        """Raise NoImagesError, with the first reason and what the images are, if none can be read."""
        if not len(self.z0):
            raise NoImagesError.of_unreadable(len(self.names), what, self.unreadable.items())


@dataclass
class _Prepared:
    name: str
    key: bytes = b""
    error: str | None = None
    known: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None
    pixels: NDArray[np.uint8] | None = None
    digest: NDArray[np.uint8] | None = None
    is_new: bool = False


def open_store(root: Path | None, encoder: "Encoder", transform: Transform | None = None) -> FeatureStore | None:
    """The feature store below `root` for an encoder and transform; None if `root` is None.

    Raises:
        ArtifactError: if the store is damaged.
    """
    if root is None:
        return None
    key = hashlib.sha256(f"{encoder.key}\n{transform.name if transform else ''}".encode()).hexdigest()
    return FeatureStore(root, key, encoder.c)


def encode_chunks(
    encoder: "Encoder",
    items: Iterable[ImageItem],
    *,
    store: FeatureStore | None = None,
    transform: Transform | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    on_store_error: Callable[[OutputError], None] | None = None,
) -> Iterator[Encoded]:
    """Encode images in order, one chunk at a time, so that memory does not grow with their number.

    Args:
        encoder: turns resized images into features.
        items: images to encode, consumed lazily.
        store: looks up and keeps features; None encodes every image.
        transform: applied to each decoded image.
        batch_size: images in one call of the engine; None for the fastest number.
        workers: threads that read and decode ahead of the encoder.
        progress: callback, called with the number of images done since its last call.
        on_store_error: callback for an error of writing to the store, after which no more is written to it; None raises
            the error.

    Raises:
        OutputError: if features cannot be written to the store.
    """
    saver = Saver(store, on_store_error)

    def prepare(item: ImageItem) -> _Prepared | None:
        return _prepare(item, encoder, store, transform)

    def encode(batch: list[_Prepared]) -> list[_Prepared]:
        _encode(batch, encoder)
        return batch

    size, streams = batch_size or encoder.batch, encoder.streams
    with (
        closing(map_ahead(prepare, items, workers, ahead=max(AHEAD, 2 * size * streams))) as prepared,
        closing(
            map_ahead(encode, _batches(prepared, size), streams, ahead=max(2 * streams, BATCHED_AHEAD // size))
        ) as batches,
        saver,
    ):
        for chunk in in_groups(_saved(batches, saver, progress), CHUNK):
            known = [(*image.known, image.key) for image in chunk if image.known is not None]
            yield Encoded(
                names=[image.name for image in chunk],
                errors=[image.error for image in chunk],
                z0=np.array([z0 for _, z0, _ in known], np.float32).reshape(-1, encoder.c),
                digests=np.array([digest for digest, _, _ in known], np.uint8).reshape(-1, DIGEST_BYTES),
                keys=np.frombuffer(b"".join(key for _, _, key in known), np.uint8).reshape(-1, KEY_BYTES),
            )


class Saver:
    """Adds features to the store, and flushes it at the end of a block, also after an error.

    Args:
        store: None adds nothing.
        on_error: see `encode_chunks`.
    """

    def __init__(self, store: FeatureStore | None, on_error: Callable[[OutputError], None] | None) -> None:
        self._store = store
        self._on_error = on_error

    def add(self, key: bytes, digest: NDArray[np.uint8], z0: NDArray[np.float32]) -> None:
        """Add the features of an image that was encoded, see `FeatureStore.add`.

        Raises:
            OutputError: if the store cannot be written, and there is no callback.
        """
        if self._store is not None:
            with self._reported():
                self._store.add(key, digest, z0)

    def add_all(self, encoded: Encoded) -> None:
        """Add the features of images that were encoded. Raises as `add`."""
        for key, digest, z0 in zip(encoded.keys, encoded.digests, encoded.z0, strict=True):
            self.add(key.tobytes(), digest, z0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Flush the store. Its error must not hide that of the block."""
        if self._store is not None:
            with self._reported() if kind is None else suppress(OutputError):
                self._store.flush()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OutputError as error:
            if self._on_error is None:
                raise
            self._store = None
            self._on_error(error)


def encode_all(
    encoder: "Encoder",
    images: ImageDataset,
    *,
    store: FeatureStore | None = None,
    transform: Transform | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Encoded:
    """Encode all images at once, see `encode_chunks`.

    Raises:
        OutputError: if features cannot be written to the store, or are too large for memory and for the disk.
    """
    chunks = encode_chunks(encoder, images.items, store=store, transform=transform, workers=workers, progress=progress)
    return joined(chunks, len(images), encoder.c, store.folder if store else None)


def joined(chunks: Iterable[Encoded], images: int, c: int, folder: Path | None) -> Encoded:
    """Join chunks.

    Args:
        chunks: consecutive chunks of images.
        images: number of images in all chunks together, or more.
        c: dimension of the features.
        folder: where features that are too large for memory go, see `dlsr.encoding.store.empty_table`.

    Raises:
        OutputError: if features are too large for memory and for the disk.
    """
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


def readable_pixels(encoder: "Encoder", images: ImageDataset, limit: int, workers: int = 2) -> NDArray[np.uint8]:
    """The first `limit` readable images, resized for an encoder: uint8 of shape `(n, size, size, 3)`, `n <= limit`.

    Raises:
        NoImagesError: if no image can be read.
    """
    pixels: list[NDArray[np.uint8]] = []
    errors: list[tuple[str, str]] = []
    for image in map_ahead(lambda item: _prepare(item, encoder, None, None), images.items, workers, ahead=AHEAD):
        if image is not None and image.pixels is not None:
            pixels.append(image.pixels)
        if image is not None and image.error is not None:
            errors.append((image.name, image.error))
        if len(pixels) == limit:
            break
    if not pixels:
        raise NoImagesError.of_unreadable(len(images), "images", errors)
    return np.stack(pixels)


def read_keyed(item: ImageItem) -> tuple[bytes, bytes | Image]:
    """The key of an image in the feature store, and its file's bytes; or the image, if it is given without a file.

    Raises:
        ImageError, OSError: if it cannot be read.
    """
    source = item.read()
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest(), source
    image = decode(source)
    return hashlib.sha256(image.tobytes() + repr(image.size).encode()).digest(), image


def _prepare(
    item: ImageItem, encoder: "Encoder", store: FeatureStore | None, transform: Transform | None
) -> _Prepared | None:
    try:
        key, source = read_keyed(item)
        known = store.get(key) if store is not None else None
        if known is not None:
            return _Prepared(item.name, key, known=known)
        image = source if isinstance(source, Image) else encoder.spec.decode(source)
        if transform is not None:
            with undecodable():
                image = transform.apply(image)
        pixels = encoder.spec.resize(image)
        # Hashed in the threads that decode, so that the engine need not wait.
        return _Prepared(item.name, key, pixels=pixels, digest=pixel_digest(pixels))
    except NoSuchImageError:
        return None
    except UNREADABLE as error:
        return _Prepared(item.name, error=reason_of(error))


def _batches(prepared: Iterable[_Prepared | None], size: int) -> Iterator[list[_Prepared]]:
    """Images in order, in groups of which at most `size` images need encoding."""
    batch: list[_Prepared] = []
    missing = 0
    for image in prepared:
        if image is None:
            continue
        batch.append(image)
        missing += image.pixels is not None
        if missing == size or len(batch) == CHUNK:
            yield batch
            batch, missing = [], 0
    if batch:
        yield batch


def _encode(batch: list[_Prepared], encoder: "Encoder") -> None:
    """Encode the images that are not in the store."""
    missing = [image for image in batch if image.pixels is not None]
    if missing:
        features = encoder.encode(np.stack([image.pixels for image in missing if image.pixels is not None]))
        for image, z0 in zip(missing, features, strict=True):
            assert image.digest is not None
            image.known, image.pixels, image.is_new = (image.digest, z0), None, True


def _saved(batches: Iterable[list[_Prepared]], saver: Saver, progress: Progress | None) -> Iterator[_Prepared]:
    """Add newly encoded features to the store."""
    for batch in batches:
        for image in batch:
            if image.is_new and image.known is not None:
                saver.add(image.key, *image.known)
        if progress is not None:
            progress(len(batch))
        yield from batch
