"""The score that restores an image from the training images nearest to it, part by part."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from dlsr import Detector, TooFewImagesError, evaluate_scores
from dlsr.method.local import RIDGE as WEIGHT_RIDGE
from dlsr.method.local import restoration_error
from dlsr.method.noise import row_digests
from dlsr.runtime.backends import make_engine
from dlsr.runtime.base import Graph
from dlsr.scorers import resolve
from dlsr.scorers.base import FitData, new_scorer, score_features
from dlsr.scorers.neighbours import Neighbours
from dlsr.training.data import Samples
from dlsr.training.loop import Trainer

CHANNELS = (4, 8, 12)


def drawn(n, seed=0, c=24, scale=1.0):
    """Correlated samples of a Gaussian."""
    mixing = np.random.default_rng(9).standard_normal((6, c))
    random = np.random.default_rng(seed)
    samples = random.standard_normal((n, 6)) @ mixing + 0.3 * random.standard_normal((n, c))
    return torch.from_numpy((scale * samples).astype(np.float32))


def fitted(training, channels=CHANNELS, seed=0, groups=None, **changes):
    settings = resolve(score="local", changes=changes, seed=seed)
    held_out = training[:2]
    groups = torch.arange(len(training)) if groups is None else groups
    data = FitData(settings, channels, Samples(training), groups, held_out, row_digests(held_out.numpy()))
    scorer = new_scorer(settings, channels)
    assert scorer.fit(data, Trainer()) == []
    return scorer


def scored(scorer, z0):
    return score_features(scorer, z0, row_digests(z0.numpy()), seed=0)


def auroc(scorer, inside, outside):
    return evaluate_scores(scored(scorer, inside)[0].numpy(), scored(scorer, outside)[0].numpy()).auroc


# Restoration


def restoration_error_by_numpy(neighbours, z0):
    """Ridge regression by a solver, in double precision."""
    errors = []
    for chosen, sample in zip(neighbours.double().numpy(), z0.double().numpy(), strict=True):
        mean = chosen.mean(axis=0)
        spread = chosen - mean
        ridge = WEIGHT_RIDGE * (spread**2).sum(axis=1).mean()
        stacked = np.vstack([spread.T, np.sqrt(ridge) * np.eye(len(chosen))])
        weights = np.linalg.lstsq(stacked, np.concatenate([sample - mean, np.zeros(len(chosen))]), rcond=None)[0]
        errors.append(mean + weights @ spread - sample)
    return np.array(errors)


@pytest.mark.parametrize("k", [1, 2, 10, 30])
def test_restoration_is_ridge_regression_on_the_neighbours(k):
    random = torch.Generator().manual_seed(0)
    neighbours = torch.randn(7, k, 12, generator=random, dtype=torch.float64)
    z0 = torch.randn(7, 12, generator=random, dtype=torch.float64)
    expected = restoration_error_by_numpy(neighbours, z0)
    np.testing.assert_allclose(restoration_error(neighbours, z0).numpy(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("distance", [0.0, 1.0, 100.0, 10_000.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_single_precision_is_enough_however_far_away_the_sample(distance, offset):
    random = torch.Generator().manual_seed(0)
    neighbours = torch.randn(8, 20, 64, generator=random) + offset
    z0 = neighbours[:, 3] + distance * torch.randn(8, 64, generator=random)
    actual, expected = restoration_error(neighbours, z0).numpy(), restoration_error_by_numpy(neighbours, z0)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(actual / lengths, expected / lengths, atol=1e-3 if offset else 1e-5)


class Restoring(nn.Module):
    def forward(self, neighbours, z0):
        return (restoration_error(neighbours, z0),)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engines_agree_where_nothing_is_left_to_solve(backend):
    """Equal neighbours, and two neighbours, whose weights are exact after one step: divisions by zero."""
    random = torch.Generator().manual_seed(0)
    neighbours, z0 = torch.randn(6, 2, 24, generator=random), torch.randn(6, 24, generator=random)
    neighbours[:2, 1] = neighbours[:2, 0]
    z0[0] = neighbours[0, 0]
    graph = Graph(Restoring, {"neighbours": neighbours[:2], "z0": z0[:2]}, ("error",), "restoring")
    engine = make_engine(graph, backend, "cpu")
    (actual,) = engine(neighbours.numpy(), z0.numpy())
    np.testing.assert_allclose(actual, restoration_error(neighbours, z0), atol=1e-5)


@pytest.mark.parametrize("distance", [0.0, 1.0, 100.0, 10_000.0])
def test_equal_neighbours_restore_every_sample_as_themselves(distance):
    point = torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(0))
    z0 = point[:, 0] + distance
    torch.testing.assert_close(restoration_error(point.expand(-1, 20, -1), z0), point[:, 0] - z0, rtol=1e-3, atol=1e-5)


# Search


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_nearest_are_scikit_learns_in_their_order(offset):
    references, samples = drawn(300) + offset, drawn(40, seed=1) + offset
    search = Neighbours(24)
    search.keep(references)
    expected = NearestNeighbors(n_neighbors=9, algorithm="brute").fit(references.double().numpy())
    distances, indices = expected.kneighbors(samples.double().numpy())
    nearest = search.nearest(samples, 9)
    found = (references[nearest] - samples[:, None]).double().norm(dim=2)
    np.testing.assert_allclose(found, distances, rtol=1e-3)
    assert (nearest.numpy() == indices).mean() > (0.98 if offset else 0.999)


def test_the_nearest_others_are_scikit_learns_without_the_sample_itself():
    references = drawn(200)
    search = Neighbours(24)
    search.keep(references)
    expected = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(references.double().numpy()).kneighbors()[1]
    chosen = torch.tensor([199, 0, 77, 3])
    np.testing.assert_array_equal(search.nearest_others(chosen, 6, torch.arange(200)), expected[chosen])


def test_the_nearest_others_are_not_of_the_same_group():
    references = drawn(60)
    groups = torch.arange(60) // 4
    search = Neighbours(24)
    search.keep(references)
    found = search.nearest_others(torch.arange(60), 60, groups)
    assert not (groups[found] == groups[:, None]).any()
    assert all(len(set(row)) == 56 for row in found.tolist())
    assert (found[:, 55:] == found[:, 55:56]).all()


def test_a_large_group_leaves_the_others_their_neighbours():
    """As many were taken from all as are outside the largest group: nearer ones than a new image gets."""
    references = drawn(60)
    groups = torch.arange(60).clamp(max=10)  # 50 images in one group
    search = Neighbours(24)
    search.keep(references)
    found = search.nearest_others(torch.arange(60), 20, groups)
    alone = search.nearest_others(torch.arange(10), 20, torch.arange(60))
    np.testing.assert_array_equal(found[:10], alone)
    assert all(set(row) == set(range(10)) for row in found[10:].tolist())


def test_a_sample_is_not_among_its_neighbours_even_if_others_equal_it():
    search = Neighbours(3)
    search.keep(torch.tensor([[1.0, 2.0, 3.0]]).repeat(5, 1))
    others = search.nearest_others(torch.arange(5), 10, torch.arange(5))
    assert [sorted(set(row)) for row in others.tolist()] == [[j for j in range(5) if j != i] for i in range(5)]


@pytest.mark.parametrize("score", ["local", "knn", "mahalanobis"])
def test_the_rate_holds_though_one_group_is_nearly_all(score):
    """`local` raised an error, and `knn` had 31 % of false alarms at 20 %."""
    groups, rates = [min(i, 30) for i in range(300)], []
    for seed in range(20):
        features = drawn(500, seed=seed).numpy()
        detector = Detector(score=score, false_alarm_rate=0.2).fit_features(features[:300], groups=groups)
        rates.append(np.mean(detector.p_values_of(detector.score_features(features[300:])) <= 0.2))
    # The standard deviation of one rate is about sqrt(0.2 * 0.8 / 31) = 0.072, so of the mean about 0.016.
    assert np.mean(rates) < 0.2 + 3 * 0.016


# Standardisation


@pytest.mark.parametrize(("trim", "tolerance"), [(0.0, 0.1), (0.05, 0.25)])
def test_scores_of_training_images_are_those_of_a_fit_without_them(trim, tolerance):
    training = drawn(150)
    scorer = fitted(training, trim=trim)
    for i in (0, 70, 149):
        without = fitted(torch.cat([training[:i], training[i + 1 :]]), trim=trim)
        alone = scored(without, training[i : i + 1])[0]
        assert abs(float(scorer.left_out[0][i] - alone)) < tolerance * float(scorer.left_out[0].std())


def test_scores_of_training_images_are_those_of_a_fit_without_their_group():
    """Groups of three near copies, in any order."""
    order = torch.randperm(180, generator=torch.Generator().manual_seed(0))
    training = (drawn(60).repeat(3, 1) + 0.05 * drawn(180, seed=1))[order]
    groups = torch.arange(60).repeat(3)[order]
    scorer = fitted(training, groups=groups, trim=0.0)
    spread = float(scorer.left_out[0].std())
    for group in (0, 7, 59):
        rest, members = training[groups != group], training[groups == group]
        expected = scored(fitted(rest, groups=groups[groups != group], trim=0.0), members)[0]
        actual = scorer.left_out[0][groups == group]
        assert (actual - expected).abs().max() < 0.15 * spread


def test_a_group_is_left_out_as_a_whole_or_stays_as_a_whole():
    """Else its images that are left out would be scored beside their own copies, and the threshold be too low."""
    originals = drawn(200)
    copies = originals.repeat_interleave(5, dim=0) + 0.5 * drawn(1000, seed=1)
    groups = torch.arange(200).repeat_interleave(5)
    scorer = fitted(copies, groups=groups)
    kept = (copies[:, None] == scorer.references).all(dim=2).any(dim=1).reshape(200, 5)
    assert not kept.all()
    assert (kept.all(dim=1) | ~kept.any(dim=1)).all()
    new = scored(scorer, drawn(2000, seed=2) + 0.5 * drawn(2000, seed=3))[0]
    one_of_each = scorer.left_out[0].reshape(200, 5)[:, 0]
    assert (new > one_of_each.quantile(0.9)).float().mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("references", [400, 60])
def test_new_images_of_the_same_kind_score_as_training_images_do(references):
    scorer = fitted(drawn(400), references=references)
    new, trained = scored(scorer, drawn(2000, seed=1))[0], scorer.left_out[0]
    trained = trained[trained.isfinite()]
    assert abs(float(new.median() - trained.median())) < 0.15 * float(trained.std())
    assert float(new.std()) == pytest.approx(float(trained.std()), rel=0.15)


def test_each_part_enters_by_its_weight():
    training, new = drawn(200), drawn(20, seed=1)
    alone = dict.fromkeys(("distance_weight", "gaussian_weight"), 0.0)
    without = scored(fitted(training, **alone), new)[0]
    for name in alone:
        once, twice = (scored(fitted(training, **alone | {name: weight}), new)[0] for weight in (1.0, 2.0))
        assert (once - without).abs().max() > 0.1
        torch.testing.assert_close(twice - without, 2 * (once - without), rtol=1e-3, atol=1e-4)


def test_scores_of_layers_tell_where_an_image_is_odd():
    scorer, new = fitted(drawn(400)), drawn(200, seed=1)
    odd = new.clone()
    odd[:, 4:12] = odd[:, 4:12].flip(dims=[0])
    _, before = scored(scorer, new)
    _, after = scored(scorer, odd)
    assert ((after - before).mean(dim=0).argmax()) == 1


@pytest.mark.parametrize("count", [1, 3, 63, 130])
def test_scores_do_not_depend_on_the_batch_or_its_order(count):
    scorer, new = fitted(drawn(40)), drawn(130, seed=1)
    together, layers = scored(scorer, new)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    parts = [scored(scorer, part) for part in torch.split(new[order], count)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), together[order], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), layers[order], atol=1e-4, rtol=0)


# Unusual training sets


def test_far_outliers_among_training_images_stand_out():
    training = torch.cat([drawn(990), drawn(10, seed=5, scale=10.0)])
    scores = fitted(training).left_out[0]
    spread = scores.median() - scores.quantile(0.16)
    assert (scores[990:] > scores.median() + 4 * spread).all()
    assert (scores[:990] > scores.median() + 4 * spread).sum() <= 5


def two_clusters(intruders):
    offset = 3 * torch.randn(24, generator=torch.Generator().manual_seed(3))
    return torch.cat([drawn(1000 - intruders), drawn(intruders, seed=6) + offset]), drawn(300, seed=7) + offset


def test_trimming_leaves_out_clustered_intruders_and_detects_others_like_them():
    training, others = two_clusters(50)
    inside = drawn(300, seed=8)
    plain, trimmed = fitted(training, trim=0.0), fitted(training, trim=0.1)

    def kept(scorer):
        return int((scorer.references[:, None] == training[950:]).all(dim=2).sum())

    assert kept(plain) == 50
    assert kept(trimmed) < 20
    assert 901 <= len(trimmed.references) < 950
    assert auroc(trimmed, inside, others) > auroc(plain, inside, others) + 0.02
    assert len(trimmed.left_out[0]) == 1000


def test_a_tight_cluster_of_intruders_is_left_out():
    """They are each other's nearest neighbours, but not their 50th."""
    intruders = drawn(25, seed=6, scale=0.1) + 100
    scorer = fitted(torch.cat([drawn(975), intruders]))
    assert len(scorer.references) == 951
    assert (scorer.references.mean(dim=1) < 50).all()
    # Left out, they are scored by the rest: as those of their kind will be.
    scores = scorer.left_out[0]
    torch.testing.assert_close(scored(scorer, intruders)[0], scores[975:], atol=1e-3, rtol=1e-3)
    assert scores[975:].min() > scores[:975].max()


def test_four_training_images_are_one_clear_error():
    with pytest.raises(TooFewImagesError, match="the score 'local' needs 5 training images, got 4"):
        fitted(drawn(4))


@pytest.mark.parametrize("n", [5, 10])
def test_fewer_training_images_than_neighbours(n):
    scorer = fitted(drawn(n), neighbours=20)
    scores, layers = scored(scorer, drawn(300, seed=1))
    assert scores.isfinite().all()
    assert layers.isfinite().all()
    assert scorer.left_out[0].isfinite().all()
    assert auroc(scorer, drawn(300, seed=1), drawn(300, seed=2, scale=20.0)) > 0.95


def test_references_are_capped_and_chosen_by_the_seed():
    training = drawn(300)
    first, again, other = (fitted(training, references=50, seed=seed) for seed in (0, 0, 1))
    assert first.references.shape == (48, 24)  # 5 % of the 50 are left out
    assert torch.equal(first.references, again.references)
    assert not torch.equal(first.references, other.references)
    assert int(first.left_out[0].isfinite().sum()) == 50
    assert first.left_out[0].shape == (300,)
    # The Gaussian is that of all training images but those far from the references.
    whole = fitted(training, references=50, trim=0.0).gaussian.mean
    torch.testing.assert_close(whole, training.mean(dim=0), atol=1e-5, rtol=1e-5)
    assert 0 < (first.gaussian.mean - whole).norm() < 0.1 * training.std(dim=0).norm()


def test_few_references_of_many_images_in_groups():
    """The Gaussian is fitted to all images, so a group among few references does not determine it."""
    training, groups = drawn(1000), torch.arange(1000)
    groups[500:] = 500
    scorer = fitted(training, groups=groups, references=60)
    assert scorer.location.isfinite().all()
    assert scored(scorer, training[:50])[0].isfinite().all()


def test_training_images_that_are_half_the_same_still_serve():
    training = drawn(400)
    training[200:] = training[200]
    scorer = fitted(training)
    assert scorer.left_out[0].isfinite().all()
    inside, outside = drawn(300, seed=1), drawn(300, seed=2).flip(dims=[1])
    assert auroc(scorer, inside, outside) > 0.9


def test_if_all_training_images_are_the_same_any_other_scores_higher():
    scorer = fitted(drawn(1).repeat(50, 1))
    scores, layers = scored(scorer, drawn(20, seed=1))
    assert not scores.isnan().any()
    assert not layers.isnan().any()
    assert (scores > scored(scorer, scorer.references[:1])[0]).all()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e6])
def test_the_scale_of_features_does_not_matter(scale):
    training, new = drawn(200), torch.cat([drawn(50, seed=1), drawn(50, seed=2).flip(dims=[1])])
    expected = scored(fitted(training), new)
    for a, b in zip(scored(fitted(training * scale), new * scale), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_single_feature():
    random = torch.Generator().manual_seed(0)
    training = torch.randn(300, 1, generator=random)
    scorer = fitted(training, channels=(1,))
    scores, layers = scored(scorer, torch.tensor([[0.0], [30.0]]))
    assert scores[1] > scores[0] + 5
    assert layers.shape == (2, 1)
