import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dlsr import ImageError
from dlsr.images import quality
from dlsr.images.quality import faults_of, quality_of, table_of


def faults_in(images):
    """Names of the faults of each image."""
    found = faults_of(table_of([quality_of(image)[0] for image in images]))
    return [{name for name, faulty in found.items() if faulty[i]} for i in range(len(images))]


@pytest.fixture
def photograph(photographs):
    return photographs[0].crop((0, 0, 200, 200))


def test_photographs_have_no_fault(photograph, photographs):
    assert faults_in([photograph, photographs[1].crop((0, 0, 200, 200))]) == [set(), set()]


def test_each_fault_is_found_in_an_image_that_has_it(photograph):
    grey = photograph.convert("L")
    images = [
        photograph.point(lambda value: value // 8),
        photograph.point(lambda value: 250 + value // 60),
        photograph.filter(ImageFilter.GaussianBlur(8)),
        Image.new("RGB", photograph.size, (200, 60, 60)),
        grey,
        photograph.crop((0, 0, 200, 60)),
        photograph.resize((900, 900)),
        *[photograph] * 8,
    ]
    found = faults_in(images)
    expected = ["dark", "bright", "blurry", "low-information", "grey", "odd-aspect", "odd-size"]
    for faults, name in zip(found, expected, strict=False):
        assert name in faults
    assert found[3] == {"low-information"}, "an image of one colour is not out of focus"
    assert found[4] == {"grey"}
    assert found[7:] == [set()] * 8


def test_grey_images_are_a_fault_only_among_coloured_images(photograph):
    grey, grey_as_rgb = photograph.convert("L"), photograph.convert("L").convert("RGB")
    assert faults_in([grey, grey_as_rgb, photograph, photograph]) == [{"grey"}, {"grey"}, set(), set()]
    assert faults_in([grey, grey_as_rgb, grey, photograph]) == [set()] * 4


def test_sizes_are_odd_beyond_three_interquartile_ranges(photograph):
    sides = [96, 98, 100, 102, 104]  # quartiles 98 and 102
    images = [photograph.resize((side, side)) for side in [*sides * 40, 114, 115]]
    assert [("odd-size" in faults) for faults in faults_in(images)[-2:]] == [False, True]


def test_measures_are_those_of_the_definitions(photograph):
    measured, _ = quality_of(photograph)
    pixels = np.asarray(photograph, float) / 255
    brightness = np.sqrt(pixels**2 @ [0.241, 0.691, 0.068])
    assert measured.dark_end == pytest.approx(np.percentile(brightness, 5), abs=1e-5)
    assert measured.bright_end == pytest.approx(np.percentile(brightness, 99), abs=1e-5)
    counts = np.array(photograph.histogram())
    shares = counts[counts > 0] / counts.sum()
    assert measured.entropy == pytest.approx(-(shares * np.log2(shares)).sum())
    assert (measured.width, measured.height, measured.grey) == (200, 200, False)


def test_large_images_are_measured_on_fewer_pixels(photographs, monkeypatch):
    exact, _ = quality_of(photographs[0])
    monkeypatch.setattr(quality, "MOST_BRIGHTNESSES", 20_000)
    rough, _ = quality_of(photographs[0])
    assert rough.bright_end == pytest.approx(exact.bright_end, abs=0.02)
    assert rough.bright_end != exact.bright_end


def test_the_digest_is_that_of_the_pixels_whatever_the_file(photograph):
    def digest(format):
        buffer = io.BytesIO()
        photograph.save(buffer, format)
        return quality_of(buffer.getvalue())[1]

    assert digest("PNG") == digest("BMP") == quality_of(photograph)[1]
    changed = photograph.copy()
    changed.putpixel((3, 3), (0, 0, 0))
    assert quality_of(changed)[1] != digest("PNG")
    assert quality_of(Image.new("L", (4, 8)))[1] != quality_of(Image.new("L", (8, 4)))[1]


def test_an_image_that_cannot_be_decoded_is_an_image_error():
    with pytest.raises(ImageError, match="not an image"):
        quality_of(b"no image")


def test_no_images_have_no_faults():
    assert all(len(found) == 0 for found in faults_of(table_of([])).values())
