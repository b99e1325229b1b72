import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from dlsr.config import resolve
from dlsr.method.lfdn import LFDN
from dlsr.method.noise import row_digests
from dlsr.scorers.base import KnnScorer, MahalanobisScorer, PaperScorer, score_rows
from dlsr.scorers.gaussian import Gaussian


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_knn_is_scikit_learns(features, offset):
    inside, outside = (rows + np.float32(offset) for rows in features)
    scorer = KnnScorer(torch.from_numpy(inside), 7, (4, 8, 12))
    scores, layers = score_rows(scorer, torch.from_numpy(outside), row_digests(outside), seed=0)
    search = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(inside.astype(np.float64))
    expected = search.kneighbors(outside.astype(np.float64))[0][:, -1]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    sizes = torch.tensor([4.0, 8.0, 12.0])
    torch.testing.assert_close((layers.square() * sizes).sum(dim=1).sqrt(), scores)


def test_mahalanobis_is_scikit_learns(features):
    inside, outside = features
    scorer = MahalanobisScorer(Gaussian.fit([torch.from_numpy(inside)]), (4, 8, 12))
    scores, _ = score_rows(scorer, torch.from_numpy(outside), row_digests(outside), seed=0)
    # 6 of the 24 dimensions carry nearly all variance; the small ones are where the ridge would show.
    expected = EmpiricalCovariance().fit(inside.astype(np.float64)).mahalanobis(outside.astype(np.float64)) / 24
    assert np.corrcoef(np.log(scores.numpy()), np.log(expected))[0, 1] > 0.9


def test_likelihood_regret_is_what_training_took_off_the_error(features):
    rows = torch.from_numpy(features[0][:20])
    torch.manual_seed(0)
    first, last = LFDN(24, 16, 2), LFDN(24, 16, 2)

    def scores(score, network):
        settings = resolve("paper", score, draws=3)
        scorer = PaperScorer(score, network, first, settings, (4, 8, 12))
        return score_rows(scorer, rows, row_digests(rows.numpy()), seed=0)

    regret, before, after = scores("lr", last), scores("mse", first), scores("mse", last)
    torch.testing.assert_close(regret[0], before[0] - after[0])
    torch.testing.assert_close(regret[1], before[1] - after[1])
