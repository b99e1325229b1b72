"""The parts of the score `residual`, varied one at a time, on cached features of real datasets, matched protocol.

    python benchmarks/ablation_residual.py --data ../shared/data --output docs/ablation-residual.json

Run it after `quality.py`, whose features it reads from the store. One network is trained; then its time, the weight of
the expected error, the number of draws and the layers are varied. Choices were made by the column "chosen on", the mean
of SVHN crops and DTD; the other datasets were not looked at before.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from dlsr import Detector, evaluate_scores
from dlsr.artifact import installed_versions
from dlsr.encoding.pipeline import Encoded
from dlsr.encoding.store import default_store_root
from dlsr.images.transforms import protocol_transform
from dlsr.method.diffusion import distort
from dlsr.method.lfdn import LFDN
from dlsr.scorers import ScorerSettings, resolve
from dlsr.scorers.base import FitData, LayerScores, Scorer, score_features
from dlsr.scorers.paper import restoration_loss
from dlsr.scorers.residual import ResidualScorer
from dlsr.training.loop import new_state, train
from quality import CHOSEN_ON, fit_data, fitted_scorer, real_datasets, write_report

TEST_IMAGES = 2000

BASE = {
    "expected_error_weight": 0.7,
    "expected_error_quantile": 1.0,
    "width": 768,
    "blocks": 4,
    "epochs": 8,
}
"""The default before its weight and ceiling were chosen, and then its size (`fast.py`)."""


class LedoitWolf(Scorer):
    """The Mahalanobis distance with the covariance estimate of Ledoit and Wolf, for comparison."""

    def __init__(self, z0: Tensor) -> None:
        super().__init__(ScorerSettings(), (z0.shape[1],))
        samples = z0.double().numpy()
        self._mean = torch.from_numpy(samples.mean(axis=0))
        self._precision = torch.from_numpy(np.linalg.inv(ledoit_wolf(samples)[0]))

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        centred = z0.double() - self._mean
        distances = ((centred @ self._precision) * centred).sum(dim=1)
        return distances, distances[:, None]


class Weighted(Scorer):
    """A scorer with other weights of its layers."""

    def __init__(self, scorer: Scorer, weights: Tensor) -> None:
        super().__init__(scorer.settings, scorer.channels)
        self._scorer, self._weights = scorer, weights
        self.noise_vectors = scorer.noise_vectors

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        _, layers = self._scorer(z0, noise)
        return layers @ self._weights, layers


def variants(data: FitData, progress: Any) -> Iterator[tuple[str, Scorer]]:
    channels = data.channels
    for score in ("mahalanobis", "knn"):
        yield score, fitted_scorer(replace(data, settings=resolve(score=score)))
    yield "mahalanobis, Ledoit-Wolf", LedoitWolf(next(iter(data.training)))
    scorer = fitted_scorer(data, progress)
    assert isinstance(scorer, ResidualScorer)

    def variant(**changes: Any) -> ResidualScorer:
        other = ResidualScorer(scorer.settings.changed(changes), channels)
        other.load_state_dict(scorer.state_dict())
        other.standardise(data.validation, data.validation_digests, data.settings.seed)
        return other

    yield "base", scorer
    for t in (10, 30, 60, 70, 90, 100):
        yield f"t = {t}", variant(t=t)
    for weight in (0.0, 0.5, 1.0):
        yield f"weight of the expected error = {weight:g}", variant(expected_error_weight=weight)
    for quantile in (0.5, 0.8, 0.9, 0.95, 0.99, 1.0):
        yield f"ceiling at the quantile {quantile:g}", variant(expected_error_quantile=quantile)
    for quantile in (0.8, 0.95):
        yield (
            f"weight 1, ceiling at the quantile {quantile:g}",
            variant(expected_error_quantile=quantile, expected_error_weight=1.0),
        )
    for draws in (1, 16):
        yield f"draws = {draws}", variant(draws=draws)
    sizes = torch.tensor(channels).float()
    yield "all layers weigh alike", Weighted(scorer, torch.ones(len(channels)) / len(channels))
    yield "layers weigh as their dimensions", Weighted(scorer, sizes / sizes.sum())
    for layer in range(len(channels)):
        yield f"layer {layer} alone", Weighted(scorer, torch.eye(len(channels))[layer])


def linear_restoration(trained: ResidualScorer, data: FitData) -> dict[str, float]:
    """Held-out loss of Eq. 4 in coordinates of unit mean variance: a plain LFDN, the Wiener filter, both together."""
    gaussian, channels, settings = trained.gaussian, trained.channels, trained.settings
    x0, validation = data.training.map(gaussian.coordinates), gaussian.coordinates(data.validation)
    alpha_bar = settings.alpha_bar()
    c, width, blocks = sum(channels), settings.width or 2 * sum(channels), settings.blocks
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(1, len(alpha_bar), (len(validation),), generator=generator)
    xt = distort(validation, t, alpha_bar, torch.randn(validation.shape, generator=generator))
    torch.manual_seed(0)
    plain = LFDN(c, width, blocks)
    state = new_state(plain)
    loss = partial(restoration_loss, plain, alpha_bar)
    for done in train(plain, x0, validation, loss, settings, 0, state):
        state = done
    plain.load_state_dict(state.best)
    with torch.inference_mode():
        restored = {
            "LFDN": plain(xt, t),
            "Wiener filter": gaussian.wiener(xt, alpha_bar[t][:, None]),
            "LFDN around the Wiener filter": trained.restored(trained.lfdn(xt, t), xt, alpha_bar[t][:, None])[0],
        }
    return {name: float((z0 - validation).square().mean()) for name, z0 in restored.items()}


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    store: Path | None = None,
    limit: int | None = None,
) -> None:
    train_images, datasets = real_datasets(data, limit)
    extractor = Detector(pooling="mean", store=store or default_store_root()).prepare_extractor()
    channels = extractor.encoder.channels
    everything = extractor.encode(train_images)
    transform = protocol_transform("matched")
    encoded = {name: sample(extractor.encode(images, transform=transform)) for name, images in datasets.items()}
    settings = resolve("default", "residual", BASE)
    training = fit_data(settings, channels, everything)
    names = [name for name in encoded if name != "CIFAR-10 test"]
    table = []
    trained: ResidualScorer | None = None
    for name, scorer in variants(training, lambda entry, _: print(entry, file=sys.stderr, flush=True)):
        trained = scorer if isinstance(scorer, ResidualScorer) else trained
        by_dataset = {
            k: score_features(scorer, torch.from_numpy(e.z0), e.digests, settings.seed)[0].numpy()
            for k, e in encoded.items()
        }
        aurocs = {k: evaluate_scores(by_dataset["CIFAR-10 test"], by_dataset[k]).auroc for k in names}
        table.append(
            {
                "variant": name,
                "chosen on": float(np.mean([aurocs[k] for k in CHOSEN_ON])),
                "average": float(np.mean([aurocs[k] for k in names[:4]])),
                **aurocs,
            }
        )
        print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    assert trained is not None
    content = {
        "command": "python benchmarks/ablation_residual.py " + " ".join(sys.argv[1:]),
        "test_images_per_set": TEST_IMAGES,
        "rows": table,
        "held_out_loss": linear_restoration(trained, training),
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content, names))


def sample(encoded: Encoded) -> Encoded:
    """At most `TEST_IMAGES` images, chosen at random."""
    chosen = np.random.default_rng(0).permutation(len(encoded.z0))[:TEST_IMAGES]
    return Encoded([], [], encoded.z0[chosen], encoded.digests[chosen], encoded.keys[chosen])


def markdown(content: dict[str, Any], names: list[str]) -> str:
    columns = ["chosen on", *names, "average"]
    lines = [f"`{content['command']}`", "", f"| variant | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in content["rows"]:
        lines.append(f"| {row['variant']} | " + " | ".join(f"{100 * row[column]:.2f}" for column in columns) + " |")
    lines += ["", "| held-out restoration | mean squared error |", "|---|---|"]
    lines += [f"| {name} | {loss:.4f} |" for name, loss in content["held_out_loss"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
