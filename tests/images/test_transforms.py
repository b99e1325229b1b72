import io

import numpy as np
import pytest
from PIL import Image

from dlsr import ImageDataset, SettingsError, open_images
from dlsr.images.sources import failing_item
from dlsr.images.transforms import protocol_transform, read_pixels, recompress


def test_recompress_gives_a_jpeg_of_the_size_with_420_chroma():
    image = recompress(Image.effect_noise((90, 50), 80).convert("RGB"), 32, 75)
    assert image.size == (32, 32)
    image.save(buffer := io.BytesIO(), "JPEG", quality=75, subsampling="4:2:0")
    again = np.asarray(Image.open(buffer), np.int16)
    assert (
        np.abs(again - np.asarray(image, np.int16)).mean() < 3
    )  # a second compression at the same quality changes little


def test_protocols():
    noise = Image.effect_noise((90, 50), 80).convert("RGB")
    assert protocol_transform("native") is None
    matched = protocol_transform("matched", 16, 50)
    assert matched.name == "matched-16-50"
    np.testing.assert_array_equal(np.asarray(matched.apply(noise)), np.asarray(recompress(noise, 16, 50)))
    with pytest.raises(SettingsError, match="native, matched"):
        protocol_transform("other")


def test_read_pixels_skips_unreadable_images_and_says_why():
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    images = ImageDataset([*open_images([red]).items, failing_item("broken", "no reason"), *open_images([blue]).items])
    pixels, errors = read_pixels(images, 2, "bicubic")
    assert errors == [None, "no reason", None]
    np.testing.assert_array_equal(pixels[:, 0, 0], [[255, 0, 0], [0, 0, 255]])
    changed, _ = read_pixels(images, 2, "bicubic", apply=lambda image: image.point(lambda value: 255 - value))
    np.testing.assert_array_equal(changed, 255 - pixels)
    assert read_pixels(images.subset([1]), 2, "bicubic")[0].shape == (0, 2, 2, 3)
