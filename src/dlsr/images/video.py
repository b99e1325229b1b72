"""Clips: their frames as images, decoded by FFmpeg (PyAV), once and in order.

A clip is read through once without being decoded, which counts its frames and notices if it is cut short. Frames are
decoded when they are read. Reading them in their order decodes each once, also for a few readers at different places;
going back decodes from the beginning again.
Memory does not grow with the clip's length.

Only the clip's own file is read, and only as one of `_FORMATS`: formats that name other files or addresses, such as
playlists, are refused, whatever the suffix.
"""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dlsr.errors import ImageError, MissingExtraError, NoSuchImageError, SettingsError, one_line
from dlsr.images.decode import MAX_PIXELS, undecodable
from dlsr.images.reading import open_file

CLIP_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""Files with these suffixes are clips."""

_FORMATS = "avi,matroska,mov,mp4,webm"
_BUFFER_BYTES = 2**20
"""Of a clip that are read at once."""
_OUT_OF_ORDER = 16
"""Decoded frames that are kept for threads that ask for them a little late."""
_DECODERS = 3
"""At most so many places of a clip are decoded from: scores are a little ahead of the reasons for them."""
_MISSING_SECONDS = 0.5
"""A clip that ends this much before the end that it states is cut short."""


def check_every(every: int | str) -> None:
    """Check which frames are to be kept, before a clip is opened.

    Raises:
        SettingsError: if it is neither a number of frames nor of seconds.
    """
    _step(every, 1.0)


def _step(every: int | str, rate: float) -> int:
    text = str(every).strip()
    seconds = text.endswith("s")
    try:
        number = float(text[:-1]) if seconds else int(text)
    except ValueError:
        number = 0
    if not (number > 0 and math.isfinite(number)):
        raise SettingsError(f"every takes a number of frames, such as 30, or of seconds, such as 1s; got '{every}'")
    return max(1, round(number * rate)) if seconds else int(number)


@dataclass(frozen=True)
class _Survey:
    """What reading through a clip tells."""

    frames: int
    """Packets of video: one for each frame, and in old formats a few more."""
    rate: float
    """Average number of frames a second."""
    damage: str | None
    """Why frames after these cannot be read, if there should be more."""


class Clip:
    """The kept frames of a clip.

    If the clip is damaged or cut short, the first kept frame that is missing cannot be read, with the reason, and those
    after it do not exist. The length is exact once the end of the clip was reached, and before if it is undamaged.

    Args:
        path: of the clip.
        every: keeps every so many frames, such as 30, beginning with the first; or, as in `1s`, one frame in so many
            seconds, by the clip's average frame rate.

    Raises:
        MissingExtraError: without PyAV.
        SettingsError: for an `every` that is neither.
        ImageError: if the clip cannot be opened, or has no video.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: Path, every: int | str = 1) -> None:
        self._path, self._survey = path, _survey(path)
        self._step = _step(every, self._survey.rate)
        self._damage = self._survey.damage
        self._planned = self._kept_of(self._survey.frames)
        self._end: int | None = None
        """The number of frames that can be decoded, once it is known."""
        self._lock = threading.Lock()
        self._decoders: list[_Decoder] = []
        """The one that was used last is the last."""

    def __len__(self) -> int:
        return self._planned if self._end is None else min(self._planned, self._kept_of(self._end))

    def number_of(self, index: int) -> int:
        """The number of a kept frame, counted from 0, among all frames.

        Raises:
            IndexError: if there were fewer from the beginning.
        """
        return range(self._planned)[index] * self._step

    def read(self, number: int) -> Image.Image:
        """A kept frame, by its number. May be called from several threads.

        Raises:
            ImageError: if it cannot be read.
            NoSuchImageError: if it is behind the end, or behind the first frame that cannot be read.
        """
        with self._lock:
            decoded = self._decoded(number)
        # Threads convert side by side, while the next frames are decoded.
        with undecodable():
            image: Image.Image = decoded.to_image()
            return image.rotate(decoded.rotation, expand=True) if decoded.rotation else image

    def _kept_of(self, frames: int) -> int:
        """How many of so many frames are kept, with one more for the damage behind them."""
        return -(-frames // self._step) + (self._damage is not None)

    def _decoded(self, number: int) -> Any:
        for decoder in self._decoders:
            if number in decoder.late:
                return decoder.late.pop(number)
        end = self._end
        if end is None or number < end:
            decoder = self._decoder_for(number)
            frame = decoder.decoded(number)
            if frame is not None:
                return frame
            end = decoder.next
            self._reached_end(end)
        if self._damage is not None and end <= number < end + self._step:
            raise ImageError(f"from frame {end} on, this clip cannot be decoded: {self._damage}")
        raise NoSuchImageError(f"the clip ends after {end} frames")

    def _decoder_for(self, number: int) -> "_Decoder":
        """The decoder that has the shortest way to a frame; a new one if all are behind it."""
        before = [decoder for decoder in self._decoders if decoder.next <= number]
        decoder = max(before, key=lambda one: one.next) if before else _Decoder(self._decoding(), self._step)
        others = [other for other in self._decoders if other is not decoder]
        self._decoders = [*others, decoder][-_DECODERS:]
        return decoder

    def _reached_end(self, end: int) -> None:
        self._end = end
        if self._damage is None and 2 * end < self._survey.frames:
            self._damage = f"only {end} of {self._survey.frames} frames can be decoded"

    def _decoding(self) -> Iterator[Any]:
        """The frames before the first damage, in their order."""
        av = _pyav()
        try:
            with _opened(self._path) as (container, stream):
                stream.thread_type = "AUTO"
                # Otherwise decoders make up what is damaged.
                stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
                for frame in _until_error(container, stream, av.FFmpegError):
                    if frame.is_corrupt:
                        raise ImageError("its data is damaged")
                    yield frame
        except (ImageError, OSError, av.FFmpegError) as error:
            self._damage = _reason(error)


class _Decoder:
    """Decodes the frames of a clip in their order, each once.

    Args:
        frames: all of them.
        step: every so many are kept.
    """

    def __init__(self, frames: Iterator[Any], step: int) -> None:
        self._frames, self._step = frames, step
        self.next = 0
        """The number of the frame that is decoded next."""
        self.late: dict[int, Any] = {}
        """Kept frames that were passed over, by their numbers: threads may ask for them a little late."""

    def decoded(self, number: int) -> Any:
        """A frame that was not decoded before, by its number; None if the clip ends before it."""
        for frame in self._frames:
            place, self.next = self.next, self.next + 1
            if place == number:
                return frame
            if place % self._step == 0:
                self.late[place] = frame
                if len(self.late) > _OUT_OF_ORDER:
                    del self.late[min(self.late)]
        return None


def _until_error(container: Any, stream: Any, kind: type[Exception]) -> Iterator[Any]:
    """Frames in their order. An error of this kind is raised after the frames that the decoder still holds."""
    try:
        for packet in container.demux(stream):
            yield from packet.decode()
    except kind:
        yield from stream.codec_context.decode(None)
        raise


def _survey(path: Path) -> _Survey:
    av = _pyav()
    frames, end, damage = 0, 0.0, None
    with _opened(path) as (container, stream):
        try:
            for packet in container.demux():
                if packet.dts is None and not packet.size:
                    continue  # not of the file: it ends a stream
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index == stream.index:
                    frames += 1
                    damage = "it is cut short" if packet.is_corrupt else damage
        except (OSError, av.FFmpegError) as error:
            damage = _reason(error)
        stated = (container.duration or 0) / av.time_base
        if damage is None and (
            end < stated - _MISSING_SECONDS or (container.format.name == "avi" and frames < stream.frames)
        ):
            damage = f"it is cut short: it ends after {end:.1f} of {stated:.1f} seconds"
        rate = float(stream.average_rate or stream.guessed_rate or 1)
    if not frames:
        raise ImageError("it has no frames" if damage is None else damage)
    return _Survey(frames, rate, damage)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A clip, and its video stream.

    Raises:
        ImageError, OSError: as `open_clip`.
    """
    av = _pyav()
    with open_file(path) as file:
        if not file.seek(0, os.SEEK_END):
            raise ImageError("empty file")
        file.seek(0)
        try:
            container = av.open(
                file, options={"format_whitelist": _FORMATS}, metadata_errors="replace", buffer_size=_BUFFER_BYTES
            )
        except av.FFmpegError as error:
            raise ImageError(f"it is no clip, or it is cut short ({_reason(error)})") from error
        with container:
            if not container.streams.video:
                raise ImageError("it has no video")
            yield container, container.streams.video[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _pyav() -> Any:
    try:
        import av  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("av", "video") from None
    return av
