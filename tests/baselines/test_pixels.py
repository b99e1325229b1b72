import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from baselines.tiny import TINY
from dlsr.baselines import make_detector
from dlsr.baselines.complexity import complexity
from dlsr.baselines.ddpm import times_of_unit_pixels
from dlsr.baselines.diffusion import ALPHA_BAR, T, scaled
from dlsr.baselines.lmd import checkerboard
from dlsr.baselines.networks import SmallResNet, moved
from dlsr.baselines.pixelcnn import PixelCNNNetwork, negative_log_likelihood
from dlsr.baselines.simclr import augmented, nt_xent, turned
from dlsr.baselines.vae import ConvVAE
from dlsr.images.sources import open_images
from dlsr.images.transforms import read_pixels
from dlsr.method.diffusion import ddim_step, distort
from dlsr.method.noise import noise_for
from dlsr.training.loop import Draws
from rivals import pytorch_ood_of


def test_noisy_images_are_more_complex_than_flat_images():
    flat = np.full((32, 32, 3), 90, np.uint8)
    noisy = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert complexity(flat) < 1
    assert 7.5 < complexity(noisy) < 9.5
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "PNG", optimize=True)
    assert complexity(noisy) <= 8 * len(buffer.getvalue()) / noisy.size


def test_glow_is_a_density(fitted, image_folder):
    """Change of variables: log p(x) = log N(z) + log |dz/dx|, the latter from the numeric Jacobian."""
    detector = fitted("glow")
    pixels, _ = read_pixels(open_images(image_folder).subset([0]), 32, "bicubic")
    x = (detector._tensor(pixels).float() + 0.5) / 256
    flow = detector.network_

    def latent(flat):
        z, _ = flow.inverse_and_log_det(flat.reshape(1, 3, 32, 32))
        return torch.cat([part.flatten() for part in z])

    z, _ = flow.inverse_and_log_det(x)
    base = sum(q.log_prob(part) for q, part in zip(flow.q0, z, strict=True))
    jacobian = torch.func.jacrev(latent)(x.flatten())
    log_det = torch.linalg.slogdet(jacobian.double()).logabsdet
    expected = 8 - (base + log_det) / (3072 * math.log(2))
    torch.testing.assert_close(detector._bits(x), expected.float(), rtol=1e-4, atol=1e-3)


def test_glow_is_initialised_from_images_of_all_classes():
    """Its first ActNorm centres pixels, here of 40 dark images that come before 40 bright ones."""
    images = np.repeat(np.array([[20], [220]], np.uint8), 40, axis=1).reshape(80, 1, 1, 1)
    noise = np.random.default_rng(0).integers(0, 20, (80, 32, 32, 3), dtype=np.uint8)
    detector = make_detector("glow", levels=1, steps=1, hidden=8, epochs=1, batch_size=32, lr=1e-9).fit(images + noise)
    centre = detector.network_.flows[0][0].flows[-1].t
    torch.testing.assert_close(centre.mean(), torch.tensor(0.5), rtol=0, atol=0.1)


def test_pixelcnn_sees_only_earlier_pixels():
    network = PixelCNNNetwork(4, 1, 2, 0.0)
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    for row, column in ((0, 0), (5, 7), (8, 0), (15, 15)):
        (gradient,) = torch.autograd.grad(network(x)[0, :, row, column].sum(), x)
        seen = gradient[0].abs().sum(dim=0) > 0
        places = torch.arange(256).reshape(16, 16)
        assert not seen[places >= 16 * row + column].any()
        if row and column:
            assert seen[row, column - 1]
            assert seen[row - 1, column]
            assert seen[row - 1, min(column + 1, 15)]


@pytest.mark.parametrize("level", [0, 100, 255])
def test_the_pixelcnn_likelihood_sums_to_that_of_red_over_all_greens_and_blues(level):
    """The logistics of red do not depend on green and blue: p(r) by its formula, sum of p(r, g, b) by the function."""
    parameters = 0.5 * torch.randn(1, 20, 1, 1)
    levels = torch.arange(256) / 127.5 - 1
    green, blue = torch.meshgrid(levels, levels, indexing="ij")
    pixels = torch.stack([torch.full_like(green, levels[level]), green, blue], dim=-1).reshape(-1, 3, 1, 1)
    nats = negative_log_likelihood(parameters.expand(len(pixels), -1, -1, -1), pixels)
    mixture, rest = parameters[0, :2, 0, 0].softmax(0), parameters[0, 2:, 0, 0].reshape(3, 3, 2)
    mean, log_scale, _ = rest[0]
    above, below = (((levels[level] + half - mean) * torch.exp(-log_scale)).sigmoid() for half in (1 / 255, -1 / 255))
    above, below = (torch.ones(2) if level == 255 else above), (torch.zeros(2) if level == 0 else below)
    expected = (mixture * (above - below)).sum()
    torch.testing.assert_close(nats.double().neg().exp().sum().float(), expected, rtol=1e-3, atol=0)


def test_nt_xent_agrees_with_its_formula():
    z = torch.randn(6, 5)
    unit = F.normalize(z, dim=1)
    total = 0.0
    for i in range(6):
        partner = (i + 3) % 6
        others = [torch.exp(unit[i] @ unit[k] / 0.5) for k in range(6) if k != i]
        total -= torch.log(torch.exp(unit[i] @ unit[partner] / 0.5) / sum(others))
    torch.testing.assert_close(nt_xent(z, 0.5), total / 6)


def test_augmentations_are_a_function_of_the_generator(image_folder):
    pixels, _ = read_pixels(open_images(image_folder), 32, "bicubic")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    first, second = (augmented(images, Draws(torch.Generator().manual_seed(s), len(images))) for s in (0, 1))
    assert first.shape == images.shape
    assert first.min() >= -1
    assert first.max() <= 1
    assert (first - second).abs().mean() > 0.05
    torch.testing.assert_close(first, augmented(images, Draws(torch.Generator().manual_seed(0), len(images))))


@pytest.mark.parametrize("name", ["msp+trained", "energy+trained", "dice+trained", "ash-s+trained"])
def test_pytorch_ood_scores_the_whole_network_as_we_do(fitted, training, odd_folder, name):
    detector = fitted(name)
    theirs = pytorch_ood_of(detector)
    batches = torch.split(images_of(detector, training), 16)
    theirs.fit([(batch, torch.zeros(len(batch)).long()) for batch in batches])
    with torch.no_grad():
        expected = theirs(images_of(detector, odd_folder))
    assert expected.std() > 0
    np.testing.assert_allclose(detector.score_samples(odd_folder), expected, rtol=1e-4)


def images_of(detector, source):
    """Images in `[-1, 1]`."""
    return scaled(detector._tensor(detector._read(open_images(source), None)[0]))


def test_likelihood_regret_grows_with_steps():
    torch.manual_seed(0)
    network = ConvVAE(4, 4, 32)
    with torch.no_grad():
        network.decoder[0].weight.mul_(100)  # so that much depends on the code
    images = (40 * torch.arange(6)).to(torch.uint8)[:, None, None, None].expand(6, 3, 32, 32)
    regrets = []
    for steps in (0, 5, 40):
        detector = make_detector("vae", width=4, latent=4, regret_steps=steps, regret_lr=1e-2)
        detector.network_ = network
        regrets.append(detector._scores(images))
    assert (regrets[0] == 0).all()
    assert 0 < regrets[1].mean() < regrets[2].mean()
    assert (regrets[2] > 0).all()


def test_the_likelihood_of_a_vae_is_estimated_from_weighted_samples():
    """A decoder that ignores the code: then the likelihood does not depend on the encoder, and the bound is exact."""
    network = ConvVAE(4, 3, 8, 1)
    with torch.no_grad():
        network.decoder[0].weight.zero_()
    image = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = network._reconstruction(image, torch.zeros(1, 3)).item()
        encoded = torch.tensor([[0.5, 0.0, -0.3, 0.2, 0.0, -0.1]])
        assert network.negative_likelihood(image, encoded, noise).item() == pytest.approx(exact, abs=0.05)
        elbo = network.negative_elbo(image, encoded, noise[:1]).item()
    divergence = np.sum(0.5 * (np.array([0.25, 0, 0.09]) + np.exp([0.2, 0, -0.1]) - 1 - np.array([0.2, 0, -0.1])))
    assert elbo == pytest.approx(exact + divergence, abs=1e-2)


def test_inpainting_leaves_kept_pixels_as_they_are(fitted):
    detector = fitted("lmd")
    kept, other = (checkerboard(32, parity) for parity in range(2))
    assert (kept ^ other).all()
    assert kept.float().mean() == 0.5
    x0 = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        painted = detector._inpainted(x0, kept, torch.randn(2, 6, 3, 32, 32))
    torch.testing.assert_close(painted[:, :, kept], x0[:, :, kept])
    assert (painted[:, :, ~kept] - x0[:, :, ~kept]).abs().mean() > 0.05


MEAN, STD = 0.2, 0.2


def best_estimate(xt, t, alpha_bar):
    """Of images whose pixels are independent and normal."""
    signal = alpha_bar[t]
    gain = signal.sqrt() * STD**2 / (signal * STD**2 + 1 - signal)
    return MEAN + gain * (xt - signal.sqrt() * MEAN)


def test_inpainting_with_the_best_denoiser_samples_the_distribution():
    detector = make_detector("lmd", **TINY["lmd"] | {"steps": 250})
    detector._x0_of = best_estimate
    noise = torch.randn(8, 500, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = checkerboard(32, 0)
    painted = detector._inpainted(torch.zeros(8, 1, 32, 32), kept, noise)[:, :, ~kept]
    assert painted.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert painted.std().item() == pytest.approx(STD, rel=0.15)  # the fewer steps, the smaller


def test_a_perfect_denoiser_restores_the_image():
    detector = make_detector("ddpm", **TINY["ddpm"])
    x0 = torch.rand(2, 3, 32, 32) * 2 - 1
    detector._x0_of = lambda xt, t, alpha_bar: x0
    restored = detector._restored(x0, (1000, 500, 1), torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(restored, x0)


@pytest.mark.parametrize("t", [1, 40, 500, 900])
def test_pixels_in_0_1_are_as_noisy_as_those_in_minus_1_1_at_the_time_found(t):
    (found,) = times_of_unit_pixels([t])

    def signal_to_noise(variance, time):
        return (variance * ALPHA_BAR[time] / (1 - ALPHA_BAR[time])).item()

    # Whatever the image is: its variance is four times as large in [-1, 1].
    assert signal_to_noise(4, found) <= signal_to_noise(1, t) < signal_to_noise(4, found - 1)


def test_times_of_unit_pixels_fall():
    assert times_of_unit_pixels(range(T, 0, -1))[0] == T
    assert times_of_unit_pixels([900, 500, 100]) == sorted(times_of_unit_pixels([900, 500, 100]), reverse=True)


def test_guidance_is_given_where_its_scale_says(fitted):
    detector = fitted("diffguard")
    state = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    label = torch.tensor([0, 1, 0, 1])
    none = torch.full((4,), detector.classes_)
    left = (torch.arange(32) < 16).float().expand(4, 1, 32, 32)
    with torch.no_grad():
        guided = detector._guided_noise(state, 300, label, 3 * left)
        towards, without = (detector._noise_in(state, 300, labels) for labels in (label, none))
    assert (towards - without).abs().mean() > 1e-4
    torch.testing.assert_close(guided, torch.where(left > 0, 3 * towards - 2 * without, without), rtol=1e-4, atol=1e-4)


def test_without_guidance_inversion_and_restoration_undo_each_other():
    x0 = MEAN + STD * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    label, scale = torch.zeros(2).long(), torch.zeros(2, 1, 32, 32)

    def error(steps):
        detector = make_detector("diffguard", **TINY["diffguard"] | {"steps": steps})
        detector.classes_ = 2

        def noise_in(xt, t, labels):
            return (xt - ALPHA_BAR[t].sqrt() * best_estimate(xt, t, ALPHA_BAR)) / (1 - ALPHA_BAR[t]).sqrt()

        detector._noise_in = noise_in
        with torch.no_grad():
            return (detector._restored_as(x0, label, scale) - x0).square().mean().item()

    assert error(250) < error(25) < STD**2
    assert error(250) < 0.03 * STD**2


def test_the_scale_and_mean_of_a_networks_weights_do_not_matter():
    network = SmallResNet(4, 2)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 15  # a first one, and two in each of six blocks, two of which change the width
    with torch.no_grad():
        before = network(images)
        assert before.std() > 0.01
        for convolution in convolutions:
            convolution.weight.mul_(3).add_(1)
        torch.testing.assert_close(network(images), before, rtol=1e-3, atol=1e-3)


def test_the_activation_map_is_highest_where_the_output_comes_from():
    network = SmallResNet(4, 2)
    network.body = torch.nn.AvgPool2d(4)  # 3 channels, 8 x 8 fields
    network.head = torch.nn.Linear(3, 2)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, :8, :8] = 1.0
    image[:, 1, 8:16, :8] = 0.5
    image[:, 2, 24:, 24:] = 1.0
    first, second = (network.activation_map(image, torch.tensor([output]))[0, 0] for output in (0, 1))
    assert first.max() == second.max() == 1
    assert (first[1:7, 1:7] > 0.5).all()
    assert (second[9:15, 1:7] > 0.5).all()
    assert (first[16:24, 16:24] < 0.1).all()
    assert (second[24:] == 0).all()
    assert first.min() == second.min() == 0


def test_images_are_moved_by_whole_pixels_and_mirrored():
    images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).repeat(100, 1, 1, 1) + 1
    found = moved(images, Draws(torch.Generator().manual_seed(0), len(images)))
    assert found.shape == images.shape
    places = set()
    for image, result in zip(images, found, strict=True):
        padded = F.pad(image, [4] * 4)
        (place,) = (
            (row, column, mirrored)
            for row in range(9)
            for column in range(9)
            for mirrored in (False, True)
            if torch.equal(padded[:, row : row + 32, column : column + 32], result.flip(2) if mirrored else result)
        )
        places.add(place)
    assert len(places) > 100


def test_hues_are_turned_about_grey():
    images = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.4, 0.4]])[:, :, None, None]
    third = torch.tensor([2 * torch.pi / 3] * 2)
    torch.testing.assert_close(turned(images, third)[:, :, 0, 0], torch.tensor([[0.0, 1.0, 0.0], [0.4, 0.4, 0.4]]))
    torch.testing.assert_close(turned(images, torch.zeros(2)), images)


def test_each_step_of_an_inpainting_uses_noise_of_its_own(monkeypatch):
    """RePaint, Algorithm 1: the start, the kept part of each step and the sampled part of each step."""
    detector = make_detector("lmd", **TINY["lmd"])
    states, used = [], []

    def x0_of(xt, t, alpha_bar):
        states.append(xt)
        return torch.zeros_like(xt)

    def recorded(step):
        def call(*args):
            used.append(args[-1].unique().item())
            return step(*args)

        return call

    detector._x0_of = x0_of
    for step in (distort, ddim_step):
        monkeypatch.setattr(f"dlsr.baselines.lmd.{step.__name__}", recorded(step))
    kept = checkerboard(32, 0)
    numbered = torch.arange(6.0).reshape(1, 6, 1, 1, 1).expand(1, 6, 3, 32, 32)
    detector._inpainted(torch.zeros(1, 3, 32, 32), kept, numbered)
    start = states[0][:, :, ~kept].unique().item()
    assert sorted([start, *used]) == [0, 1, 2, 3, 4, 5]


def test_likelihood_regret_draws_only_the_noise_of_the_code(fitted, odd_folder, monkeypatch):
    detector = fitted("vae")
    pixels = detector._tensor(read_pixels(open_images(odd_folder).subset(range(3)), 32, "bicubic")[0])
    drawn = []

    def recorded(digests, seed, draws, c):
        drawn.append(draws * c)
        return noise_for(digests, seed, draws, c)

    monkeypatch.setattr("dlsr.baselines.pixels.noise_for", recorded)
    scores = detector._scores(pixels)
    assert drawn == [(detector.regret_steps + detector.regret_samples) * detector.latent]
    assert torch.isfinite(scores).all()
