from contextlib import closing
from importlib import metadata

import numpy as np
import pytest

from dlsr import Encoder, NoImagesError, encoder_spec, open_images
from dlsr.encoding import pipeline
from dlsr.encoding.pipeline import encode_all, encode_chunks, open_store, readable_pixels
from dlsr.images.transforms import Transform, recompress


@pytest.fixture(scope="module")
def encoder():
    return Encoder(encoder_spec("test_resnet", weights="random"), backend="torch")


def test_images_in_the_store_are_not_encoded_again(encoder, image_folder, tmp_path, monkeypatch):
    images = open_images(image_folder)
    first = encode_all(encoder, images, store=open_store(tmp_path, encoder))
    calls = []
    monkeypatch.setattr(encoder, "encode", lambda pixels: calls.append(len(pixels)))
    second = encode_all(encoder, images, store=open_store(tmp_path, encoder))
    assert calls == []
    np.testing.assert_array_equal(first.z0, second.z0)
    np.testing.assert_array_equal(first.digests, second.digests)


def test_features_of_another_image_or_encoder_or_transform_are_not_found(encoder, photographs, tmp_path):
    path = tmp_path / "image.png"
    photographs[0].crop((0, 0, 50, 50)).save(path)
    root = tmp_path / "store"

    def z0(encoder=encoder, transform=None):
        return encode_all(
            encoder, open_images(path), store=open_store(root, encoder, transform), transform=transform
        ).z0

    before = z0()
    photographs[1].crop((0, 0, 50, 50)).save(path)  # the same name with other content
    after = z0()
    assert not np.allclose(before, after)
    other_weights = Encoder(encoder_spec("test_resnet", weights="random:1"), backend="torch")
    assert not np.allclose(z0(other_weights), after)
    matched = Transform("matched-32-75", lambda image: recompress(image, 32, 75))
    assert not np.allclose(z0(transform=matched), after)
    np.testing.assert_array_equal(z0(), after)


def test_features_of_another_pooling_are_not_found(encoder, image_folder, tmp_path):
    images = open_images(image_folder).subset(range(3))
    encode_all(encoder, images, store=open_store(tmp_path, encoder))
    other = Encoder(encoder_spec("test_resnet", weights="random", pooling="mean+std+max"), backend="torch")
    assert len(open_store(tmp_path, encoder)) == 3
    assert len(open_store(tmp_path, other)) == 0
    assert encode_all(other, images, store=open_store(tmp_path, other)).z0.shape == (3, other.c)
    assert len(open_store(tmp_path, encoder)) == 3


def test_features_of_another_version_are_not_found(encoder, image_folder, tmp_path, monkeypatch):
    images = open_images(image_folder).subset(range(3))
    encode_all(encoder, images, store=open_store(tmp_path, encoder))
    real = metadata.version
    for package in ("timm", "pillow"):
        assert len(open_store(tmp_path, encoder)) == 3
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "version", lambda name, package=package: "99" if name == package else real(name))
            other = Encoder(encoder.spec, backend="torch")
            assert len(open_store(tmp_path, other)) == 0


def test_finished_features_are_kept_when_the_consumer_stops_early(encoder, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "CHUNK", 4)
    images = open_images(image_folder)
    store = open_store(tmp_path, encoder)
    with closing(encode_chunks(encoder, images.items, store=store, batch_size=4)) as chunks:
        next(chunks)
    assert len(open_store(tmp_path, encoder)) >= 4


def test_progress_counts_every_image_once(encoder, image_folder, tmp_path):
    images = open_images([*[item.name for item in open_images(image_folder).items[:5]], tmp_path / "missing.png"])
    done = []
    encode_all(encoder, images, progress=done.append)
    assert sum(done) == 6


def test_features_do_not_depend_on_the_batch(encoder, image_folder):
    images = open_images(image_folder)
    whole = encode_all(encoder, images)
    alone = next(encode_chunks(encoder, images.items[:10], batch_size=1))
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = encode_all(encoder, images.subset(order), workers=4)
    np.testing.assert_allclose(alone.z0, whole.z0[:10], atol=1e-5)
    np.testing.assert_allclose(shuffled.z0, whole.z0[order], atol=1e-5)
    np.testing.assert_array_equal(shuffled.digests, whole.digests[order])
    assert shuffled.names == [images.items[i].name for i in order]


def test_unreadable_images_keep_their_position(encoder, image_folder, tmp_path):
    good = [item.name for item in open_images(image_folder).items[:3]]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    encoded = encode_all(encoder, open_images([good[0], bad, good[1], tmp_path / "missing.png", good[2]]))
    assert encoded.readable.tolist() == [True, False, True, False, True]
    assert encoded.unreadable == {
        str(bad): "not an image, or of an unknown format",
        str(tmp_path / "missing.png"): "No such file or directory",
    }
    np.testing.assert_allclose(encoded.z0, encode_all(encoder, open_images(good)).z0, atol=1e-5)


def test_an_image_without_permission_is_unreadable(encoder, monkeypatch, image_folder):
    items = open_images(image_folder).subset([0]).items

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dlsr.images.reading.open_regular", denied)
    encoded = encode_all(encoder, open_images([items[0].name]))
    assert list(encoded.unreadable.values()) == ["Permission denied"]


def test_readable_pixels_are_of_the_first_readable_images(encoder, image_folder, tmp_path):
    good = [item.name for item in open_images(image_folder).items[:4]]
    images = open_images([tmp_path / "missing.png", *good])
    pixels = readable_pixels(encoder, images, 3)
    assert pixels.shape == (3, encoder.spec.size, encoder.spec.size, 3)
    np.testing.assert_array_equal(pixels, readable_pixels(encoder, open_images(good), 3))
    with pytest.raises(NoImagesError, match="none of 1 images can be read"):
        readable_pixels(encoder, open_images([tmp_path / "missing.png"]), 3)
