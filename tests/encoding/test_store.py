import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dlsr import ArtifactError, OutputError
from dlsr.encoding import store as store_module
from dlsr.encoding.store import FLUSH_SECONDS, MANY_SHARDS, FeatureStore, default_store_root


def entry(i):
    return bytes([i % 256, i // 256]) + bytes(30), np.full(16, i % 256, np.uint8), np.full(3, i, np.float32)


def test_entries_are_found_before_and_after_they_are_written(tmp_path):
    store = FeatureStore(tmp_path, "k", 3)
    for i in range(5):
        store.add(*entry(i))
    assert store.get(entry(2)[0])[1][0] == 2
    store.flush()
    again = FeatureStore(tmp_path, "k", 3)
    assert len(again) == 5
    digest, z0 = again.get(entry(4)[0])
    np.testing.assert_array_equal(digest, entry(4)[1])
    np.testing.assert_array_equal(z0, entry(4)[2])
    assert again.get(entry(9)[0]) is None
    assert len(FeatureStore(tmp_path, "other", 3)) == 0


def test_many_small_shards_are_merged_without_loss(tmp_path):
    for i in range(MANY_SHARDS + 2):
        store = FeatureStore(tmp_path, "k", 3)
        store.add(*entry(i))
        store.flush()
    merged = FeatureStore(tmp_path, "k", 3)
    assert len(list((tmp_path / "k").iterdir())) <= 3
    assert len(merged) == MANY_SHARDS + 2
    for i in range(MANY_SHARDS + 2):
        assert merged.get(entry(i)[0])[1][0] == i


def test_shards_of_other_users_are_not_merged(tmp_path, monkeypatch):
    """They cannot be deleted in a shared folder: each start raised an error, and left one shard more."""
    for i in range(MANY_SHARDS + 2):
        store = FeatureStore(tmp_path, "k", 3)
        store.add(*entry(i))
        store.flush()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    shards = set((tmp_path / "k").iterdir())
    assert len(FeatureStore(tmp_path, "k", 3)) == MANY_SHARDS + 2
    assert set((tmp_path / "k").iterdir()) == shards


def test_a_merge_of_small_shards_leaves_full_shards_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_SIZE", 4)
    monkeypatch.setattr(store_module, "MANY_SHARDS", 3)
    store = FeatureStore(tmp_path, "k", 3)
    for i in range(8):
        store.add(*entry(i))
    full = set((tmp_path / "k").iterdir())
    assert len(full) == 2
    for i in range(8, 12):
        store.add(*entry(i))
        store.flush()
    merged = FeatureStore(tmp_path, "k", 3)
    assert full < set((tmp_path / "k").iterdir())
    assert len(list((tmp_path / "k").iterdir())) == 3
    assert len(merged) == 12
    assert all(merged.get(entry(i)[0])[1][0] == i for i in range(12))


def test_an_unfinished_shard_of_another_process_is_ignored(tmp_path):
    store = FeatureStore(tmp_path, "k", 3)
    store.add(*entry(1))
    store.flush()
    (tmp_path / "k" / ".writing-abc.safetensors").write_bytes(b"half")
    assert len(FeatureStore(tmp_path, "k", 3)) == 1


def test_files_that_a_killed_process_left_are_removed_a_day_later(tmp_path):
    (tmp_path / "k").mkdir()
    old, new = (tmp_path / "k" / f".writing-{i:032x}-{i:032x}.safetensors" for i in range(2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    assert len(FeatureStore(tmp_path, "k", 3)) == 0
    assert list((tmp_path / "k").iterdir()) == [new]


def test_entries_are_written_after_a_while_though_the_shard_is_not_full(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now[0])
    store = FeatureStore(tmp_path, "k", 3)
    store.add(*entry(0))
    now[0] += FLUSH_SECONDS - 1
    store.add(*entry(1))
    assert len(FeatureStore(tmp_path, "k", 3)) == 0
    now[0] += 1
    store.add(*entry(0))  # known, but it is time
    assert len(FeatureStore(tmp_path, "k", 3)) == 2
    now[0] += 10 * FLUSH_SECONDS
    store.add(*entry(2))  # has not waited
    assert len(FeatureStore(tmp_path, "k", 3)) == 2


def test_a_killed_process_loses_only_its_latest_entries(tmp_path):
    script = """
import sys, time, numpy as np
from pathlib import Path
from dlsr.encoding import store
store.FLUSH_SECONDS = 0.1
features = store.FeatureStore(Path(sys.argv[1]), "k", 3)
for i in range(10_000):
    features.add(i.to_bytes(2, "big") + bytes(30), np.zeros(16, np.uint8), np.full(3, i, np.float32))
    print(i, flush=True)
    time.sleep(0.002)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as run:
        while int(run.stdout.readline()) < 400:
            pass
        run.kill()
    # At two milliseconds each, fifty are added between two flushes, and a few more while one is written.
    assert len(FeatureStore(tmp_path, "k", 3)) > 250


def test_two_processes_can_write_to_a_store_at_the_same_time(tmp_path):
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
    assert all(store.get(entry(i)[0])[1][0] == i for i in range(300))


def test_shards_that_are_damaged_or_of_another_format_are_refused(tmp_path):
    store = FeatureStore(tmp_path, "k", 3)
    store.add(*entry(1))
    store.flush()
    with pytest.raises(ArtifactError, match="not a feature shard"):
        FeatureStore(tmp_path, "k", 4)
    (shard,) = (tmp_path / "k").iterdir()
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="is damaged"):
        FeatureStore(tmp_path, "k", 3)


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(*args, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    store = FeatureStore(tmp_path, "k", 3)
    store.add(*entry(1))
    with pytest.raises(OutputError, match=r"No space left on device.*check space"):
        store.flush()
    assert list((tmp_path / "k").iterdir()) == []


def test_keys_are_found_while_the_index_is_sorted_again(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "RECENT_KEYS", 5)
    monkeypatch.setattr(store_module, "SHARD_SIZE", 3)
    random = np.random.default_rng(0)
    keys = [random.bytes(32) for _ in range(100)]
    # Two keys have the same first 8 bytes, by which the index is searched.
    keys[50] = keys[20][:8] + keys[50][8:]
    store = FeatureStore(tmp_path, "k", 3)
    for i, key in enumerate(keys):
        store.add(key, *entry(i)[1:])
        store.add(keys[0], *entry(77)[1:])  # known, so it changes nothing
        assert all(store.get(known)[1][0] == j for j, known in enumerate(keys[: i + 1]))
        assert len(store) == i + 1
    store.flush()
    again = FeatureStore(tmp_path, "k", 3)
    assert len(again) == 100
    assert all(again.get(key)[1][0] == i for i, key in enumerate(keys))
    assert again.get(random.bytes(32)) is None


def test_the_index_takes_less_than_60_bytes_for_an_entry(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "k"
    folder.mkdir()
    for _ in range(10):
        keys = random.integers(0, 256, (10_000, 32), dtype=np.uint8)
        save_file(
            {"keys": keys, "digests": keys[:, :16].copy(), "z0": np.zeros((10_000, 3), np.float32)},
            folder / f"{random.bytes(4).hex()}.safetensors",
            metadata={"schema": "1"},
        )
    tracemalloc.start()
    store = FeatureStore(tmp_path, "k", 3)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store) == 100_000
    assert used < 60 * len(store)


def test_the_default_store_is_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DLSR_CACHE", str(tmp_path / "own"))
    assert default_store_root() == tmp_path / "own" / "features"
    monkeypatch.delenv("DLSR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_store_root() == tmp_path / "xdg" / "dlsr" / "features"
