import tarfile

import pytest

from dlsr import open_images
from dlsr.bench.reproduction import Where, open_task


@pytest.fixture(scope="session")
def root(tmp_path_factory, image_folder, odd_folder):
    """A data root: `cifar10` with parts and classes, `svhn` as a tar."""
    root = tmp_path_factory.mktemp("data")
    for i, item in enumerate(open_images(image_folder).items):
        part, label = ("test" if i % 4 == 0 else "train"), ("cat" if i % 2 else "dog")
        path = root / "cifar10" / part / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.read())
    with tarfile.open(root / "svhn_crops.tar", "w") as tar:
        tar.add(odd_folder, "svhn/test")
    return root


@pytest.fixture(scope="session")
def task(root):
    return open_task("cifar10", ("svhn",), Where(root, {}))[0]
