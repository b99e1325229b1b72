import sys

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from dlsr import MissingExtraError
from dlsr.explaining.clusters import ENOUGH, SMALLEST, check_clusters, cluster
from dlsr.explaining.layout import check_layout, place


def kinds(counts, c=30, seed=0, spread=0.3):
    """Features around a centre for each kind, and their kinds."""
    random = np.random.default_rng(seed)
    kind = np.repeat(np.arange(len(counts)), counts)
    centres = 3 * random.standard_normal((len(counts), c))
    return (centres[kind] + spread * random.standard_normal((len(kind), c))).astype(np.float32), kind


def test_features_around_a_few_centres_are_clustered_by_them_the_largest_first():
    z0, kind = kinds([10, 60, 25])
    labels = cluster(z0)
    assert adjusted_rand_score(kind, labels) > 0.97
    assert [np.bincount(kind[labels == label]).argmax() for label in range(3)] == [1, 2, 0]


def test_features_far_from_all_others_are_alone():
    z0, kind = kinds([40, 40, 40, *[1] * 20])
    labels = cluster(z0)
    assert (labels[kind >= 3] == -1).mean() > 0.3
    assert (labels[kind < 3] == -1).mean() < 0.05
    assert not set(labels[kind >= 3].tolist()) & set(range(3))


def test_a_cluster_of_many_images_need_not_be_large():
    z0, kind = kinds([600, 400, ENOUGH + 4])
    assert (cluster(z0)[kind == 2] == 2).mean() > 0.9


def test_few_features_are_all_alone():
    z0, _ = kinds([2 * SMALLEST - 1])
    assert set(cluster(z0).tolist()) == {-1}
    assert cluster(z0[:0]).shape == (0,)
    assert cluster(z0[:1]).tolist() == [-1]


def test_equal_features_end_in_no_error():
    assert cluster(np.ones((30, 4), np.float32)).shape == (30,)


def test_the_layout_by_principal_components_keeps_kinds_apart_and_the_first_direction_varies_most():
    z0, kind = kinds([40, 40])
    places = place(z0, "pca")
    assert places.shape == (80, 2)
    assert places[:, 0].std() > places[:, 1].std()
    assert abs(np.corrcoef(places[:, 0], kind)[0, 1]) > 0.95
    assert place(z0[:2], "pca").shape == (2, 2)
    assert place(z0[:3, :1], "pca").shape == (3, 2)


@pytest.mark.slow
def test_umap_keeps_kinds_apart_and_is_the_same_each_time():
    pytest.importorskip("umap")
    z0, kind = kinds([40, 40])
    places = place(z0, "umap")
    assert places.shape == (80, 2)
    centres = np.stack([places[kind == k].mean(axis=0) for k in (0, 1)])
    widest = max(np.linalg.norm(places[kind == k] - centres[k], axis=1).max() for k in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > widest
    np.testing.assert_array_equal(place(z0, "umap"), places)
    assert place(z0[:5], "umap").shape == (5, 2)  # too few for UMAP


def test_missing_packages_are_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn is not installed; run: pip install 'dlsr\[groups\]'"):
        check_clusters()
    with pytest.raises(MissingExtraError, match=r"umap-learn is not installed; run: pip install 'dlsr\[umap\]'"):
        check_layout("umap")
    check_layout("pca")
