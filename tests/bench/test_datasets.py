import hashlib
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlsr import InputError, MissingExtraError, SettingsError, open_images
from dlsr.bench.datasets import DATASETS, annotated_classes, labels_of, open_dataset
from dlsr.bench.paper import PAPER


def test_a_dataset_is_found_with_its_parts_and_labels(root):
    train, test = open_dataset("cifar10", root, part="train"), open_dataset("cifar10", root)
    assert (len(train.images), len(test.images)) == (90, 30)
    assert train.labels is not None
    assert ("cat", "dog")[train.labels[0]] in train.images.items[0].name
    assert train.remarks == ("90 images; the whole dataset has 50000",)
    assert len(open_dataset("svhn", root).images) == 40
    with pytest.raises(InputError, match=r"get it from https://github.com/zalandoresearch.*--dataset fmnist=PATH"):
        open_dataset("fmnist", root)
    with pytest.raises(SettingsError, match="choose one of cifar10, "):
        open_dataset("cifar", root)
    assert len(open_dataset("fmnist", None, places={"fmnist": root / "svhn_crops.tar"}).images) == 40


def test_an_id_dataset_that_is_not_split_is_refused(tmp_path, photographs):
    folder = tmp_path / "test" / "cifar10"  # not the folder that is meant
    (folder / "train").mkdir(parents=True)
    photographs[0].crop((0, 0, 8, 8)).save(folder / "train" / "a.png")
    with pytest.raises(InputError, match="has no folder 'test' or 'val'; put its test images there"):
        open_dataset("cifar10", folder.parent)
    (folder / "train").rename(folder / "val")
    with pytest.raises(InputError, match="has no folder 'train'; put its train images there"):
        open_dataset("cifar10", folder.parent, part="train")
    assert len(open_dataset("cifar10", folder.parent).images) == 1
    places = {"celeba": folder}
    with pytest.raises(InputError, match=r"train images there, or list_eval_partition\.txt beside them"):
        open_dataset("celeba", None, part="train", places=places)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_file_tells_the_parts_of_celeba(tmp_path, photographs, part):
    (tmp_path / "celeba" / "img").mkdir(parents=True)
    for i in range(6):
        photographs[0].crop((0, 0, 8, 8)).save(tmp_path / "celeba" / "img" / f"{i}.jpg")
    lines = [f"{i}.jpg {number}\n" for i, number in enumerate((0, 0, 0, 1, 2, 2))]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("".join(lines))
    chosen = open_dataset("celeba", tmp_path, part=part).images.items
    assert [Path(item.name).stem for item in chosen] == {"train": ["0", "1", "2"], "test": ["4", "5"]}[part]


def test_the_docs_list_every_dataset():
    table = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    for info in DATASETS.values():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{info.name}` |")]
        assert all(f"`{alias}`" in row for alias in info.aliases)
        assert f"| {info.test_images} | {info.where} |" in row
        assert ("torchvision" in row) == (info.torchvision is not None)
        assert info.hub is None or f"`{info.hub.repo}`" in row


def test_no_dataset_points_to_google_drive():
    assert not [info for info in DATASETS.values() if re.search(r"drive\.google|googleusercontent", info.where)]
    needed = {name for table in PAPER for name in (*table.ood, table.id)}
    assert needed <= DATASETS.keys()


@pytest.mark.parametrize("tar", [True, False])
def test_classes_that_tiny_imagenet_shares_with_cifar10_are_removed_with_a_remark(tmp_path, photographs, tar):
    folder = tmp_path / "tiny-imagenet"
    (folder / "val").mkdir(parents=True)
    for name in ("a", "b", "c"):
        photographs[0].crop((0, 0, 64, 64)).save(folder / "val" / f"{name}.JPEG")
    lines = ("a.JPEG\tn02123045\t0\t0", "b.JPEG\tn01443537\t0\t0", "c.JPEG\tn02099601\t0\t0")
    (folder / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    if tar:
        with tarfile.open(tmp_path / "tiny_imagenet_val.tar", "w") as file:
            file.add(folder, "tiny")
        folder.rename(tmp_path / "elsewhere")
    found = open_dataset("tiny-imagenet", tmp_path, against="cifar10")
    assert [item.name.rsplit("/")[-1] for item in found.images.items] == ["b.JPEG"]
    assert found.remarks[0] == "2 images of classes that show what CIFAR-10 shows were removed"
    assert len(open_dataset("tiny-imagenet", tmp_path, against="celeba").images) == 3


def test_datasets_of_torchvision_are_read(tmp_path, monkeypatch):
    from torchvision import datasets

    class Fake:
        def __init__(self, root, train, download):
            if not download:
                raise RuntimeError("Dataset not found")
            self.targets = [3, 1]

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.new("L", (28, 28), index * 200), self.targets[index]

    monkeypatch.setattr(datasets, "KMNIST", Fake)
    with pytest.raises(InputError, match="--download"):
        open_dataset("kmnist", tmp_path)
    found = open_dataset("kmnist", tmp_path, download=True)
    assert list(found.labels) == [3, 1]
    assert found.images.items[1].read().getpixel((0, 0)) == 200


@pytest.fixture
def hub(monkeypatch, tmp_path, photographs):
    """`datasets` reads a Parquet file instead of the hub; returns the list of requests."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["n02123045", "n01443537", "n02099601"])}
    )
    images = [photographs[0].crop((i, 0, i + 40, 40)) for i in range(3)]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2]}, features)
    table.to_parquet(tmp_path / "images.parquet")
    requests = []

    def load(repo, config, *, split, cache_dir):
        requests.append((repo, config, split))
        if repo == "ylecun/mnist":
            raise ConnectionError("cannot reach\nthe hub")
        return datasets.Dataset.from_parquet(str(tmp_path / "images.parquet"), features=features, cache_dir=cache_dir)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return requests


def test_datasets_are_downloaded_from_the_hugging_face_hub(hub, tmp_path, photographs):
    found = open_dataset("tiny-imagenet", tmp_path, download=True)
    assert hub == [("zh-plus/tiny-imagenet", None, "valid")]
    assert list(found.labels) == [0, 1, 2]
    assert found.remarks[0] == "from the Hugging Face hub, zh-plus/tiny-imagenet"
    np.testing.assert_array_equal(np.asarray(found.images.items[2].read()), photographs[0].crop((2, 0, 42, 40)))
    against = open_dataset("tiny-imagenet", tmp_path, against="cifar10", download=True)
    assert [item.name for item in against.images.items] == ["1"]
    assert "2 images of classes that show what CIFAR-10 shows were removed" in against.remarks


def test_the_hub_is_tried_if_torchvision_cannot_download(hub, tmp_path, monkeypatch):
    from torchvision import datasets

    def dead(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(datasets, "KMNIST", dead)
    monkeypatch.setattr(datasets, "MNIST", dead)
    assert "from the Hugging Face hub, tanganke/kmnist" in open_dataset("kmnist", tmp_path, download=True).remarks
    with pytest.raises(InputError, match="cannot get ylecun/mnist from the Hugging Face hub: cannot reach the hub"):
        open_dataset("mnist", tmp_path, download=True)
    with pytest.raises(InputError, match="or download it from torchvision or the Hugging Face hub with --download"):
        open_dataset("kmnist", tmp_path)


def test_without_the_package_datasets_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dlsr\[hub\]'"):
        open_dataset("celeba", tmp_path, download=True)


def test_the_sha256_of_an_official_archive_is_checked(tmp_path, odd_folder, monkeypatch):
    archive = tmp_path / "dtd-r1.0.1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(odd_folder, "dtd/images/banded")
    with pytest.raises(
        InputError, match=r"the official dtd-r1\.0\.1\.tar\.gz e42855a52a49.*get it again from https://www"
    ):
        open_dataset("textures", tmp_path)
    own = {"dtd-r1.0.1.tar.gz": hashlib.sha256(archive.read_bytes()).hexdigest()}
    monkeypatch.setitem(DATASETS, "textures", replace(DATASETS["textures"], archives=own))
    assert len(open_dataset("textures", tmp_path).images) == 40


def test_labels_need_more_than_one_folder(odd_folder):
    assert labels_of(open_images(odd_folder)) is None


@pytest.mark.parametrize("name", ["/etc/hostname", "latin.txt"])
def test_an_annotations_file_that_cannot_be_read_is_one_line(tmp_path, name):
    (tmp_path / "latin.txt").write_bytes(b"a.png\tcaf\xe9\n")
    with pytest.raises(InputError, match="give a folder or tar with a UTF-8 file of this name"):
        annotated_classes(tmp_path, name)


def test_a_tar_that_was_cut_is_one_line(tmp_path):
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        tar.add(__file__, "tiny/other.py")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "whole.tar.gz").read_bytes()[:300])
    with pytest.raises(InputError, match=r"cannot read 'val_annotations.txt'"):
        annotated_classes(tmp_path / "cut.tar.gz", "val_annotations.txt")


def test_a_dataset_that_is_no_tar_is_one_line(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"cannot read 'val_annotations.txt'"):
        annotated_classes(tmp_path / "photo.png", "val_annotations.txt")
