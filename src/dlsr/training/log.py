"""What is kept of each epoch of a training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EpochLog:
    """Losses of one epoch: for LFDN, means over the elements of `z0`."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    validation_loss: float
    """Of the averaged network, on held-out features with fixed noise."""
