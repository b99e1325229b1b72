import torch

from dlsr.scorers.feature_vae import FeatureVAE


def test_code_tells_of_features_that_vary_little():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(24, 3, generator=generator)).Q.T
    z0 = torch.randn(512, 3, generator=generator) @ directions  # each feature has a variance of 1/8 on average
    torch.manual_seed(0)
    network = FeatureVAE(24, width=48, latent=4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(400):
        optimizer.zero_grad()
        network.loss(z0, torch.randn(512, 4, generator=generator)).backward()
        optimizer.step()
    with torch.no_grad():
        left = (network(z0) - z0).square().mean() / z0.square().mean()
    assert left < 0.25
