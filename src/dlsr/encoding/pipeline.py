"""The pipeline from images to features: read, look up in the store, encode, keep in the store."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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

    def positions_in(self, images: ImageDataset) -> list[int]:
        """Positions of the images in the dataset that was encoded.

        A clip may end before it seemed to: its last frames are in the dataset, but do not exist.
        """
        positions: list[int] = []
        for position, item in enumerate(images.items):
            if len(positions) < len(self.names) and item.name == self.names[len(positions)]:
                positions.append(position)
        return positions

    def check_readable(self, what: str = "images") -> None:
        """Raise NoImagesError, with the first reason and what the images are, if none can be read."""
        if not len(self.z0):
            raise NoImagesError.of_unreadable(len(self.names), what, self.unreadable.items())


@dataclass
class Prepared:
    """An image on its way to features."""

    name: str
    key: bytes = b""
    """In the feature store."""
    error: str | None = None
    """Why it cannot be read."""
    known: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None
    """Digest and features."""
    pixels: NDArray[np.uint8] | None = None
    """For the encoder, if it has to be encoded."""
    digest: NDArray[np.uint8] | None = None
    """Of the pixels."""
    is_new: bool = False
    """Whether its features are not in the store yet."""
    shown: Image | None = None
    """For people, if they are to see it."""

    def encoded(self, z0: NDArray[np.float32]) -> None:
        """Keep its features, shape `(c,)`, in place of the pixels that they were encoded from."""
        assert self.digest is not None
        self.known, self.pixels, self.is_new = (self.digest, z0), None, True


def encoded_of(images: Sequence[Prepared], c: int) -> Encoded:
    """Images that were encoded or cannot be read, with features of `c` dimensions."""
    known = [(*image.known, image.key) for image in images if image.known is not None]
    return Encoded(
        names=[image.name for image in images],
        errors=[image.error for image in images],
        z0=np.array([z0 for _, z0, _ in known], np.float32).reshape(-1, c),
        digests=np.array([digest for digest, _, _ in known], np.uint8).reshape(-1, DIGEST_BYTES),
        keys=np.frombuffer(b"".join(key for _, _, key in known), np.uint8).reshape(-1, KEY_BYTES),
    )


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

    def read(item: ImageItem) -> Prepared | None:
        return prepare(item, encoder, store, transform)

    def encode(batch: list[Prepared]) -> list[Prepared]:
        _encode(batch, encoder)
        return batch

    size, streams = batch_size or encoder.batch, encoder.streams
    with (
        closing(map_ahead(read, items, workers, ahead=max(AHEAD, 2 * size * streams))) as prepared,
        closing(
            map_ahead(encode, _batches(prepared, size), streams, ahead=max(2 * streams, BATCHED_AHEAD // size))
        ) as batches,
        saver,
    ):
        for chunk in in_groups(_saved(batches, saver, progress), CHUNK):
            yield encoded_of(chunk, encoder.c)


class Saver:
    """Adds features to the store, and flushes it at the end of a block, also after an error.

    Args:
        store: None adds nothing.
        on_error: see `encode_chunks`.
    """

    def __init__(self, store: FeatureStore | None, on_error: Callable[[OutputError], None] | None) -> None:
        self._store = store
        self._on_error = on_error

    def add(self, image: Prepared) -> None:
        """Add the features of an image that was encoded.

        Raises:
            OutputError: if the store cannot be written, and there is no callback.
        """
        if self._store is not None and image.is_new and image.known is not None:
            with self._reported():
                self._store.add(image.key, *image.known)

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
    for image in map_ahead(lambda item: prepare(item, encoder), images.items, workers, ahead=AHEAD):
        if image is not None and image.pixels is not None:
            pixels.append(image.pixels)
        if image is not None and image.error is not None:
            errors.append((image.name, image.error))
        if len(pixels) == limit:
            break
    if not pixels:
        raise NoImagesError.of_unreadable(len(images), "images", errors)
    return np.stack(pixels)


def prepare(
    item: ImageItem,
    encoder: "Encoder",
    store: FeatureStore | None = None,
    transform: Transform | None = None,
    *,
    shown: int | None = None,
) -> Prepared | None:
    """Read an image, and decode it unless its features are known.

    Args:
        item: the image.
        encoder: as for `encode_chunks`, as are the next two.
        store: see there.
        transform: see there.
        shown: also keep the image for people, its longer side at most so many pixels.

    Returns:
        The image, with the reason if it cannot be read; None for a frame behind the end of a clip.
    """
    try:
        raw = item.read()
        image = None
        if not isinstance(raw, bytes):
            image = decode(raw)
            raw = image.tobytes() + repr(image.size).encode()
        key = hashlib.sha256(raw).digest()
        known = store.get(key) if store is not None else None
        if known is not None:
            return Prepared(item.name, key, known=known)
        image = image or encoder.spec.decode(raw)
        if transform is not None:
            with undecodable():
                image = transform.apply(image)
        pixels = encoder.spec.resize(image)
        # Hashed in the threads that decode, so that the engine need not wait.
        prepared = Prepared(item.name, key, pixels=pixels, digest=pixel_digest(pixels))
        if shown is not None:
            prepared.shown = image.copy()
            prepared.shown.thumbnail((shown, shown))
        return prepared
    except NoSuchImageError:
        return None
    except UNREADABLE as error:
        return Prepared(item.name, error=reason_of(error))


def _batches(prepared: Iterable[Prepared | None], size: int) -> Iterator[list[Prepared]]:
    """Images in order, in groups of which at most `size` images need encoding."""
    batch: list[Prepared] = []
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


def _encode(batch: list[Prepared], encoder: "Encoder") -> None:
    """Encode the images that are not in the store."""
    missing = [image for image in batch if image.pixels is not None]
    if missing:
        features = encoder.encode(np.stack([image.pixels for image in missing if image.pixels is not None]))
        for image, z0 in zip(missing, features, strict=True):
            image.encoded(z0)


def _saved(batches: Iterable[list[Prepared]], saver: Saver, progress: Progress | None) -> Iterator[Prepared]:
    """Add newly encoded features to the store."""
    for batch in batches:
        for image in batch:
            saver.add(image)
        if progress is not None:
            progress(len(batch))
        yield from batch
