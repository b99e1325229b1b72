import numpy as np

from dlsr.method.noise import content_digest, noise_for, row_digests


def test_noise_depends_on_neither_the_batch_nor_the_order():
    digests = row_digests(np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32))
    together = noise_for(digests, seed=3, draws=2, c=50)
    assert together.shape == (10, 2, 50)
    for i in (0, 7):
        assert np.array_equal(noise_for(digests[i : i + 1], 3, 2, 50)[0], together[i])
    order = np.random.default_rng(1).permutation(10)
    assert np.array_equal(noise_for(digests[order], 3, 2, 50), together[order])
    assert np.array_equal(noise_for(digests, 3, 1, 50)[:, 0], together[:, 0])


def test_noise_depends_on_seed_and_content():
    digests = row_digests(np.eye(2, dtype=np.float32))
    noise = noise_for(digests, 0, 1, 1000)
    assert not np.allclose(noise[0], noise[1])
    assert not np.allclose(noise, noise_for(digests, 1, 1, 1000))
    assert content_digest(b"abcd", (2, 2)) != content_digest(b"abcd", (4, 1))


def test_noise_is_standard_normal():
    digests = row_digests(np.arange(200, dtype=np.float32)[:, None])
    noise = noise_for(digests, 0, 4, 500)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise[:, 0] * noise[:, 1]).mean()) < 0.01
