import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from dlsr.calibration import neighbours
from dlsr.calibration.neighbours import nearest_neighbours


@pytest.fixture
def random():
    return np.random.default_rng(0)


def own(points):
    return np.arange(len(points))


@pytest.mark.parametrize(("n", "count"), [(20, 5), (21, 20), (100, 1), (997, 30), (3000, 60)])
def test_neighbours_are_those_of_scikit_learn(random, n, count):
    points = random.standard_normal((n, 16)).astype(np.float32)
    found, distances = nearest_neighbours(points, own(points), own(points), count)
    expected, indices = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points.astype(float)).kneighbors()
    np.testing.assert_array_equal(found, indices)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


def test_points_of_the_same_group_are_no_neighbours(random):
    points = random.standard_normal((300, 4)).astype(np.float32)
    groups, queries = random.integers(0, 40, 300), random.permutation(300)[:50]
    found, distances = nearest_neighbours(points, queries, groups, 20)
    between = np.linalg.norm(points[queries, None].astype(float) - points, axis=2)
    between[groups[queries][:, None] == groups] = np.inf
    np.testing.assert_array_equal(found, between.argsort(axis=1)[:, :20])
    np.testing.assert_allclose(distances, np.sort(between, axis=1)[:, :20])


def test_a_group_may_leave_just_as_many_others(random):
    points = random.standard_normal((30, 3)).astype(np.float32)
    found, _ = nearest_neighbours(points, np.arange(25), np.maximum(np.arange(30) - 24, 0), 5)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(25, 30), (25, 1)))


def test_neighbours_in_a_tight_class_far_from_the_mean_are_exact(random):
    points = np.concatenate([random.standard_normal((200, 8)), 30 + 1e-4 * random.standard_normal((200, 8))])
    points = points.astype(np.float32)
    found, distances = nearest_neighbours(points, own(points), own(points), 10)
    between = np.linalg.norm(points[:, None].astype(float) - points, axis=2)
    np.fill_diagonal(between, np.inf)
    np.testing.assert_allclose(distances, np.sort(between, axis=1)[:, :10], rtol=1e-6)
    assert (found[200:] >= 200).all()


def test_equal_points_are_at_distance_zero():
    found, distances = nearest_neighbours(np.ones((50, 3), np.float32), np.arange(50), np.arange(50), 7)
    assert (distances == 0).all()
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    assert (found != np.arange(50)[:, None]).all()


def test_blocks_give_the_same_as_all_at_once(random, monkeypatch):
    points, groups = random.standard_normal((200, 5)).astype(np.float32), random.integers(0, 100, 200)
    together = nearest_neighbours(points, own(points), groups, 9)
    monkeypatch.setattr(neighbours, "AT_ONCE", 600)
    for one, other in zip(together, nearest_neighbours(points, own(points), groups, 9), strict=True):
        np.testing.assert_allclose(one, other)
