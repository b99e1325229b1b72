import io

import numpy as np
import pytest
from PIL import Image

from dlsr import open_images
from dlsr.encoding.examples import Examples, choose_examples, more_examples, thumbnail
from dlsr.encoding.pipeline import Encoded


def encoded(z0, names):
    errors = [None if name != "broken" else "no reason" for name in names]
    return Encoded(names, errors, np.asarray(z0, np.float32), np.zeros((len(z0), 16)), np.zeros((len(z0), 32)))


def test_a_thumbnail_is_a_small_jpeg(photographs):
    with Image.open(io.BytesIO(thumbnail(photographs[0], 50))) as small:
        assert small.format == "JPEG"
        assert max(small.size) == 50


@pytest.fixture
def examples():
    images = open_images([Image.new("RGB", (4, 4), colour) for colour in ("red", "white", "lime", "blue")])
    return choose_examples(images, encoded([[0, 0], [1, 0], [5, 0]], ["red", "broken", "lime", "blue"]), 10, seed=0)


def test_examples_are_readable_images_with_their_own_features_and_thumbnails(examples):
    assert sorted(examples.names) == ["blue", "lime", "red"]
    pixels = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
    for name, z0, content in zip(examples.names, examples.z0, examples.thumbnails, strict=True):
        assert z0.tolist() == {"red": [0, 0], "lime": [1, 0], "blue": [5, 0]}[name]
        shown = Image.open(io.BytesIO(content)).getpixel((1, 1))
        assert np.abs(np.subtract(shown, pixels[name])).max() < 10


def test_the_nearest_examples_come_first(examples):
    nearest = examples.nearest(np.array([[0.9, 0.0], [9.0, 9.0]], np.float32), 2)
    assert [[examples.names[i] for i in found] for found in nearest] == [["lime", "red"], ["blue", "lime"]]
    assert examples.nearest(np.zeros((1, 2), np.float32), 99).shape == (1, 3)


def test_examples_kept_when_images_are_added_are_drawn_from_all_earlier_ones():
    """They were the first ones by name, so of the first classes alone."""
    names = [f"{i:03}.png" for i in range(400)]
    images = open_images([Image.new("RGB", (8, 8))] * 400)
    rows = encoded(np.arange(800).reshape(400, 2), names)
    before = choose_examples(images, rows, 60, seed=0)
    added = encoded(np.zeros((400, 2)), [f"new {name}" for name in names])
    after = more_examples(before, 400, images, added, 60, seed=0)
    kept = [name for name in after.names if name in before.names]
    places = [before.names.index(name) for name in kept]
    assert len(after.names) == 60
    assert 20 < len(kept) < 40
    assert 20 < np.mean(places) < 40, "not only the first"
    assert [row.tolist() for row in after.z0[: len(kept)]] == [rows.z0[names.index(name)].tolist() for name in kept]


def test_examples_come_back_from_their_arrays(examples):
    again = Examples.of(examples.arrays())
    assert (again.names, again.thumbnails) == (examples.names, examples.thumbnails)
    np.testing.assert_array_equal(again.z0, examples.z0)
