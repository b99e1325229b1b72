import asyncio
import threading
import time

import numpy as np
import pytest

from dlsr import ENCODERS, Detector, EncoderSpec
from dlsr.encoding.pipeline import readable_pixels
from dlsr.images.sources import open_images
from dlsr.serve import decoding
from dlsr.serve.bodies import EncodedImage
from dlsr.serve.decoding import SMALL_PIXELS, Decoder

SPEC = ENCODERS["efficientnet_lite0"].model_copy(update={"size": 8})
LARGE = 2 * SMALL_PIXELS


class Work:
    """Stands for decoding: takes a while, and counts what is done at a time."""

    def __init__(self, seconds=0.02):
        self.seconds, self.go, self.done = seconds, threading.Event(), []
        self.go.set()
        self._lock, self._now, self.most = threading.Lock(), 0, 0

    def __call__(self, content, spec):
        pixels = int(content)
        with self._lock:
            self._now += pixels
            self.most = max(self.most, self._now)
        time.sleep(self.seconds)
        assert self.go.wait(60)
        with self._lock:
            self._now -= pixels
            self.done.append(pixels)
        return f"{pixels} pixels"


@pytest.fixture
def work(monkeypatch):
    work = Work()
    monkeypatch.setattr(decoding, "_decode", work)
    return work


def images(*pixels):
    return [EncodedImage(f"{i}", str(n).encode(), n) for i, n in enumerate(pixels)]


def decoded(calls, workers=4, max_pixels=2 * LARGE):
    async def run():
        decoder = Decoder(workers, max_pixels)
        try:
            return await calls(decoder)
        finally:
            await decoder.stop()

    return asyncio.run(run())


def test_images_are_decoded_in_order_whatever_their_size(work):
    sizes = [5, LARGE, 7, SMALL_PIXELS, 3, LARGE, 0, 1]
    assert decoded(lambda decoder: decoder.decode(images(*sizes), SPEC)) == [f"{n} pixels" for n in sizes]


def test_pixels_in_flight_are_bounded_over_all_requests(work):
    async def calls(decoder):
        await asyncio.gather(*(decoder.decode(images(*[LARGE] * 3, 1, SMALL_PIXELS), SPEC) for _ in range(6)))

    decoded(calls)
    assert len(work.done) == 30
    assert LARGE <= work.most <= 2 * LARGE + 4 * SMALL_PIXELS


def test_small_images_do_not_wait_for_large_images(work):
    async def calls(decoder):
        work.go.clear()
        large = [asyncio.create_task(decoder.decode(images(LARGE, LARGE), SPEC)) for _ in range(4)]
        await asyncio.sleep(0.1)
        small = asyncio.create_task(decoder.decode(images(1, 2), SPEC))
        await asyncio.sleep(0.1)
        work.go.set()
        assert await small == ["1 pixels", "2 pixels"]
        early = len(work.done)
        await asyncio.gather(*large)
        return early

    assert decoded(calls) < 10


def test_a_cancelled_request_is_decoded_no_further_and_frees_its_pixels(work):
    async def calls(decoder):
        work.go.clear()
        tasks = [asyncio.create_task(decoder.decode(images(*[LARGE] * 20), SPEC)) for _ in range(3)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        work.go.set()
        assert await decoder.decode(images(2 * LARGE), SPEC) == [f"{2 * LARGE} pixels"]

    decoded(calls)
    assert work.most <= 2 * LARGE
    assert len(work.done) == 3  # the two that had begun, and the last


def test_an_image_that_needs_too_much_memory_is_an_error_in_its_place(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(EncoderSpec, "decode", lambda *_: None)
    monkeypatch.setattr(EncoderSpec, "resize", fail)
    assert decoded(lambda decoder: decoder.decode(images(1), SPEC)) == ["there is not enough memory for it"]


def test_decoded_images_are_those_of_the_pipeline(fitted, image_folder):
    encoder = Detector.load(fitted, backend="torch").extractor_.encoder
    files = open_images(image_folder).subset(range(5))
    sent = [EncodedImage("", item.read(), 1) for item in files.items]
    found = decoded(lambda decoder: decoder.decode(sent, encoder.spec))
    np.testing.assert_array_equal(np.stack(found), readable_pixels(encoder, files, 5))
