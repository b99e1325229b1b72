import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dlsr import ArtifactError, Detector, InputError, NotFittedError, SettingsError, UnreadableImagesWarning
from dlsr.baselines import DETECTORS, make_detector
from dlsr.baselines.complexity import complexity
from dlsr.baselines.lmd import checkerboard
from dlsr.baselines.pixelcnn import PixelCNNNetwork, negative_log_likelihood
from dlsr.baselines.simclr import augmented, nt_xent
from dlsr.images.sources import open_images
from dlsr.images.transforms import read_pixels
from dlsr.training.loop import Draws

TINY = {
    "glow": {"steps": 1, "hidden": 8, "epochs": 1, "batch_size": 32},
    "pixelcnn++": {"channels": 4, "blocks": 1, "mixtures": 2, "epochs": 1},
    "vae": {"width": 4, "latent": 4, "epochs": 1, "regret_steps": 3, "regret_lr": 1e-3},
    "ddpm": {"width": 4, "starts": 2, "steps": 3, "epochs": 1, "batch_size": 64},
    "lmd": {"width": 4, "attempts": 2, "steps": 3, "epochs": 1, "batch_size": 64},
    "diffguard": {"width": 4, "steps": 2, "epochs": 1, "classifier_epochs": 1, "batch_size": 64},
    "simclr+mahalanobis": {"width": 4, "projection": 8, "epochs": 1, "batch_size": 32},
    "simclr+knn": {"width": 4, "projection": 8, "epochs": 1, "batch_size": 32, "neighbours": 5},
    "msp": {"encoder": "test_resnet", "weights": "random", "epochs": 2},
    "energy": {"encoder": "test_resnet", "weights": "random", "epochs": 2},
    "dice": {"encoder": "test_resnet", "weights": "random", "epochs": 2},
    "ash-s": {"encoder": "test_resnet", "weights": "random", "epochs": 2},
    "anomalib+fre": {"encoder": "test_resnet", "weights": "random", "latent": 8, "epochs": 5},
    "anomalib+dfm": {"encoder": "test_resnet", "weights": "random"},
    "pyod+iforest": {"encoder": "test_resnet", "weights": "random"},
    "pyod+lof": {"encoder": "test_resnet", "weights": "random"},
}


def labels_of(folder):
    return [int("one" in item.name) for item in open_images(folder).items]


@pytest.fixture(scope="module")
def fitted(image_folder):
    cache = {}

    def fit(name):
        if name not in cache:
            cache[name] = make_detector(name, **TINY[name]).fit(image_folder, labels_of(image_folder))
        return cache[name]

    return fit


@pytest.mark.parametrize("name", TINY)
def test_scores_are_the_same_alone_shuffled_and_after_loading(name, fitted, odd_folder, tmp_path):
    detector = fitted(name)
    images = open_images(odd_folder).subset(range(12))
    scores = detector.score_samples(images)
    assert scores.shape == (12,)
    assert np.isfinite(scores).all()
    assert scores.std() > 0
    order = np.random.default_rng(0).permutation(12)
    tolerance = 1e-4 * np.abs(scores).max()
    np.testing.assert_allclose(detector.score_samples(images.subset(order)), scores[order], atol=tolerance)
    alone = [detector.score_samples(images.subset([i]))[0] for i in range(3)]
    np.testing.assert_allclose(alone, scores[:3], atol=tolerance)
    detector.save(tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.p*"))
    again = type(detector).load(tmp_path / "model")
    assert again.get_params() == detector.get_params()
    np.testing.assert_allclose(again.score_samples(images), scores, atol=tolerance)


def test_every_entry_of_the_registry_is_tested_and_can_be_made():
    of_ours = {name for name in DETECTORS if isinstance(make_detector(name), Detector)}
    assert DETECTORS.keys() - of_ours == TINY.keys()
    for name in DETECTORS:
        full, reduced = make_detector(name), make_detector(name, reduced=True)
        assert set(DETECTORS[name].reduced) <= set(full.get_params())
        assert all(reduced.get_params()[key] == value for key, value in DETECTORS[name].reduced.items())
    with pytest.raises(SettingsError, match="choose among glow, "):
        make_detector("flow")


def test_unreadable_images_are_named_and_nan(fitted, tmp_path, photographs):
    photographs[0].crop((0, 0, 40, 40)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    with pytest.warns(UnreadableImagesWarning, match=r"b\.png"):
        scores = fitted("simclr+knn").score_samples(tmp_path)
    assert np.isfinite(scores[0])
    assert np.isnan(scores[1])


def test_what_users_get_wrong(image_folder, fitted, tmp_path):
    with pytest.raises(NotFittedError):
        make_detector("vae").score_samples(image_folder)
    with pytest.raises(InputError, match="'msp' needs a label"):
        make_detector("msp", **TINY["msp"]).fit(image_folder)
    with pytest.raises(InputError, match="2 labels for 120 images"):
        make_detector("msp", **TINY["msp"]).fit(image_folder, [0, 1])
    fitted("simclr+knn").save(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"holds a 'simclr\+knn', not a 'vae'"):
        type(make_detector("vae")).load(tmp_path / "model")
    with pytest.raises(ArtifactError, match="holds a dlsr-baseline, not a dlsr-model"):
        Detector.load(tmp_path / "model")


def test_an_interrupted_fit_resumes(image_folder, tmp_path):
    settings = TINY["simclr+knn"] | {"epochs": 3}
    whole = make_detector("simclr+knn", **settings).fit(image_folder)
    checkpoint = tmp_path / "state"
    fits = make_detector("simclr+knn", **settings)

    class StoppedError(Exception):
        pass

    from dlsr.training.checkpoint import Checkpoint

    class Stopping(Checkpoint):
        def save(self, state):
            super().save(state)
            if state.epoch == 1:
                raise StoppedError

    from dlsr.baselines import base

    original, base.Checkpoint = base.Checkpoint, Stopping
    try:
        with pytest.raises(StoppedError):
            fits.fit(image_folder, checkpoint=checkpoint)
    finally:
        base.Checkpoint = original
    resumed = fits.fit(image_folder, checkpoint=checkpoint)
    for name, tensor in whole.network_.state_dict().items():
        torch.testing.assert_close(resumed.network_.state_dict()[name], tensor, msg=name)


# Each method's own maths


def test_complexity_of_flat_and_noisy_images():
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


def test_pixelcnn_sees_only_what_comes_before():
    torch.manual_seed(0)
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


def test_pixelcnn_likelihood_is_a_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 10, 1, 1)
    logits[:, [7, 8, 9]] *= 0
    # One logistic for each colour, without links: p(r, g, b) = p(r) p(g) p(b), so red sums to one for any green, blue.
    logits = logits.reshape(1, 10, 1, 1)
    levels = torch.arange(256) / 127.5 - 1
    links_free = torch.zeros(1, 10, 1, 1)
    links_free[0, 1:10] = torch.tensor([0.3, -1.0, 0.0] * 3)[:, None, None]
    pixels = torch.zeros(256, 3, 1, 1)
    pixels[:, 0, 0, 0] = levels
    joint = torch.exp(-negative_log_likelihood(links_free.expand(256, -1, -1, -1), pixels))
    both = torch.zeros(1, 3, 1, 1)
    one = torch.exp(-negative_log_likelihood(links_free, both))
    assert joint.sum().item() == pytest.approx(one.item() ** (2 / 3), rel=1e-3)


def test_nt_xent_by_hand():
    torch.manual_seed(0)
    z = torch.randn(6, 5)
    unit = F.normalize(z, dim=1)
    total = 0.0
    for i in range(6):
        partner = (i + 3) % 6
        others = [torch.exp(unit[i] @ unit[k] / 0.5) for k in range(6) if k != i]
        total -= torch.log(torch.exp(unit[i] @ unit[partner] / 0.5) / sum(others))
    torch.testing.assert_close(nt_xent(z, 0.5), total / 6)


def test_augmented_views_differ_and_are_reproducible(image_folder):
    pixels, _ = read_pixels(open_images(image_folder), 32, "bicubic")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    first, second = (augmented(images, Draws(torch.Generator().manual_seed(s), len(images))) for s in (0, 1))
    assert first.shape == images.shape
    assert first.min() >= -1
    assert first.max() <= 1
    assert (first - second).abs().mean() > 0.05
    torch.testing.assert_close(first, augmented(images, Draws(torch.Generator().manual_seed(0), len(images))))


def test_likelihood_regret_is_never_negative_and_grows_with_steps(image_folder, odd_folder):
    few = make_detector("vae", **TINY["vae"]).fit(image_folder)
    scores = few.score_samples(odd_folder)
    assert (scores >= 0).all()
    many = type(few)(**(few.get_params() | {"regret_steps": 10}))
    many.network_ = few.network_
    assert many.score_samples(odd_folder).mean() > scores.mean()


def test_inpainting_keeps_what_is_kept(fitted):
    detector = fitted("lmd")
    kept, other = (checkerboard(32, parity) for parity in range(2))
    assert (kept ^ other).all()
    assert kept.float().mean() == 0.5
    x0 = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        painted = detector._inpainted(x0, kept, torch.randn(2, 4, 3, 32, 32))
    torch.testing.assert_close(painted[:, :, kept], x0[:, :, kept])
    assert (painted[:, :, ~kept] - x0[:, :, ~kept]).abs().mean() > 0.05


def test_a_perfect_denoiser_restores_everything(fitted):
    """DDPM's reconstruction with a network that knows the image is the image, from every noise level."""
    detector = fitted("ddpm")
    x0 = torch.rand(2, 3, 32, 32) * 2 - 1
    known = type(detector)(**detector.get_params())
    known._x0_of = lambda xt, t, alpha_bar: x0
    restored = known._restored(x0, (1000, 500, 1), torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(restored, x0)


def test_guidance_raises_the_likelihood_of_the_label(fitted):
    from dlsr.baselines.diffusion import T
    from dlsr.method.schedule import cosine_alpha_bar

    detector = fitted("diffguard")
    alpha_bar = cosine_alpha_bar(T)
    state = torch.rand(4, 3, 32, 32) - 0.5
    label = torch.zeros(4).long()
    classifier = detector.network_["classifier"]
    with torch.no_grad():
        plain = detector._x0_of(state, 300, alpha_bar)
    guided = detector._guided(state, 300, label, alpha_bar)
    with torch.no_grad():
        before, after = (F.cross_entropy(classifier(x), label) for x in (plain, guided))
    assert after < before


def test_classifier_scores_by_their_formulas(fitted, odd_folder):
    detector = fitted("msp")
    rows, _ = detector._read(open_images(odd_folder), None)
    logits = detector.network_(torch.from_numpy(rows)).detach()
    np.testing.assert_allclose(detector.score_samples(odd_folder), -logits.softmax(1).max(1).values, atol=1e-5)
    energy = fitted("energy")
    torch.testing.assert_close(energy.network_.weight, detector.network_.weight)
    np.testing.assert_allclose(energy.score_samples(odd_folder), -logits.logsumexp(1), atol=1e-4)
    dice = fitted("dice")
    head = dice.network_
    contribution = head.mean_feature * head.weight
    kept = torch.where(contribution > contribution.flatten().quantile(0.9), head.weight, 0.0)
    expected = -(torch.from_numpy(rows) @ kept.T + head.bias).logsumexp(1)
    np.testing.assert_allclose(dice.score_samples(odd_folder), expected.detach(), atol=1e-4)
    ash = fitted("ash-s")
    x = torch.from_numpy(rows)
    cut = x.sort(dim=1).values[:, round(x.shape[1] * 0.65)][:, None]
    pruned = torch.where(x >= cut, x, 0.0)
    shaped = pruned * torch.exp(x.sum(1) / pruned.sum(1))[:, None]
    np.testing.assert_allclose(
        ash.score_samples(odd_folder), -ash.network_(shaped).logsumexp(1).detach(), rtol=1e-4, atol=1e-4
    )


def test_dfm_is_what_principal_components_leave_out(fitted, image_folder, odd_folder):
    from sklearn.decomposition import PCA

    detector = fitted("anomalib+dfm")
    rows, _ = detector._read(open_images(image_folder), None)
    odd, _ = detector._read(open_images(odd_folder), None)
    pca = PCA().fit(rows)
    count = detector.network_.singular_vectors.shape[1]
    assert 0.9 < pca.explained_variance_ratio_[:count].sum() < 0.98
    centred = odd - pca.mean_
    error = np.square(centred).sum(axis=1) - np.square(centred @ pca.components_[:count].T).sum(axis=1)
    np.testing.assert_allclose(detector.score_samples(odd_folder), error, rtol=1e-2)


def test_pyod_agrees_with_scikit_learn(fitted, odd_folder):
    from sklearn.neighbors import LocalOutlierFactor

    detector = fitted("pyod+lof")
    rows, _ = detector._read(open_images(odd_folder), None)
    own = LocalOutlierFactor(20, novelty=True).fit(detector.network_.references.numpy())
    np.testing.assert_allclose(detector.score_samples(odd_folder), -own.score_samples(rows), rtol=1e-5)


@pytest.mark.parametrize("score", ["autoencoder", "feature-vae"])
def test_autoencoders_on_features(score, features, tmp_path):
    inside, outside = features
    detector = Detector(score=score, width=64, blocks=2, epochs=60, batch_size=32, lr=3e-3).fit_features(
        inside, (4, 8, 12)
    )
    from dlsr import evaluate_scores

    auroc = evaluate_scores(detector.score_features(inside[:200]), detector.score_features(outside)).auroc
    assert auroc > 0.75
    detector.save(tmp_path / "model")
    again = Detector.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_features(outside), detector.score_features(outside))
