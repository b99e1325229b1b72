"""Metrics of how well scores separate ID from OOD images. Larger score = more OOD."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import InputError

Scores = NDArray[np.floating]


@dataclass(frozen=True)
class Metrics:
    """Separation of an OOD dataset from ID images, each metric in `[0, 1]`. Field names say which class is positive."""

    auroc: float
    aupr_ood: float
    aupr_id: float
    fpr95_id_positive: float
    """Share of OOD images accepted if 95 % of ID images are accepted (the paper's FPR95)."""
    fpr95_ood_positive: float
    """Share of ID images rejected if 95 % of OOD images are rejected (the FPR95 of OpenOOD and pytorch-ood)."""

    def as_dict(self) -> dict[str, float]:
        """The metrics by name."""
        return asdict(self)


def evaluate_scores(id_scores: Scores, ood_scores: Scores) -> Metrics:
    """All metrics.

    Args:
        id_scores: scores of ID images, shape `(N,)`, larger = more OOD.
        ood_scores: scores of OOD images, shape `(K,)`.

    Raises:
        InputError: if an array is empty or has values that are not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # noqa: PLC0415 - takes half a second to import, and scoring does not need it

    for name, scores in (("ID", id_scores), ("OOD", ood_scores)):
        if len(scores) == 0 or not np.isfinite(scores).all():
            raise InputError(f"the {name} scores are empty or not finite; give at least one readable {name} image")
    is_ood = np.concatenate([np.zeros(len(id_scores)), np.ones(len(ood_scores))])
    scores = np.concatenate([id_scores, ood_scores]).astype(np.float64)
    return Metrics(
        auroc=float(roc_auc_score(is_ood, scores)),
        aupr_ood=float(average_precision_score(is_ood, scores)),
        aupr_id=float(average_precision_score(1 - is_ood, -scores)),
        fpr95_id_positive=fpr_at_tpr(-id_scores, -ood_scores),
        fpr95_ood_positive=fpr_at_tpr(ood_scores, id_scores),
    )


def fpr_at_tpr(positive: Scores, negative: Scores, tpr: float = 0.95) -> float:
    """Share of negatives at or above the highest threshold that accepts at least `tpr` of the positives.

    Args:
        positive: scores of the positive class, shape `(P,)`; larger = more positive.
        negative: scores of the negative class, shape `(N,)`.
        tpr: true positive rate, in (0, 1].
    """
    ordered = np.sort(positive)[::-1]
    # The small constant keeps 0.95 * 20 = 19.000000000000004 from requiring a twentieth positive.
    keep = int(np.ceil(tpr * len(ordered) - 1e-9))
    return float(np.mean(negative >= ordered[keep - 1]))
