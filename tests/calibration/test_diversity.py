import numpy as np

from dlsr.calibration import diversity
from dlsr.calibration.diversity import farthest_first


def test_each_point_is_the_farthest_from_those_before_it(monkeypatch):
    monkeypatch.setattr(diversity, "BLOCK", 7)
    points = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    candidates = np.arange(0, 60, 2)[::-1]
    chosen = farthest_first(points, candidates, 12)
    assert chosen[0] == candidates[0]
    assert set(chosen) <= set(candidates)
    for k in range(1, 12):
        distances = np.linalg.norm(points[candidates][:, None] - points[chosen[:k]], axis=2).min(axis=1)
        assert np.isclose(np.linalg.norm(points[chosen[k]] - points[chosen[:k]], axis=1).min(), distances.max())


def test_all_points_are_chosen_once_even_if_some_are_equal():
    points = np.zeros((5, 3), np.float32)
    points[3] = 1
    chosen = farthest_first(points, np.arange(5), 9)
    assert chosen[:2].tolist() == [0, 3]
    assert sorted(chosen) == [0, 1, 2, 3, 4]
