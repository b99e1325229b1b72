import numpy as np
import pytest
import torch

from dlsr import Detector, OutputError
from dlsr.encoding import store
from dlsr.encoding.store import empty_table
from dlsr.scorers.gaussian import Gaussian
from dlsr.training import data as rows
from dlsr.training.checkpoint import training_key
from dlsr.training.data import Samples, SamplesOnDisk, samples_of
from shared import small

CPU = torch.device("cpu")


@pytest.fixture
def small_buffers(monkeypatch):
    """Blocks of 16 rows of 4 numbers, buffers of 64 rows, nothing kept in memory."""
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 16 * 16)
    monkeypatch.setattr(rows, "BUFFER_BYTES", 64 * 16)
    monkeypatch.setattr(rows, "READ_BYTES", 64 * 16)


def numbered(n=1000, c=4):
    return np.arange(n, dtype=np.float32)[:, None].repeat(c, axis=1)


def shuffled(made, batch_size, seed):
    return list(made.shuffled(batch_size, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("n", [1, 15, 16, 64, 65, 333, 900])
@pytest.mark.parametrize("batch_size", [1, 5, 16, 40])
def test_an_epoch_holds_every_row_once_in_whole_batches(small_buffers, n, batch_size):
    chosen = np.random.default_rng(0).permutation(1000)[:n]
    made = samples_of(numbered(), chosen, CPU)
    assert isinstance(made, SamplesOnDisk)
    assert len(made) == n
    buffers = shuffled(made, batch_size, 0)
    assert sorted(torch.cat(buffers)[:, 0].tolist()) == sorted(chosen.tolist())
    assert all(len(buffer) % batch_size == 0 for buffer in buffers[:-1])
    block = batch_size * max(round(16 / batch_size), 1)
    assert all(len(buffer) <= max(64, block) + block for buffer in buffers)


def test_buffers_mix_blocks_from_anywhere_and_epochs_differ(small_buffers):
    made = samples_of(numbered(), np.arange(1000), CPU)
    first, again, other = (shuffled(made, 16, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert all(np.ptp(buffer[:, 0].numpy()) > 300 for buffer in first)


def test_rows_in_order_some_rows_and_a_function_of_rows(small_buffers):
    chosen = np.array([900, 3, 5, 77, *range(100, 300)])
    table = numbered()
    in_blocks, in_memory = samples_of(table, chosen, CPU), Samples(torch.from_numpy(table[np.sort(chosen)]))
    assert len(list(in_blocks)) == 4
    for made in (in_blocks, in_memory):
        torch.testing.assert_close(torch.cat(list(made.map(lambda x: 2 * x + 1).map(torch.sqrt)))[:2, 0] ** 2,
                                   torch.tensor([7.0, 11.0]))  # fmt: skip
        assert made.take(torch.tensor([1, 0]))[:, 0].tolist() == [5, 3]
    assert training_key("a", in_blocks) == training_key("a", in_memory) != training_key("a", [])
    assert training_key("a", in_memory) != training_key("b", in_memory)


def test_rows_are_taken_in_the_order_asked_for():
    chosen = np.random.default_rng(0).integers(0, 1000, 300)
    np.testing.assert_array_equal(rows.taken(numbered(), chosen), numbered()[chosen])


def test_few_rows_are_in_memory_in_the_order_asked_for():
    made = samples_of(numbered(), np.array([5, 2]), CPU)
    assert type(made) is Samples
    assert next(iter(made))[:, 0].tolist() == [5, 2]


def test_a_gaussian_of_parts_is_that_of_the_whole():
    z0 = torch.from_numpy(np.random.default_rng(0).standard_normal((700, 6)).astype(np.float32) * 3 + 100)
    whole, parts = Gaussian(6).fit([z0]), Gaussian(6).fit(torch.split(z0, 64))
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.variances, whole.variances)
    torch.testing.assert_close(parts.whiten(z0), whole.whiten(z0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("score", ["local", "residual", "mahalanobis", "knn", "mfsim", "feature-vae"])
def test_a_fit_from_a_file_detects_as_one_from_memory(tmp_path, monkeypatch, score):
    random = np.random.default_rng(0)
    mixing = random.standard_normal((4, 16))
    features = (random.standard_normal((2000, 4)) @ mixing).astype(np.float32)
    np.save(tmp_path / "z0.npy", features[:1800])
    inside, outside = features[1800:], random.standard_normal((200, 16)).astype(np.float32) * 2
    # Under an epoch's worth of training small differences of order would show: give it some.
    parameters = small(score, width=64, blocks=1, epochs=20, lr=3e-3, neighbours=5)
    in_memory = Detector(**parameters).fit_features(features[:1800])
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 2**12)
    monkeypatch.setattr(rows, "BUFFER_BYTES", 2**15)
    monkeypatch.setattr(rows, "READ_BYTES", 2**15)
    from_file = Detector(**parameters).fit_features(np.load(tmp_path / "z0.npy", mmap_mode="r"))
    aurocs = []
    for detector in (in_memory, from_file):
        a, b = detector.score_features(inside), detector.score_features(outside)
        aurocs.append((a[:, None] < b).mean())
    assert aurocs[0] > 0.7
    assert aurocs[1] == pytest.approx(aurocs[0], abs=0.03)
    if score == "mahalanobis":
        np.testing.assert_allclose(from_file.score_features(outside), in_memory.score_features(outside), rtol=1e-4)


def test_many_features_of_images_are_in_a_file(image_folder, tmp_path, monkeypatch):
    parameters = {"encoder": "test_resnet", "weights": "random", "backend": "torch", "score": "mahalanobis"}
    plain = Detector(**parameters).fit(image_folder)
    monkeypatch.setattr(store, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    detector = Detector(**parameters, store=tmp_path / "store")
    encoded = detector.prepare_extractor().encode(image_folder)
    assert isinstance(encoded.z0, np.memmap)
    in_blocks = detector.fit_encoded(encoded)
    assert in_blocks.threshold_ == pytest.approx(plain.threshold_, rel=1e-4)


def test_no_space_for_features_is_one_line(tmp_path):
    with pytest.raises(OutputError, match=r"cannot keep 4000\.0 GB of features in '.*'.*give another --store"):
        empty_table(10**9, 1000, tmp_path)
    assert not list(tmp_path.iterdir())
