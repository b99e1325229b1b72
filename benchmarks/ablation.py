"""What the default is made of, one choice at a time, on cached features of the real sets, matched protocol.

    python benchmarks/ablation.py --data ../shared/data --output docs/ablation.json

Run after `quality.py`, whose features it reads from the store. One network is trained; then its time, the weight of
the expected error, the draws and the parts are varied. Choices were made by the column "chosen on", the mean of SVHN
crops and DTD; the other sets were looked at only afterwards.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from dlsr import Detector, evaluate_scores
from dlsr.artifact import installed_versions
from dlsr.config import PRESETS, NetworkSettings, Settings
from dlsr.encoding.pipeline import Encoded
from dlsr.encoding.store import default_store_root
from dlsr.images.transforms import protocol_transform
from dlsr.method.diffusion import distort
from dlsr.method.lfdn import LFDN
from dlsr.scorers.base import LayerScores, ResidualScorer, Scorer, score_rows
from dlsr.scorers.expected_error import ErrorAwareLFDN
from dlsr.scorers.fitting import fit_scorer, split
from dlsr.training.data import Rows
from dlsr.training.loop import new_state, restoration_loss, train
from quality import CHOSEN_ON, real_sets, write_report

TEST_IMAGES = 2000

BASE = {
    "expected_error_weight": 0.7,
    "expected_error_quantile": 1.0,
    "network": NetworkSettings(width=768, blocks=4),
    "training": PRESETS["default"].training.model_copy(update={"epochs": 8, "min_steps": 0}),
}
"""Where the default stood before weight and ceiling were chosen together, and then its size (`fast.py`)."""


class LedoitWolf(Scorer):
    """The Mahalanobis distance with the covariance of Ledoit and Wolf, for comparison."""

    def __init__(self, z0: Tensor) -> None:
        super().__init__()
        rows = z0.double().numpy()
        self._mean = torch.from_numpy(rows.mean(axis=0))
        self._precision = torch.from_numpy(np.linalg.inv(ledoit_wolf(rows)[0]))

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        centred = z0.double() - self._mean
        distances = ((centred @ self._precision) * centred).sum(dim=1)
        return distances, distances[:, None]


class Weighted(Scorer):
    """A scorer's layers with other weights."""

    def __init__(self, scorer: Scorer, weights: Tensor) -> None:
        super().__init__()
        self._scorer, self._weights = scorer, weights
        self.noise_vectors = scorer.noise_vectors

    def forward(self, z0: Tensor, noise: Tensor) -> LayerScores:
        _, layers = self._scorer(z0, noise)
        return layers @ self._weights, layers


def variants(
    settings: Settings, channels: tuple[int, ...], parts: dict[str, Any], progress: Any
) -> Iterator[tuple[str, Scorer]]:
    training, validation, digests = parts["training"], parts["validation"], parts["digests"]
    for score in ("mahalanobis", "knn"):
        yield (
            score,
            fit_scorer(settings.model_copy(update={"score": score}), channels, Rows(training), validation, digests)[0],
        )
    yield "mahalanobis, Ledoit-Wolf", LedoitWolf(training)
    scorer, _ = fit_scorer(settings, channels, Rows(training), validation, digests, None, progress)
    assert isinstance(scorer, ResidualScorer)
    network = scorer.network

    def variant(**changes: Any) -> ResidualScorer:
        restoration = settings.restoration.model_copy(
            update={k: v for k, v in changes.items() if k in ("steps", "draws")}
        )
        weight = changes.get("weight", settings.expected_error_weight)
        quantile = changes.get("quantile", settings.expected_error_quantile)
        other = settings.model_copy(
            update={
                "restoration": restoration,
                "expected_error_weight": weight,
                "expected_error_quantile": quantile,
            }
        )
        return ResidualScorer.standardised(network, other, validation, digests)

    yield "base", scorer
    for t in (10, 30, 60, 70, 90, 100):
        yield f"t = {t}", variant(steps=(t,))
    for weight in (0.0, 0.5, 1.0):
        yield f"weight of the expected error = {weight:g}", variant(weight=weight)
    for quantile in (0.5, 0.8, 0.9, 0.95, 0.99, 1.0):
        yield f"ceiling at the quantile {quantile:g}", variant(quantile=quantile)
    for quantile in (0.8, 0.95):
        yield f"weight 1, ceiling at the quantile {quantile:g}", variant(quantile=quantile, weight=1.0)
    for draws in (1, 16):
        yield f"draws = {draws}", variant(draws=draws)
    sizes = torch.tensor(channels).float()
    yield "all layers weigh alike", Weighted(scorer, torch.ones(len(channels)) / len(channels))
    yield "layers weigh as their dimensions", Weighted(scorer, sizes / sizes.sum())
    for layer in range(len(channels)):
        yield f"layer {layer} alone", Weighted(scorer, torch.eye(len(channels))[layer])


def linear_restoration(trained: ErrorAwareLFDN, settings: Settings, parts: dict[str, Any]) -> dict[str, float]:
    """Held-out loss of Eq. 4 in coordinates of unit mean variance: a plain LFDN, the Wiener filter, both together."""
    gaussian, channels = trained.gaussian, trained.channels
    x0, validation = gaussian.coordinates(parts["training"]), gaussian.coordinates(parts["validation"])
    alpha_bar = settings.schedule.alpha_bar()
    c, width, blocks = sum(channels), settings.network.width or 2 * sum(channels), settings.network.blocks
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(1, len(alpha_bar), (len(validation),), generator=generator)
    xt = distort(validation, t, alpha_bar, torch.randn(validation.shape, generator=generator))
    torch.manual_seed(0)
    plain = LFDN(c, width, blocks)
    state = new_state(plain)
    for done in train(plain, Rows(x0), validation, restoration_loss(plain, alpha_bar), settings.training, 0, state):
        state = done
    plain.load_state_dict(state.best)
    with torch.inference_mode():
        restored = {
            "LFDN": plain(xt, t),
            "Wiener filter": gaussian.wiener(xt, alpha_bar[t][:, None]),
            "LFDN around the Wiener filter": trained(xt, t)[0],
        }
    return {name: float((one - validation).square().mean()) for name, one in restored.items()}


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write; a Markdown table lies beside it.")],
    store: Path | None = None,
    limit: int | None = None,
) -> None:
    train_images, sets = real_sets(data, limit)
    detector = Detector(store=store or default_store_root())
    channels = detector.prepare_encoder().channels
    everything = detector.encode(train_images)
    transform = protocol_transform("matched")
    encoded = {name: first(detector.encode(one, transform=transform)) for name, one in sets.items()}
    settings = PRESETS["default"].model_copy(update=BASE)
    rows = split(len(everything.z0), 0.05, settings.seed)
    parts = {
        "training": torch.from_numpy(everything.z0[rows.training]),
        "validation": torch.from_numpy(everything.z0[rows.validation]),
        "digests": everything.digests[rows.validation],
    }
    names = [name for name in encoded if name != "CIFAR-10 test"]
    table = []
    trained: ErrorAwareLFDN | None = None
    for name, scorer in variants(settings, channels, parts, lambda entry, _: print(entry, file=sys.stderr, flush=True)):
        trained = scorer.network if isinstance(scorer, ResidualScorer) else trained
        by_set = {
            k: score_rows(scorer, torch.from_numpy(e.z0), e.digests, settings.seed)[0].numpy()
            for k, e in encoded.items()
        }
        aurocs = {k: evaluate_scores(by_set["CIFAR-10 test"], by_set[k]).auroc for k in names}
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
        "command": "python benchmarks/ablation.py " + " ".join(sys.argv[1:]),
        "test_images_per_set": TEST_IMAGES,
        "rows": table,
        "held_out_loss": linear_restoration(trained, settings, parts),
        "versions": installed_versions(),
    }
    write_report(output, content, markdown(content, names))


def first(encoded: Encoded) -> Encoded:
    """At most `TEST_IMAGES` at random, for the many variants."""
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
