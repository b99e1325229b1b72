import io

import numpy as np
import pytest
import torch
from PIL import Image

from dlsr import ImageError, ImageTooLargeError
from dlsr.images import decode as decode_module
from dlsr.images.decode import decode, pixels_of


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(raw, where=(0, 0)):
    image = decode(raw)
    assert image.mode == "RGB"
    return image.getpixel(where)


RED = Image.new("RGB", (4, 3), (200, 10, 20))


def test_rgb_and_grey_images_become_rgb():
    assert pixel(encoded(RED)) == (200, 10, 20)
    assert pixel(encoded(Image.new("L", (4, 3), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (4, 3), 1))) == (255, 255, 255)


def test_16_bit_images_are_reduced_to_their_upper_8_bits():
    values = np.full((3, 4), 0x80FF, np.uint16)
    assert pixel(encoded(Image.fromarray(values))) == (0x80, 0x80, 0x80)
    assert pixel(encoded(Image.fromarray(values.astype(np.int32)), "TIFF")) == (0x80, 0x80, 0x80)


def test_cmyk_becomes_rgb():
    red = pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 200
    assert red[1] < 50


def test_transparent_images_are_composited_over_white():
    clear = Image.new("RGBA", (4, 3), (200, 10, 20, 0))
    assert pixel(encoded(clear)) == (255, 255, 255)
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 200, 10, 20])
    assert pixel(encoded(palette)) == (200, 10, 20)
    assert pixel(encoded(palette, transparency=1)) == (255, 255, 255)
    assert pixel(encoded(Image.new("LA", (4, 3), (0, 0)))) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "red")]
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        raw = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert pixel(raw) == (0, 0, 255), kind


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter clockwise
    turned = decode(encoded(image, exif=exif))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all", "not an image"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG")[:300], "cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 50))[:-400], "cannot be decoded"),
        (encoded(RED)[:20], "cannot be decoded"),
        (np.zeros((3, 4), np.float32), "uint8"),
        (np.zeros((3, 4, 5), np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (torch.full((3, 4, 4), -2.0), r"\[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), r"\[0, 1\]"),
        ("text", "str is not an image"),
        (encoded(Image.new("F", (3, 3), 0.5), "TIFF"), "8 bits"),
    ],
)
def test_images_that_cannot_be_decoded_raise_an_error_with_the_reason(raw, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode(raw)
    assert "\n" not in str(caught.value)


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="20x20 pixels are over the limit"):
        decode(encoded(Image.new("RGB", (20, 20))))
    monkeypatch.undo()
    with pytest.raises(ImageError, match=r"decompression bomb|over the limit"):
        decode(encoded(Image.new("1", (20_000, 10_000))))


def test_all_kinds_of_input_give_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for raw in (pixels, Image.fromarray(pixels), tensor, tensor / 255, encoded(Image.fromarray(pixels))):
        np.testing.assert_array_equal(np.asarray(decode(raw)), pixels)
    grey = pixels[:, :, :1]
    for raw in (grey, grey[:, :, 0], torch.from_numpy(grey[:, :, 0])):
        np.testing.assert_array_equal(np.asarray(decode(raw)), np.repeat(grey, 3, axis=2))


def test_draft_decodes_large_jpegs_at_reduced_size(photographs):
    buffer = io.BytesIO()
    photographs[0].save(buffer, "JPEG", quality=95)
    full, draft = decode(buffer.getvalue()), decode(buffer.getvalue(), 100)
    assert full.size == photographs[0].size == (640, 427)
    assert draft.size == (160, 107)
    assert min(draft.size) >= 100
    small = [np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC), float) for image in (full, draft)]
    assert 0 < np.abs(small[0] - small[1]).mean() < 3
    assert decode(buffer.getvalue(), 1000).size == full.size
    photographs[0].save(png := io.BytesIO(), "PNG")
    assert decode(png.getvalue(), 100).size == full.size


def test_the_number_of_pixels_is_read_from_the_header():
    assert pixels_of(encoded(RED)) == 12
    assert pixels_of(encoded(RED)[:60]) == 12  # the pixels themselves are missing
    with pytest.raises(ImageError, match="not an image"):
        pixels_of(b"no image")
    with pytest.raises(ImageTooLargeError, match="over the limit"):
        pixels_of(encoded(Image.new("1", (20_000, 10_000))))
