import numpy as np
import pytest
from sklearn.utils.extmath import randomized_svd

from dlsr.calibration.principal import principal_components, standardised


def normal(n, c):
    return np.random.default_rng(0).standard_normal((n, c)).astype(np.float32)


@pytest.mark.parametrize(("n", "c"), [(300, 120), (120, 300), (50, 20), (30, 200)])
def test_principal_components_are_those_of_the_randomised_decomposition_of_scikit_learn(n, c):
    x = normal(n, c)
    kept = min(64, n, c)
    left, singular, _ = randomized_svd(x, kept, n_iter=3, random_state=0)
    reduced = principal_components(x, 64)
    assert reduced.shape == (n, kept)
    expected = (left * singular) @ (left * singular).T
    np.testing.assert_allclose(reduced @ reduced.T, expected, atol=1e-4 * expected.max())


def test_standardised_features_have_mean_0_and_deviation_1_but_constants_stay_0():
    x = 3 + 5 * normal(100, 4)
    x[:, 2] = 7
    scaled = standardised(x)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 1, 0, 1], atol=1e-5)
