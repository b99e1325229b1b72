import gzip
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dlsr import ImageError, InputError, NoImagesError, open_images
from dlsr.images import decode as images_module
from dlsr.images import sources
from dlsr.images.decode import decode
from dlsr.images.transforms import recompress, resize
from dlsr.streaming import map_ahead


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(raw, where=(0, 0)):
    image = decode(raw)
    assert image.mode == "RGB"
    return image.getpixel(where)


RED = Image.new("RGB", (4, 3), (200, 10, 20))


# Decoding: each kind either works or gives one clear reason


def test_plain_and_grey_images():
    assert pixel(encoded(RED)) == (200, 10, 20)
    assert pixel(encoded(Image.new("L", (4, 3), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (4, 3), 1))) == (255, 255, 255)


def test_one_pixel_is_enough():
    assert resize(decode(encoded(RED.crop((0, 0, 1, 1)))), 8, "bicubic").shape == (8, 8, 3)


def test_16_bit_images_keep_their_upper_bits():
    values = np.full((3, 4), 0x80FF, np.uint16)
    assert pixel(encoded(Image.fromarray(values))) == (0x80, 0x80, 0x80)
    assert pixel(encoded(Image.fromarray(values.astype(np.int32)), "TIFF")) == (0x80, 0x80, 0x80)


def test_cmyk():
    red = pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 200
    assert red[1] < 50


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (4, 3), (200, 10, 20, 0))
    assert pixel(encoded(clear)) == (255, 255, 255)
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 200, 10, 20])
    assert pixel(encoded(palette)) == (200, 10, 20)
    assert pixel(encoded(palette, transparency=1)) == (255, 255, 255)
    assert pixel(encoded(Image.new("LA", (4, 3), (0, 0)))) == (255, 255, 255)


def test_animation_counts_as_its_first_frame():
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
def test_what_cannot_be_decoded_says_why(raw, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode(raw)
    assert "\n" not in str(caught.value)


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(images_module, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="20x20 pixels are over the limit"):
        decode(encoded(Image.new("RGB", (20, 20))))
    monkeypatch.undo()
    with pytest.raises(ImageError, match=r"decompression bomb|over the limit"):
        decode(encoded(Image.new("1", (20_000, 10_000))))


def test_the_same_pixels_from_any_kind_of_input():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for raw in (pixels, Image.fromarray(pixels), tensor, tensor / 255, encoded(Image.fromarray(pixels))):
        np.testing.assert_array_equal(np.asarray(decode(raw)), pixels)
    grey = pixels[:, :, :1]
    for raw in (grey, grey[:, :, 0], torch.from_numpy(grey[:, :, 0])):
        np.testing.assert_array_equal(np.asarray(decode(raw)), np.repeat(grey, 3, axis=2))


def test_recompress_is_jpeg_420_of_the_wanted_size():
    image = recompress(Image.effect_noise((90, 50), 80).convert("RGB"), 32, 75)
    assert image.size == (32, 32)
    raw = encoded(image, "JPEG", quality=75, subsampling="4:2:0")
    again = np.asarray(Image.open(io.BytesIO(raw)), np.int16)
    assert np.abs(again - np.asarray(image, np.int16)).mean() < 3  # recompressing alike changes almost nothing


# Sources


def test_folder_is_searched_through_and_sorted(tmp_path):
    for name in ("b/2.PNG", "a ü/1.jpg", "0.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(RED))
    (tmp_path / "notes.txt").write_text("no image")
    found = open_images(tmp_path)
    names = [item.name.removeprefix(str(tmp_path) + "/") for item in found.items]
    assert names == ["0.png", "a ü/1.jpg", "b/2.PNG"]
    assert [name.removeprefix(str(tmp_path) + "/") for name in found.ignored] == ["notes.txt"]
    assert all(pixel(item.read()) == (200, 10, 20) for item in found.items)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_tar(tmp_path, suffix):
    path = tmp_path / f"images.{suffix}"
    with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as tar:
        for name in ("x/1.png", "x/2.png", "x/readme.md"):
            raw = encoded(RED) if name.endswith("png") else b"text"
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    found = open_images(path)
    assert [item.name for item in found.items] == ["x/1.png", "x/2.png"]
    assert list(found.ignored) == ["x/readme.md"]
    assert all(pixel(item.read()) == (200, 10, 20) for item in reversed(found.items))


def test_lists_arrays_datasets_and_single_files(tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(encoded(RED))

    class Dataset(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index == 1:
                raise ValueError("broken")
            return RED, "label"

    for images in ([path, str(path)], [RED, RED], np.asarray(RED)[None].repeat(2, axis=0), path, RED, Dataset()):
        found = open_images(images)
        assert pixel(found.items[0].read()) == (200, 10, 20)
    with pytest.raises(ImageError, match="ValueError: broken"):
        open_images(Dataset()).items[1].read()


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(NoImagesError, match="no image in"):
        open_images(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(NoImagesError, match=r"a\.txt"):
        open_images(tmp_path)
    with pytest.raises(NoImagesError):
        open_images([])
    with pytest.raises(InputError, match="does not exist"):
        open_images(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot read"):
        (tmp_path / "bad.tar").write_bytes(b"no tar")
        open_images(tmp_path / "bad.tar")
    with pytest.raises(InputError, match="cannot read"):
        (tmp_path / "bad.tar.gz").write_bytes(gzip.compress(b"x" * 3000)[:30])
        open_images(tmp_path / "bad.tar.gz")
    with pytest.raises(InputError, match="int"):
        open_images(3)
    with pytest.raises(InputError, match="uint8"):
        open_images(np.zeros((2, 3, 3)))


def test_unreadable_subfolder_is_an_item_with_a_reason(tmp_path, monkeypatch):
    (tmp_path / "1.png").write_bytes(encoded(RED))
    real_walk = sources.os.walk

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "secret")))
        return real_walk(folder)

    monkeypatch.setattr(sources.os, "walk", walk)
    found = open_images(tmp_path)
    assert len(found) == 2
    with pytest.raises(ImageError, match="Permission denied"):
        found.items[0].read()


def test_map_ahead_keeps_order_and_bounds_memory():
    started = []

    def work(i):
        started.append(i)
        return -i

    results = map_ahead(work, range(100), workers=2, ahead=8)
    assert next(results) == 0
    assert len(started) <= 10
    assert list(results) == [-i for i in range(1, 100)]


def test_draft_decodes_large_jpegs_smaller(photographs):
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
