import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc, gammaln
from scipy.stats import beta, fisher_exact, ks_2samp

from dlsr.calibration import distributions
from dlsr.calibration.distributions import EXACT, beta_cdf, beta_quantile, fisher_p_value, ks_test

CONFIDENCES = [0.1, 0.5, 0.9, 0.95, 0.999, 0.999999]


def ranks(n):
    """Parameters as those of the p-values of `n` calibration images: of the first and last 30 and some between."""
    k = np.unique(np.concatenate([np.arange(1, 31), np.geomspace(1, n, 100).astype(int), n - np.arange(30)]))
    k = k[(k >= 1) & (k <= n)].astype(float)
    return k, n + 1 - k


@pytest.mark.parametrize("counts", [1, 2 / 3])
@pytest.mark.parametrize("n", [1, 2, 5, 30, 1000, 10**5, 10**6])
def test_beta_quantiles_are_those_of_scipy(n, counts):
    a, b = (counts * parameter for parameter in ranks(n))
    for confidence in CONFIDENCES:
        np.testing.assert_allclose(beta_quantile(confidence, a, b), beta.ppf(confidence, a, b), rtol=1e-9)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_beta_quantiles_of_any_parameters_are_those_of_scipy(confidence):
    # More than are found at once.
    a, b = 10 ** np.random.default_rng(0).uniform(-0.3, 6, (2, 10_000))
    np.testing.assert_allclose(beta_quantile(confidence, a, b), beta.ppf(confidence, a, b), rtol=1e-9)


@pytest.mark.parametrize("n", [1, 10, 10**6])
def test_beta_quantiles_of_the_lowest_and_the_highest_of_n_follow_from_powers(n):
    lowest, highest = beta_quantile(0.95, np.array([1.0, n]), np.array([n, 1.0]))
    assert lowest == pytest.approx(-np.expm1(np.log(0.05) / n), rel=1e-12)
    assert highest == pytest.approx(0.95 ** (1 / n), rel=1e-12)
    assert len(beta_quantile(0.95, np.empty(0), np.empty(0))) == 0


@pytest.mark.parametrize("x", [1e-6, 0.01, 0.3, 0.5, 0.99])
def test_beta_probabilities_are_those_of_scipy(x):
    a, b = 10 ** np.random.default_rng(0).uniform(-0.3, 6, (2, 2000))
    np.testing.assert_allclose(beta_cdf(np.full(2000, x), a, b), betainc(a, b, x), rtol=0, atol=1e-11)
    few = ranks(1000)
    np.testing.assert_allclose(beta_cdf(np.full(len(few[0]), x), *few), betainc(*few, x), rtol=0, atol=1e-13)


def test_the_error_of_stirlings_formula_is_that_of_scipys_gamma_function():
    z = np.linspace(0.3, 60, 500)
    stirling = (z - 0.5) * np.log(z) - z + np.log(2 * np.pi) / 2
    np.testing.assert_allclose(distributions._stirling_error(z), gammaln(z) - stirling, rtol=0, atol=2e-13)


@pytest.mark.parametrize(("m", "n"), [(4, 4), (3, 6), (5, 4)])
def test_p_values_are_shares_of_all_orders(m, n):
    orders = [np.isin(np.arange(m + n), ranks) for ranks in itertools.combinations(range(m + n), m)]
    tests = [ks_test(np.flatnonzero(order), np.flatnonzero(~order)) for order in orders]
    statistics = np.array([test.statistic for test in tests])
    for test in tests:
        assert test.p_value == pytest.approx(np.mean(statistics >= test.statistic - 1e-9), rel=1e-12)


def assert_like_scipy(first, second):
    with warnings.catch_warnings(record=True, action="always") as caught:
        expected = ks_2samp(first, second, method="exact")
    test = ks_test(first, second)
    assert test.statistic == pytest.approx(expected.statistic, abs=1e-12)
    # SciPy gives up where rounding lifts a p-value above 1.
    assert test.p_value == pytest.approx(1 if caught else expected.pvalue, rel=1e-9)
    difference = np.mean(first <= test.location) - np.mean(second <= test.location)
    assert abs(difference) == pytest.approx(test.statistic, abs=1e-12)


values = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=40).map(np.array)


@given(values, values)
def test_small_samples_with_ties_are_compared_as_by_scipy(first, second):
    assert_like_scipy(first, second)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 300), (50, 50), (20, 5000), (700, 300), (999, 1000), (2000, 400)])
@pytest.mark.parametrize("shift", [0, 0.05, 0.3, 1])
def test_samples_of_any_sizes_are_compared_as_by_scipy(m, n, shift):
    random = np.random.default_rng(m + n)
    assert_like_scipy(random.normal(size=m) + shift, random.normal(size=n))


def test_tiny_p_values_keep_their_digits():
    apart = np.arange(200.0)
    # Of all orders of 200 and 300 values, two have either sample in front.
    count = 2 / np.prod((300 + np.arange(1, 201)) / np.arange(1, 201))
    assert ks_test(apart, 1000 + np.arange(300.0)).p_value == pytest.approx(count, rel=1e-12)
    assert count < 1e-140
    assert ks_test(apart, apart).p_value == 1


@pytest.mark.parametrize("shift", [0, 0.04, 0.08, 0.12])
@pytest.mark.parametrize(("m", "rel"), [(100, 0.05), (2000, 0.01)])
def test_large_samples_are_compared_about_as_by_scipy(m, rel, shift):
    random = np.random.default_rng(0)
    first, second = random.normal(size=m) + shift, random.normal(size=EXACT + 1)
    assert ks_test(first, second).p_value == pytest.approx(ks_2samp(first, second).pvalue, rel=rel)
    assert ks_test(second, second).p_value == 1


def test_where_approximate_p_values_begin_they_are_close_to_exact_ones():
    random = np.random.default_rng(1)
    first, second = random.normal(size=500) + 0.1, random.normal(size=EXACT + 1)
    exact = ks_test(first, second[:-1]).p_value
    assert 0.001 < exact < 0.1
    assert ks_test(first, second).p_value == pytest.approx(exact, rel=0.03)


counts = st.integers(0, 30)


@given(counts, counts, counts, counts)
def test_small_tables_have_the_p_values_of_scipy(a, b, c, d):
    table = [[a, b], [c, d]]
    assert fisher_p_value(table) == pytest.approx(fisher_exact(table).pvalue, rel=1e-9)


def test_large_and_symmetric_tables_have_the_p_values_of_scipy():
    random = np.random.default_rng(0)
    tables = [random.integers(0, size, (2, 2)) for size in (10, 100, 1000, 30_000) for _ in range(100)]
    tables += [[row, 2 * row[::-1]] for row in random.integers(0, 300, (100, 2))]
    for table in tables:
        expected = fisher_exact(table).pvalue
        assert fisher_p_value(np.array(table).tolist()) == pytest.approx(expected, rel=1e-8, abs=1e-290)
