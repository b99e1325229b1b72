"""The state of a training: everything that its next epoch depends on."""

from dataclasses import dataclass, field

from torch import Tensor

from dlsr.training.log import EpochLog

Weights = dict[str, Tensor]


@dataclass
class TrainingState:
    """All that the next epoch depends on.

    `network`, `ema` and `optimizer` are the tensors being trained, not copies, since they may be large: they are
    valid until `train` is asked for its next state.
    """

    network: Weights
    ema: Weights
    optimizer: Weights = field(default_factory=dict)
    """AdamW's moments, as `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.step`."""
    initial: Weights = field(default_factory=dict)
    """The averaged network after the first epoch, the paper's "initial epoch" (for LR)."""
    best: Weights = field(default_factory=dict)
    """The averaged network with the lowest validation loss so far."""
    log: list[EpochLog] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.log)

    @property
    def best_epoch(self) -> int:
        """The epoch of `best`, counted from 1; 0 before the first."""
        return min(self.log, key=lambda entry: entry.validation_loss).epoch if self.log else 0
