import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from dlsr import ArtifactError, Encoder, OutputError, encoder_spec, open_images
from dlsr.encoding import store as store_module
from dlsr.encoding.pipeline import encode_all, encode_chunks, open_store
from dlsr.encoding.store import MANY_SHARDS, FeatureStore, default_store_root
from dlsr.images.transforms import Transform, recompress


def row(i):
    return bytes([i % 256, i // 256]) + bytes(30), np.full(16, i % 256, np.uint8), np.full(3, i, np.float32)


@pytest.fixture(scope="module")
def encoder():
    return Encoder(encoder_spec("test_resnet", weights="random"), backend="torch")


def test_rows_come_back_from_disk(tmp_path):
    store = FeatureStore(tmp_path, "k", 3)
    for i in range(5):
        store.add(*row(i))
    assert store.get(row(2)[0])[1][0] == 2  # before it is written
    store.flush()
    again = FeatureStore(tmp_path, "k", 3)
    assert len(again) == 5
    digest, z0 = again.get(row(4)[0])
    np.testing.assert_array_equal(digest, row(4)[1])
    np.testing.assert_array_equal(z0, row(4)[2])
    assert again.get(row(9)[0]) is None
    assert len(FeatureStore(tmp_path, "other", 3)) == 0


def test_many_small_shards_are_merged_and_nothing_is_lost(tmp_path):
    for i in range(MANY_SHARDS + 2):
        FeatureStore(tmp_path, "k", 3).add(*row(i))
        store = FeatureStore(tmp_path, "k", 3)
        store.add(*row(i))
        store.flush()
    merged = FeatureStore(tmp_path, "k", 3)
    assert len(list((tmp_path / "k").iterdir())) <= 3
    assert len(merged) == MANY_SHARDS + 2
    for i in range(MANY_SHARDS + 2):
        assert merged.get(row(i)[0])[1][0] == i


def test_a_shard_that_another_process_is_writing_is_none_yet(tmp_path):
    store = FeatureStore(tmp_path, "k", 3)
    store.add(*row(1))
    store.flush()
    (tmp_path / "k" / ".writing-abc.safetensors").write_bytes(b"half")
    assert len(FeatureStore(tmp_path, "k", 3)) == 1


def test_two_processes_share_a_store(tmp_path):
    script = """
import sys, numpy as np
from pathlib import Path
from dlsr.encoding.store import FeatureStore
store = FeatureStore(Path(sys.argv[1]), "k", 3)
for i in range(int(sys.argv[2]), int(sys.argv[2]) + 200):
    store.add(bytes([i % 256, i // 256]) + bytes(30), np.zeros(16, np.uint8), np.full(3, i, np.float32))
    if i % 20 == 0:
        store.flush()
store.flush()
"""
    runs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(start)]) for start in (0, 100)]
    assert [run.wait() for run in runs] == [0, 0]
    store = FeatureStore(tmp_path, "k", 3)
    assert len(store) == 300
    assert all(store.get(row(i)[0])[1][0] == i for i in range(300))


def test_damaged_and_foreign_shards_are_refused(tmp_path):
    store = FeatureStore(tmp_path, "k", 3)
    store.add(*row(1))
    store.flush()
    with pytest.raises(ArtifactError, match="no feature shard"):
        FeatureStore(tmp_path, "k", 4)
    (shard,) = (tmp_path / "k").iterdir()
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="is damaged"):
        FeatureStore(tmp_path, "k", 3)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlsr.encoding.store.save_file", full)
    store = FeatureStore(tmp_path, "k", 3)
    store.add(*row(1))
    with pytest.raises(OutputError, match="No space left on device"):
        store.flush()
    assert list((tmp_path / "k").iterdir()) == []


def test_images_are_encoded_once(encoder, image_folder, tmp_path, monkeypatch):
    images = open_images(image_folder)
    first = encode_all(encoder, images, store=open_store(tmp_path, encoder))
    calls = []
    monkeypatch.setattr(encoder, "encode", lambda pixels: calls.append(len(pixels)))
    second = encode_all(encoder, images, store=open_store(tmp_path, encoder))
    assert calls == []
    np.testing.assert_array_equal(first.z0, second.z0)
    np.testing.assert_array_equal(first.digests, second.digests)


def test_nothing_stale_is_served(encoder, photographs, tmp_path):
    path = tmp_path / "image.png"
    photographs[0].crop((0, 0, 50, 50)).save(path)
    root = tmp_path / "store"

    def z0(encoder=encoder, transform=None):
        return encode_all(
            encoder, open_images(path), store=open_store(root, encoder, transform), transform=transform
        ).z0

    before = z0()
    photographs[1].crop((0, 0, 50, 50)).save(path)  # the same name, other bytes
    after = z0()
    assert not np.allclose(before, after)
    other_weights = Encoder(encoder_spec("test_resnet", weights="random:1"), backend="torch")
    assert not np.allclose(z0(other_weights), after)
    matched = Transform("matched-32-75", lambda image: recompress(image, 32, 75))
    assert not np.allclose(z0(transform=matched), after)
    np.testing.assert_array_equal(z0(), after)


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


def test_unreadable_images_keep_their_place(encoder, image_folder, tmp_path):
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


def test_permission_denied_is_a_reason(encoder, monkeypatch, image_folder):
    items = open_images(image_folder).subset([0]).items

    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    encoded = encode_all(encoder, open_images([items[0].name]))
    assert list(encoded.unreadable.values()) == ["Permission denied"]


def test_default_store_is_below_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DLSR_CACHE", str(tmp_path / "own"))
    assert default_store_root() == tmp_path / "own" / "features"
    monkeypatch.delenv("DLSR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_store_root() == tmp_path / "xdg" / "dlsr" / "features"


def test_full_shards_are_left_alone_when_small_ones_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(store_module, "MANY_SHARDS", 3)
    store = FeatureStore(tmp_path, "k", 3)
    for i in range(8):
        store.add(*row(i))
    full = set((tmp_path / "k").iterdir())
    assert len(full) == 2
    for i in range(8, 12):
        store.add(*row(i))
        store.flush()
    merged = FeatureStore(tmp_path, "k", 3)
    assert full < set((tmp_path / "k").iterdir())
    assert len(list((tmp_path / "k").iterdir())) == 3
    assert len(merged) == 12
    assert all(merged.get(row(i)[0])[1][0] == i for i in range(12))


def test_keys_that_are_sorted_in_while_others_come_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "RECENT_ROWS", 5)
    monkeypatch.setattr(store_module, "ROWS_PER_SHARD", 3)
    random = np.random.default_rng(0)
    keys = [random.bytes(32) for _ in range(100)]
    # The first half of two keys' first half is the same.
    keys[50] = keys[20][:8] + keys[50][8:]
    store = FeatureStore(tmp_path, "k", 3)
    for i, key in enumerate(keys):
        store.add(key, *row(i)[1:])
        store.add(keys[0], *row(77)[1:])  # known: of no account
        assert all(store.get(known)[1][0] == j for j, known in enumerate(keys[: i + 1]))
        assert len(store) == i + 1
    store.flush()
    again = FeatureStore(tmp_path, "k", 3)
    assert len(again) == 100
    assert all(again.get(key)[1][0] == i for i, key in enumerate(keys))
    assert again.get(random.bytes(32)) is None


def test_the_index_takes_few_bytes_a_row(tmp_path):
    import tracemalloc

    random = np.random.default_rng(0)
    for _ in range(10):
        keys = random.integers(0, 256, (10_000, 32), dtype=np.uint8)
        save_file(
            {"keys": keys, "digests": keys[:, :16].copy(), "z0": np.zeros((10_000, 3), np.float32)},
            tmp_path / f"{random.bytes(4).hex()}.safetensors",
            metadata={"schema": "1"},
        )
    (tmp_path / "k").mkdir()
    for path in tmp_path.glob("*.safetensors"):
        path.rename(tmp_path / "k" / path.name)
    tracemalloc.start()
    store = FeatureStore(tmp_path, "k", 3)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store) == 100_000
    assert used < 60 * len(store)
