"""Training (paper, Algorithm 1): samples in, network out, one epoch at a time so that it can be resumed exactly.

Every random number of an epoch comes from `(seed, epoch)`, so an epoch is a function of the state before it. Those of a
sample belong to the sample, so they are the same however many processes share a batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Self, TypedDict

import torch
from torch import Tensor, nn

from dlsr.config import TrainingSettings
from dlsr.errors import SettingsError
from dlsr.training.checkpoint import Checkpoint
from dlsr.training.data import Samples
from dlsr.training.distributed import ALONE, Ranks
from dlsr.training.log import EpochLog
from dlsr.training.state import TrainingState, Weights


class Draws:
    """Random numbers for the samples of a batch, or for a share of them. Those of the whole batch are always drawn.

    Args:
        generator: their source.
        n: samples in the whole batch.
        share: the samples to return numbers for.
        device: to return them on.
    """

    def __init__(
        self, generator: torch.Generator, n: int, share: slice = slice(None), device: torch.device | None = None
    ) -> None:
        self._generator = generator
        self._n = n
        self._share = share
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, shape `(n, *shape)` for `n` samples."""
        return self._of_share(torch.randn(self._n, *shape, generator=self._generator))

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in `[0, 1)`, shape `(n, *shape)`."""
        return self._of_share(torch.rand(self._n, *shape, generator=self._generator))

    def integers(self, low: int, high: int) -> Tensor:
        """Whole numbers in `[low, high)`, shape `(n,)`."""
        return self._of_share(torch.randint(low, high, (self._n,), generator=self._generator))

    def _of_share(self, numbers: Tensor) -> Tensor:
        return numbers[self._share].to(self._device)


Loss = Callable[[Tensor, Draws], Tensor]
"""Mean loss, shape `()`, of samples, shape `(n, ..)`. All random numbers come from the `Draws`."""


OnEpoch = Callable[[EpochLog, int], None]
"""Callback after each epoch: its losses, and the most epochs there will be."""


def new_state(network: nn.Module) -> TrainingState:
    """The state before the first epoch. Its `network` are the tensors of the network, as in all states of `train`."""
    return TrainingState(network=network.state_dict(), ema=_copy(network.state_dict()))


def train(
    network: nn.Module,
    samples: Samples,
    validation: Tensor,
    loss: Loss,
    settings: TrainingSettings,
    seed: int,
    state: TrainingState,
    ranks: Ranks = ALONE,
) -> Iterator[TrainingState]:
    """Train, yielding the state after each epoch, until the last epoch or until the validation loss stops falling.

    Args:
        network: trained in place, starting from the weights in `state`.
        samples: training data, shape `(N, ..)`, on the network's device; features, for LFDN.
        validation: held-out samples, shape `(V, ..)`, on the same device.
        loss: loss of the network on a batch of samples.
        settings: batch size (of all processes together), learning rate, epochs, patience.
        seed: of order, times and noise.
        state: from `new_state`, or as yielded by an earlier run with the same other arguments; on any device. Its
            tensors are trained further, not copied: a large network takes all the memory that there is.
        ranks: the processes that share each batch; each calls this with the same arguments. The states are those of a
            single process, up to rounding, unless the network draws random numbers itself.
    """
    network.load_state_dict(state.network)
    state.network = network.state_dict()  # whoever holds the state no longer holds a copy
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    _restore_optimizer(optimizer, parameters, state.optimizer)
    device = samples.device
    ema = {name: tensor.to(device) for name, tensor in state.ema.items()}
    buffers = {name: buffer for name, buffer in network.named_buffers() if name in ema}
    objective = ranks.parallel(_Objective(network, loss))
    steps_per_epoch = math.ceil(len(samples) / settings.batch_size)
    epochs = most_epochs(settings, len(samples))
    bfloat16 = uses_bfloat16(settings, device)
    while state.epoch < epochs and state.epoch - state.best_epoch < settings.patience:
        generator = epoch_generator(seed, state.epoch)
        total = torch.zeros((), device=device)
        step = state.epoch * steps_per_epoch
        network.train()
        with _modules_seeded(seed, state.epoch, device):
            for buffer, chosen in _batches(samples, settings.batch_size, generator):
                n = len(chosen)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, step, epochs * steps_per_epoch)
                share, mine = _share(ranks, n)
                optimizer.zero_grad()  # before the forward pass, which needs memory of its own
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    batch_loss = objective(buffer[chosen[share].to(device)], Draws(generator, n, share, device))
                (batch_loss * (mine * ranks.size / n)).backward()
                optimizer.step()
                _average(ema, parameters, buffers, min(settings.ema_decay, (1 + step) / (10 + step)))
                total += batch_loss.detach() * mine
                step += 1
        optimizer.zero_grad()
        network.eval()
        entry = EpochLog(
            epoch=state.epoch + 1,
            train_loss=float(ranks.sum(total)) / len(samples),
            validation_loss=_validation_loss(network, ema, validation, loss, seed, settings.batch_size, ranks),
        )
        if not (math.isfinite(entry.train_loss) and math.isfinite(entry.validation_loss)):
            raise SettingsError(
                f"training diverged in epoch {entry.epoch}, its loss is no longer a finite number; "
                "lower the learning rate"
            )
        improved = not state.log or entry.validation_loss < min(e.validation_loss for e in state.log)
        state = TrainingState(
            network=network.state_dict(),
            ema=ema,
            optimizer=_optimizer_tensors(optimizer, parameters),
            initial=state.initial or _copy(ema),
            best=_copy(ema) if improved else state.best,
            log=[*state.log, entry],
        )
        yield state


class TrainingOptions(TypedDict, total=False):
    """Options of a fit that do not change what is learned."""

    checkpoint: str | PathLike[str] | None
    """File for the state of training; an interrupted fit of the same data resumes from it."""
    on_epoch: OnEpoch | None
    """Callback after each epoch."""
    ranks: Ranks
    """From `dlsr.training.distributed.joined`, if several processes fit together."""


@dataclass(frozen=True)
class Trainer:
    """Runs trainings to their end, resuming from a checkpoint, and calls back after each epoch."""

    seed: int = 0
    checkpoint: Path | None = None
    """File that holds the state between epochs."""
    on_epoch: OnEpoch | None = None
    ranks: Ranks = ALONE
    """The processes that train together. The first one reads and writes the checkpoint."""

    @classmethod
    def of(cls, seed: int, options: TrainingOptions) -> Self:
        """A trainer with the options of a fit.

        Raises:
            TypeError: for an unknown option.
        """
        unknown = sorted(options.keys() - TrainingOptions.__annotations__.keys())
        if unknown:
            known = ", ".join(TrainingOptions.__annotations__)
            raise TypeError(f"no option of a fit is called '{unknown[0]}'; choose among {known}")
        checkpoint = options.get("checkpoint")
        path = Path(checkpoint) if checkpoint else None
        return cls(seed, path, options.get("on_epoch"), options.get("ranks", ALONE))

    def train(
        self,
        network: nn.Module,
        samples: Samples,
        validation: Tensor,
        loss: Loss,
        settings: TrainingSettings,
        key: Callable[[], str],
    ) -> TrainingState:
        """Train to the end, see `train`.

        Args:
            network: trained in place.
            samples: training data, shape `(N, ..)`.
            validation: held-out samples, shape `(V, ..)`.
            loss: loss of the network on a batch of samples.
            settings: batch size, learning rate, epochs, patience.
            key: returns a digest of all that the training depends on; a checkpoint of another training is not resumed.

        Raises:
            ArtifactError: if the checkpoint is damaged.
            OutputError: if it cannot be written.
        """
        kept = Checkpoint(self.checkpoint, key()) if self.checkpoint else None
        resumed = self.ranks.from_first(kept.load() if kept and self.ranks.is_first else None)
        most = most_epochs(settings, len(samples))
        state = resumed if resumed and resumed.epoch <= most else new_state(network)
        for done in train(network, samples, validation, loss, settings, self.seed, state, self.ranks):
            state = done
            if kept and self.ranks.is_first:
                kept.save(state)
            if self.on_epoch:
                self.on_epoch(state.log[-1], most)
        return state


class _Objective(nn.Module):
    """A network's loss as a module, since only modules can be made parallel."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, samples: Tensor, draws: Draws) -> Tensor:
        return self.loss(samples, draws)


def _share(ranks: Ranks, n: int) -> tuple[slice, int]:
    """A process's share of `n` samples, and how many they are.

    A process without a share gets the first sample, with weight 0: the others wait for its gradient.
    """
    share = ranks.share(n)
    mine = share.stop - share.start
    return (share if mine else slice(0, 1)), mine


@contextmanager
def _modules_seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Random numbers that modules draw, as dropout does, are a function of `(seed, epoch)`, so that resumes are exact.

    Several processes draw the same numbers, each for its own share.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_epoch_seed(seed, epoch))
        yield


def _average(ema: Weights, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], decay: float) -> None:
    """Move the averaged parameters towards the network's. Buffers are not trained, so they are copied."""
    for name, parameter in parameters.items():
        ema[name].lerp_(parameter.detach(), 1 - decay)
    for name, buffer in buffers.items():
        ema[name].copy_(buffer)


def _batches(samples: Samples, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch: a buffer of samples, and the indices of the batch in it."""
    for buffer in samples.shuffled(batch_size, generator):
        for chosen in torch.split(torch.randperm(len(buffer), generator=generator), batch_size):
            yield buffer, chosen


def uses_bfloat16(settings: TrainingSettings, device: torch.device) -> bool:
    """Whether training on a device multiplies in bfloat16: by the settings, or if the hardware does."""
    if settings.training_precision != "auto":
        return settings.training_precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # PyTorch 2.5 has not both
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def most_epochs(settings: TrainingSettings, n: int) -> int:
    """The epochs of a training on `n` samples, unless it stops early."""
    return max(settings.epochs, math.ceil(settings.min_steps / math.ceil(n / settings.batch_size)))


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Learning rate of a step: constant (section 4.2), or falling to zero like a cosine over all steps."""
    if settings.lr_decay == "constant":
        return settings.lr
    return settings.lr * (1 + math.cos(math.pi * step / steps)) / 2


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch."""
    return torch.Generator().manual_seed(_epoch_seed(seed, epoch))


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


@torch.no_grad()
def _validation_loss(
    network: nn.Module, ema: Weights, validation: Tensor, loss: Loss, seed: int, batch_size: int, ranks: Ranks
) -> float:
    generator = epoch_generator(seed, -1)
    own = _copy(network.state_dict())
    network.load_state_dict(ema)
    losses = []
    for batch in torch.split(validation, batch_size):
        share, mine = _share(ranks, len(batch))
        losses.append(loss(batch[share], Draws(generator, len(batch), share, batch.device)) * mine)
    network.load_state_dict(own)
    return float(ranks.sum(torch.stack(losses).sum())) / len(validation)


def _copy(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def _optimizer_tensors(optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor]) -> Weights:
    return {
        f"{name}.{key}": value.detach()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_optimizer(optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor], tensors: Weights) -> None:
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        held = parameters[parameter]
        # On the parameter's device, where the fused AdamW wants its steps, too.
        optimizer.state[held][key] = tensor.to(held.device)
