import pytest
import torch

from dlsr.lfdn import LFDN, sinusoidal_embedding


@pytest.mark.parametrize(("c", "millions"), [(512, 43.9), (720, 86.7)])
def test_paper_size(c, millions):
    with torch.device("meta"):
        network = LFDN(c, 2 * c, 16)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_embeddings_computed_once_give_the_same():
    torch.manual_seed(0)
    network = LFDN(6, 16, 3).eval()
    zt = torch.randn(5, 6)
    at_times = network.at_times((7, 3))
    for t in (7, 3):
        torch.testing.assert_close(at_times(zt, t), network(zt, torch.full((5,), t)))
    assert not torch.allclose(at_times(zt, 7), at_times(zt, 3))
    with pytest.raises(KeyError):
        at_times(zt, 4)


def test_loss_is_the_mean_square():
    torch.manual_seed(0)
    network = LFDN(6, 16, 1)
    z0, zt, t = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([1, 2, 3, 4])
    expected = (z0 - network(zt, t)).square().mean()
    torch.testing.assert_close(network.loss(z0, zt, t), expected)


def test_embedding_tells_times_apart():
    embedding = sinusoidal_embedding(torch.arange(101), 32)
    distances = torch.cdist(embedding, embedding) + 10 * torch.eye(101)
    assert embedding.shape == (101, 32)
    assert distances.min() > 0.1
