import io
import struct
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from dlsr.calibration.two_samples import property_tests
from dlsr.errors import ImageError
from dlsr.images.properties import MEASURED_SIDE, measure, properties_of
from dlsr.images.sources import ImageDataset, ImageItem
from shared import patches


def encoded(image, kind="JPEG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def dataset(files):
    return ImageDataset([ImageItem(str(i), partial(lambda raw: raw, raw)) for i, raw in enumerate(files)])


CHANGES = {
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "sharpness": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "saturation": lambda image: image.convert("L"),
    "warmth": lambda image: Image.merge("RGB", image.split()[::-1]),
    "width": lambda image: image.resize((50, 50)),
    "aspect ratio": lambda image: image.crop((0, 0, 40, 34)),
}


@pytest.fixture(scope="module")
def photo_patches(photographs):
    return [Image.fromarray(patch) for patch in patches(photographs[0], 240, side=40, seed=3)]


def moved(before, after):
    tests = property_tests(measure(dataset(before)).properties, measure(dataset(after)).properties)
    return {test.name for test in tests if test.p_value <= 0.001}


def test_nothing_moves_between_two_halves_of_the_same_images(photo_patches):
    files = [encoded(image) for image in photo_patches]
    assert moved(files[:120], files[120:]) == set()


@pytest.mark.parametrize("name", CHANGES)
def test_a_property_is_seen_to_move_when_it_is_changed(photo_patches, name):
    before = [encoded(image) for image in photo_patches[:120]]
    assert name in moved(before, [encoded(CHANGES[name](image)) for image in photo_patches[120:]])


def test_darker_images_are_not_called_blurred_and_blurred_ones_not_dark(photo_patches):
    before = [encoded(image) for image in photo_patches[:120]]
    darker = [encoded(CHANGES["brightness"](image)) for image in photo_patches[120:]]
    assert not {"sharpness", "saturation", "warmth", "width"} & moved(before, darker)
    blurred = [encoded(CHANGES["sharpness"](image)) for image in photo_patches[120:]]
    assert not {"brightness", "warmth", "width", "file type"} & moved(before, blurred)


def test_the_same_images_saved_as_png_move_in_nothing_but_the_file(photo_patches):
    before = [encoded(image) for image in photo_patches[:120]]
    after = [encoded(image, "PNG") for image in photo_patches[120:]]
    assert {"file type", "file size"} <= moved(before, after)
    assert not {"brightness", "contrast", "width", "warmth"} & moved(before, after)


def test_properties_of_known_pixels():
    red = properties_of(np.full((4, 8, 3), (255, 0, 0), np.uint8))
    assert red["brightness"] == pytest.approx(0.299, abs=0.002)
    assert (red["contrast"], red["sharpness"], red["saturation"], red["warmth"]) == (0, 0, 1, 1)
    assert (red["width"], red["height"], red["aspect ratio"]) == (8, 4, 2)
    black = properties_of(np.zeros((4, 4), np.uint8))
    assert (black["brightness"], black["saturation"], black["warmth"]) == (0, 0, 0)
    checkerboard = np.indices((8, 8)).sum(axis=0) % 2 * 255
    assert properties_of(checkerboard.astype(np.uint8))["contrast"] == pytest.approx(0.5)


def test_sharpness_is_the_variance_of_the_laplacian_over_that_of_the_grey_values():
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    padded = np.pad(grey.astype(float), 1, mode="edge")
    laplacian = np.array(
        [
            [
                padded[i - 1, j] + padded[i + 1, j] + padded[i, j - 1] + padded[i, j + 1] - 4 * padded[i, j]
                for j in range(1, 8)
            ]
            for i in range(1, 10)
        ]
    )
    assert properties_of(grey)["sharpness"] == pytest.approx(laplacian.var() / grey.var(), rel=1e-4)


def test_the_size_is_that_of_the_whole_image_though_large_ones_are_measured_reduced():
    large = properties_of(np.zeros((10, 3 * MEASURED_SIDE), np.uint8))
    assert (large["width"], large["height"]) == (3 * MEASURED_SIDE, 10)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "size"), [(3, (1200, 300)), (6, (300, 1200)), (9, (1200, 300))])
def test_the_size_is_that_of_the_upright_image(kind, orientation, size):
    """Pillow swaps the sides of a TIFF itself, and 9 is no orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 300)).save(buffer, kind, exif=exif)
    found = properties_of(buffer.getvalue())
    assert (found["width"], found["height"], found["aspect ratio"]) == (*size, size[0] / size[1])


def test_only_files_have_a_type_and_a_size(photo_patches):
    raw = encoded(photo_patches[0], "PNG")
    assert properties_of(raw)["file type"] == "PNG"
    assert properties_of(raw)["file size"] == len(raw)
    assert not {"file type", "file size"} & set(properties_of(photo_patches[0]))
    mixed = measure(dataset([raw, photo_patches[1]]))
    assert "brightness" in mixed.properties
    assert "file type" not in mixed.properties


def test_unreadable_images_are_named_with_the_reason(photo_patches):
    done = []
    measured = measure(dataset([b"", encoded(photo_patches[0]), b"text"]), progress=done.append)
    assert measured.unreadable == {"0": "empty file", "2": "not an image, or of an unknown format"}
    assert all(len(values) == 1 for values in measured.properties.values())
    assert sum(done) == 3
    assert measure(dataset([b""])).properties == {}
    with pytest.raises(ImageError, match="empty file"):
        properties_of(b"")


def test_an_image_is_measured_by_the_format_that_it_is_decoded_in():
    """A TGA can be a cursor, too, to Pillow: here one of 1.8 thousand million pixels."""
    bitmap = struct.pack("<IiiHHIIiiII", 40, 30_000, 120_000, 1, 24, 0, 0, 0, 0, 0, 0)
    pixels = (struct.pack("<I", 22) + bitmap).ljust(8 * 8 * 3, b"\0")
    raw = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0x100, 0, 0, 0, 0, 8, 8, 24, 0) + pixels
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(raw))
    found = properties_of(raw)
    assert (found["width"], found["height"], found["file type"]) == (8, 8, "TGA")
