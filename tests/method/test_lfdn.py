import pytest
import torch

from dlsr.method.lfdn import LFDN, OneGroupNorm, sinusoidal_embedding


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


def test_one_group_norm_is_group_norm_with_one_group():
    torch.manual_seed(0)
    ours, reference = OneGroupNorm(10), torch.nn.GroupNorm(1, 10)
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    reference.load_state_dict(ours.state_dict())
    rows = 3 * torch.randn(7, 10) + 2
    torch.testing.assert_close(ours(rows), reference(rows))


def test_each_row_gets_the_embedding_of_its_own_time():
    torch.manual_seed(0)
    network = LFDN(6, 16, 2).eval()
    zt, t = torch.randn(5, 6), torch.tensor([9, 3, 9, 1, 3])
    together = network(zt, t)
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], network(zt[i : i + 1], t[i : i + 1]))


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
