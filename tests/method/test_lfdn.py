import pytest
import torch

from dlsr.method.lfdn import LFDN, OneGroupNorm, sinusoidal_embedding


@pytest.mark.parametrize(("c", "millions"), [(512, 43.9), (720, 86.7)])
def test_the_network_has_the_size_given_in_the_paper(c, millions):
    with torch.device("meta"):
        network = LFDN(c, 2 * c, 16)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_a_time_for_all_samples_gives_the_same_as_a_time_for_each():
    network = LFDN(6, 16, 3).eval()
    zt = torch.randn(5, 6)
    for t in (7, 3):
        torch.testing.assert_close(network.at_time(zt, t), network(zt, torch.full((5,), t)))
    assert not torch.allclose(network.at_time(zt, 7), network.at_time(zt, 3))


def test_one_group_norm_is_group_norm_with_one_group():
    ours, reference = OneGroupNorm(10), torch.nn.GroupNorm(1, 10)
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    reference.load_state_dict(ours.state_dict())
    h = 3 * torch.randn(7, 10) + 2
    torch.testing.assert_close(ours(h), reference(h))


def test_each_sample_gets_the_embedding_of_its_own_time():
    network = LFDN(6, 16, 2).eval()
    zt, t = torch.randn(5, 6), torch.tensor([9, 3, 9, 1, 3])
    together = network(zt, t)
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], network(zt[i : i + 1], t[i : i + 1]))


def test_embeddings_of_different_times_differ():
    embedding = sinusoidal_embedding(torch.arange(101), 32)
    distances = torch.cdist(embedding, embedding) + 10 * torch.eye(101)
    assert embedding.shape == (101, 32)
    assert distances.min() > 0.1
