import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dlsr import ImageError, ImageTooLargeError
from dlsr.images import decode as decode_module
from dlsr.images.decode import MAX_PIXELS, decode, most_pixels, pixels_of
from dlsr.images.resizing import resize


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
    assert pixel(encoded(Image.fromarray(values), "TIFF")) == (0x80, 0x80, 0x80)
    assert pixel(b"P5 1 1 65535\n\x80\xff") == (0x80, 0x80, 0x80)
    assert pixel(b"P5 1 1 1023\n\x02\x00") == (0x80, 0x80, 0x80)


def grey_tiff(bits, strip, white_is_zero=False):
    """A grey TIFF of two pixels."""
    tags = ((256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, int(not white_is_zero)))
    tags += ((273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, len(strip)))
    head = b"II*\0" + (12).to_bytes(4, "little") + strip.ljust(4, b"\0")
    return head + len(tags).to_bytes(2, "little") + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)


def test_images_of_12_bits_are_reduced_to_their_upper_8_bits():
    raw = grey_tiff(12, b"\xab\xc1\x23")  # 0xabc and 0x123
    assert [pixel(raw, (x, 0))[0] for x in (0, 1)] == [0xAB, 0x12]


@pytest.mark.parametrize(("bits", "strip"), [(8, b"\xab\x12"), (16, b"\xcd\xab\xcd\x12")])
def test_tiffs_in_which_zero_is_white_are_inverted(bits, strip):
    """With 16 bits they were not."""
    assert [pixel(grey_tiff(bits, strip), (x, 0))[0] for x in (0, 1)] == [0xAB, 0x12]
    assert [pixel(grey_tiff(bits, strip, white_is_zero=True), (x, 0))[0] for x in (0, 1)] == [0x54, 0xED]


def test_tiffs_with_separate_planes_of_16_bits_are_read_rightly_or_refused():
    """Uncompressed ones are read by Pillow as planes of 8 bits."""

    def tiff(planes, bits, compression):
        """An RGB TIFF of one pixel, from its three planes."""
        starts = [40, 40 + len(planes[0]), 40 + len(planes[0]) + len(planes[1])]
        parts = struct.pack("<4H3I3I", bits, bits, bits, 0, *starts, *map(len, planes)) + b"".join(planes)
        tags = ((256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 3, 8), (259, 4, 1, compression), (262, 4, 1, 2))
        tags += ((273, 4, 3, 16), (277, 4, 1, 3), (278, 4, 1, 1), (279, 4, 3, 28), (284, 4, 1, 2))
        directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
        return b"II*\0" + struct.pack("<I", 8 + len(parts)) + parts + directory

    planes = [struct.pack("<H", value) for value in (0x8000, 0x4000, 0x2000)]
    assert pixel(tiff([b"\x80", b"\x40", b"\x20"], 8, compression=1)) == (0x80, 0x40, 0x20)
    assert pixel(tiff([zlib.compress(plane) for plane in planes], 16, compression=8)) == (0x80, 0x40, 0x20)
    with pytest.raises(ImageError, match="separate planes of more than 8 bits are not read; store pixel by pixel"):
        decode(tiff(planes, 16, compression=1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbagegarbage", b"Exif\0\0II*\0"])
def test_damaged_exif_data_do_not_make_an_image_unreadable(kind, exif):
    assert decode(encoded(RED, kind, exif=exif)).size == RED.size


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_image_is_turned_though_other_exif_data_are_damaged(kind):
    directory = (
        struct.pack("<H", 2) + struct.pack("<HHI4s", 0x0100, 2, 4, b"wide") + struct.pack("<HHII", 0x0112, 3, 1, 6)
    )
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(4)
    assert decode(encoded(RED, kind, exif=exif)).size == RED.size[::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_pillow_turns_them(orientation):
    image = Image.effect_noise((5, 3), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(image, exif=exif)
    with Image.open(io.BytesIO(raw)) as opened:
        assert decode(raw).tobytes() == ImageOps.exif_transpose(opened).tobytes()


def test_signed_bytes_are_refused():
    with pytest.raises(ImageError, match="signed integers have no known range"):
        decode(encoded(Image.new("L", (4, 3), 77), "TIFF", tiffinfo={339: 2}))


@pytest.mark.parametrize("dtype", [np.int32, np.int16])
def test_integers_without_a_known_range_are_refused_whatever_their_values(dtype):
    """Values from 0 to 255 were scored as black."""
    for greatest in (255, 30_000):
        values = np.linspace(0, greatest, 12).reshape(3, 4).astype(np.int32)
        raw = encoded(Image.fromarray(values), "TIFF")
        if dtype == np.int16:
            values = values.astype(np.uint16)
            raw = encoded(Image.fromarray(values), "TIFF", tiffinfo={339: 2})
        with pytest.raises(ImageError, match="no known range; convert to 8 or unsigned 16 bits"):
            decode(raw)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "I;16", "L"])
def test_images_converted_in_strips_are_converted_exactly(mode, monkeypatch, photographs):
    image = photographs[0].resize((61, 47))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 251)
    else:
        image = image.convert(mode)
        if "A" in mode:
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        elif mode == "P":
            image.info["transparency"] = bytes(range(256))
    whole = decode(image)
    assert len(set(whole.get_flattened_data())) > 20
    monkeypatch.setattr(decode_module, "_STRIP_PIXELS", 200)
    assert decode(image).tobytes() == whole.tobytes()


def test_a_transparent_colour_is_transparent():
    assert pixel(encoded(RED, transparency=(200, 10, 20))) == (255, 255, 255)


def test_an_image_given_as_such_is_not_changed():
    assert decode(RED) is not RED


@pytest.mark.parametrize("size", [(1, 80_000_000), (80_000_000, 1), (65_536, 2)])
def test_images_with_a_long_side_are_refused(size):
    """Resizing such an image takes terabytes."""
    with pytest.raises(ImageTooLargeError, match="have a side over the limit of 65535"):
        decode(encoded(Image.new("1", size)))


def test_the_longest_images_are_resized():
    for size in ((65_535, 1), (1, 65_535)):
        assert resize(decode(encoded(Image.new("L", size, 90))), 224, "bicubic").mean() == 90


def test_too_little_memory_is_an_error_of_the_image(monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fails)
    with pytest.raises(ImageError, match="not enough memory"):
        resize(RED, 8, "bilinear")
    monkeypatch.setattr(Image.Image, "load", fails)
    with pytest.raises(ImageError, match="not enough memory"):
        decode(RED)


def test_long_comments_of_ppm_files_are_refused_at_once():
    """Pillow reads them a byte at a time: 17 seconds for 30 MB."""
    pixels = bytes(300 * 300 * 3)
    for header in (b"P6\n#%b\n300 300 255\n", b"P6 300 300\n#%b\n255\n", b"P6 300 300 # %b"):
        start = time.perf_counter()
        for function in (decode, pixels_of):
            with pytest.raises(ImageError, match="header is over the limit of 65536 bytes"):
                function(header % (b"x" * 30_000_000) + pixels)
        assert time.perf_counter() - start < 2
    assert decode(b"P6\n# a # comment\n300 300\n#\n255\n" + pixels).size == (300, 300)
    assert decode(b"P4\n1000 1000\n" + b" " * 125_000).size == (1000, 1000)


@pytest.mark.parametrize(
    ("mode", "kind", "options", "most"),
    [
        ("I;16", "PNG", {"compress_level": 1}, 7),
        ("RGBA", "PNG", {"compress_level": 1}, 9),
        ("RGB", "PNG", {"compress_level": 1}, 5),
        ("RGB", "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}, 9),
        ("CMYK", "JPEG", {"progressive": True}, 12.5),
        ("RGBA", "TIFF", {"compression": "tiff_lzw"}, 12.5),
        ("RGBA", "AVIF", {"speed": 10}, 12.5),
        ("RGBA", "WEBP", {"quality": 50}, 18),
        ("RGBA", "JPEG2000", {}, 24),
    ],
)
def test_decoding_takes_bounded_memory(photographs, mode, kind, options, most):
    """The largest 16-bit grey image took 1.8 GB, which is 20 bytes a pixel."""
    side = 3000
    image = photographs[0].resize((side, side))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    raw = encoded(image.convert(mode) if mode != "I;16" else image, kind, **options)
    program = (
        "import resource, sys\nfrom dlsr.images.decode import decode\nraw = sys.stdin.buffer.read()\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\ndecode(raw)\nprint(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=raw, capture_output=True, check=True)
    a_pixel = int(done.stdout) / side**2
    assert a_pixel < most + decode_module._STRIP_PIXELS * 6 / side**2
    assert most * most_pixels(kind) < 1.12e9


def test_formats_whose_decoders_take_more_memory_may_have_fewer_pixels(monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 400)
    image = Image.new("RGB", (20, 20))
    assert decode(encoded(image)).size == (20, 20)
    for kind, most in (("WEBP", 266), ("JPEG2000", 200)):
        with pytest.raises(ImageTooLargeError, match=f"20x20 pixels are over the limit of {most}"):
            decode(encoded(image, kind))


def test_large_ppm_files_in_plain_text_are_refused():
    for raw in (b"P3 100 100 255 " + b"7 " * 30_000_000, b"P2 100 100 255\n" + b"#\n" * 15_000_000):
        with pytest.raises(ImageTooLargeError, match="bytes of plain text are over the limit"):
            decode(raw)
    assert decode(b"P3 200 200 255 " + b"7 " * 120_000).getpixel((9, 9)) == (7, 7, 7)


@pytest.fixture
def heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 10, 20))).save(buffer, quality=90)
    return buffer.getvalue()


def test_heic_is_decoded_with_its_extra(heic):
    assert np.abs(np.subtract(pixel(heic, (32, 24)), (200, 10, 20))).max() < 8


def test_heic_without_its_extra_says_what_to_install(heic, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    decode_module._register_heif.cache_clear()
    with pytest.raises(ImageError, match=r"pillow-heif is not installed; run: pip install 'dlsr\[heic\]'"):
        decode(heic)


def test_files_of_other_formats_are_named():
    with pytest.raises(ImageError, match="EPS files are not read; convert to PNG or JPEG"):
        decode(encoded(RED, "EPS"))


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


def tiled_tiff(side, tile):
    """A grey TIFF of one tile."""
    entries = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (277, 1), (322, tile), (323, tile)]
    entries += [(324, 8 + 2 + 12 * 10 + 4), (325, tile * tile)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_tiles_larger_than_their_image_count_as_pixels():
    """A tile is decoded whole: 500 MB for an image of 16 pixels a side."""
    small = tiled_tiff(16, 32) + bytes([90]) * 32**2
    assert pixels_of(small) == 32**2
    assert decode(small).getpixel((15, 15)) == (90, 90, 90)
    assert pixels_of(tiled_tiff(16, 24_000)) == 24_000**2
    with pytest.raises(ImageTooLargeError, match=f"tiles of 576000000 pixels are over the limit of {MAX_PIXELS}"):
        decode(tiled_tiff(16, 24_000))


def test_jpegs_with_very_many_scans_are_refused():
    """Each holds a decoder for the time of all pixels, and needs a dozen bytes."""
    raw = encoded(RED.resize((64, 64)), "JPEG", progressive=True)
    last = raw[raw.rindex(b"\xff\xda") : -2]
    assert decode(raw[:-2] + last * 50 + raw[-2:]).size == (64, 64)
    many = raw[:-2] + last * 100 + raw[-2:]
    for function in (decode, pixels_of):
        with pytest.raises(ImageTooLargeError, match="scans are over the limit of 100"):
            function(many)
    hidden = b"\xff\xd8\xff\xe1\x00\x08Exif\xff\xd9" + many[2:]
    with pytest.raises(ImageTooLargeError, match="scans are over the limit of 100"):
        decode(hidden)
    assert decode(raw + b"\xff\xda" * 1000).size == (64, 64)  # a film behind a photograph
    assert decode(raw[:2] + b"\xff\xfe\x0f\xa2" + b"\xff\xda" * 2000 + raw[2:]).size == (64, 64)


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
    assert draft.size == (320, 214)  # at least twice as large as it will be
    assert decode(buffer.getvalue(), 53).size == (160, 107)
    small = [np.asarray(image.resize((100, 100), Image.Resampling.BICUBIC), float) for image in (full, draft)]
    assert 0 < np.abs(small[0] - small[1]).mean() < 3
    assert decode(buffer.getvalue(), 108).size == full.size
    photographs[0].save(png := io.BytesIO(), "PNG")
    assert decode(png.getvalue(), 100).size == full.size


def test_the_number_of_pixels_is_read_from_the_header():
    assert pixels_of(encoded(RED)) == 12
    assert pixels_of(encoded(RED)[:60]) == 12  # the pixels themselves are missing
    with pytest.raises(ImageError, match="not an image"):
        pixels_of(b"no image")
    with pytest.raises(ImageTooLargeError, match="over the limit"):
        pixels_of(encoded(Image.new("1", (20_000, 10_000))))
