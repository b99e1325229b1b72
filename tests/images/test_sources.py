import gzip
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dlsr import ImageError, InputError, NoImagesError, open_images
from dlsr.images import sources
from dlsr.images.decode import decode

RED = Image.new("RGB", (4, 3), (200, 10, 20))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_folder_is_searched_with_its_subfolders_in_sorted_order(tmp_path):
    for name in ("b/2.PNG", "a ü/1.jpg", "0.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(RED))
    (tmp_path / "notes.txt").write_text("no image")
    found = open_images(tmp_path)
    names = [item.name.removeprefix(str(tmp_path) + "/") for item in found.items]
    assert names == ["0.png", "a ü/1.jpg", "b/2.PNG"]
    assert [name.removeprefix(str(tmp_path) + "/") for name in found.ignored] == ["notes.txt"]
    assert all(decode(item.read()).getpixel((0, 0)) == (200, 10, 20) for item in found.items)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_images_of_a_tar_can_be_read_in_any_order(tmp_path, suffix):
    path = tmp_path / f"images.{suffix}"
    with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as tar:
        for name in ("x/1.png", "x/2.png", "x/readme.md"):
            raw = png(RED) if name.endswith("png") else b"text"
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    found = open_images(path)
    assert [item.name for item in found.items] == ["x/1.png", "x/2.png"]
    assert list(found.ignored) == ["x/readme.md"]
    assert all(decode(item.read()).getpixel((0, 0)) == (200, 10, 20) for item in reversed(found.items))


def test_lists_arrays_datasets_and_single_images_are_sources(tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(png(RED))

    class Dataset(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index == 1:
                raise ValueError("broken")
            return RED, "label"

    for images in ([path, str(path)], [RED, RED], np.asarray(RED)[None].repeat(2, axis=0), path, RED, Dataset()):
        found = open_images(images)
        assert decode(found.items[0].read()).getpixel((0, 0)) == (200, 10, 20)
    with pytest.raises(ImageError, match="ValueError: broken"):
        open_images(Dataset()).items[1].read()


def test_sources_without_images_or_of_another_type_are_refused(tmp_path):
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


def test_an_unreadable_subfolder_is_an_unreadable_image(tmp_path, monkeypatch):
    (tmp_path / "1.png").write_bytes(png(RED))
    real_walk = sources.os.walk

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "secret")))
        return real_walk(folder)

    monkeypatch.setattr(sources.os, "walk", walk)
    found = open_images(tmp_path)
    assert len(found) == 2
    with pytest.raises(ImageError, match="Permission denied"):
        found.items[0].read()
