"""Training (paper, Algorithm 1): rows in, network out, one epoch a step so that it can be resumed exactly.

Every random number of an epoch comes from `(seed, epoch)`, so an epoch is a function of the state before it. Those of a
row belong to the row, so they are the same however many processes share a batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dlsr.config import TrainingSettings
from dlsr.method.diffusion import distort
from dlsr.method.lfdn import RestorationNetwork
from dlsr.scorers.reconstruction import Reconstructor
from dlsr.training.data import Rows
from dlsr.training.distributed import ALONE, Ranks

Weights = dict[str, Tensor]


class Draws:
    """Random numbers for the rows of a batch, or for a share of them. Those of the whole batch are always drawn.

    Args:
        generator: where they come from.
        n: rows of the whole batch.
        share: the rows that they are wanted for.
        device: where they are wanted.
    """

    def __init__(
        self, generator: torch.Generator, n: int, share: slice = slice(None), device: torch.device | None = None
    ) -> None:
        self._generator = generator
        self._n = n
        self._share = share
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, shape `(rows, *shape)`."""
        return self._of_share(torch.randn(self._n, *shape, generator=self._generator))

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in `[0, 1)`, shape `(rows, *shape)`."""
        return self._of_share(torch.rand(self._n, *shape, generator=self._generator))

    def integers(self, low: int, high: int) -> Tensor:
        """Whole numbers in `[low, high)`, shape `(rows,)`."""
        return self._of_share(torch.randint(low, high, (self._n,), generator=self._generator))

    def _of_share(self, numbers: Tensor) -> Tensor:
        return numbers[self._share].to(self._device)


Loss = Callable[[Tensor, Draws], Tensor]
"""The mean loss, shape `()`, of rows; all that is random is drawn for them."""


@dataclass(frozen=True)
class EpochLog:
    """Losses of one epoch: for LFDN, means over the elements of `z0`."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    validation_loss: float
    """Of the averaged network, on held-out features with fixed noise."""


@dataclass
class TrainingState:
    """All that the next epoch depends on.

    `network`, `ema` and `optimizer` are the tensors that are trained, not copies, for they may be large: they are what
    they say until `train` is asked for its next state.
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


def new_state(network: nn.Module) -> TrainingState:
    """The state before the first epoch."""
    return TrainingState(network=_copy(network.state_dict()), ema=_copy(network.state_dict()))


def train(
    network: nn.Module,
    rows: Rows,
    validation: Tensor,
    loss: Loss,
    settings: TrainingSettings,
    seed: int,
    state: TrainingState,
    ranks: Ranks = ALONE,
) -> Iterator[TrainingState]:
    """Train, yielding the state after each epoch, until the last epoch or until it no longer pays.

    Args:
        network: is trained in place; its weights before are of no account, `state`'s are taken.
        rows: what to train on, shape `(N, ..)`, on the network's device: features, for LFDN.
        validation: held-out ones, shape `(V, ..)`, likewise.
        loss: of the network on a batch of rows: `restoration_loss`, for LFDN.
        settings: batch size (of all processes together), learning rate, epochs, patience.
        seed: of order, times and noise.
        state: from `new_state`, or as yielded by an earlier run with the same other arguments; on any device.
        ranks: the processes that share each batch, all of which call this alike. The states are those of one process
            alone, to rounding.
    """
    network.load_state_dict(state.network)
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    _restore_optimizer(optimizer, parameters, state.optimizer)
    device = rows.device
    ema = {name: tensor.to(device, copy=True) for name, tensor in state.ema.items()}
    objective = ranks.parallel(_Objective(network, loss))
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    epochs = most_epochs(settings, len(rows))
    bfloat16 = uses_bfloat16(settings, device)
    while state.epoch < epochs and state.epoch - state.best_epoch < settings.patience:
        generator = epoch_generator(seed, state.epoch)
        network.train()
        total = torch.zeros((), device=device)
        step = state.epoch * steps_per_epoch
        for buffer, chosen in _batches(rows, settings.batch_size, generator):
            n = len(chosen)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, epochs * steps_per_epoch)
            share, mine = _share(ranks, n)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                batch_loss = objective(buffer[chosen[share].to(device)], Draws(generator, n, share, device))
            optimizer.zero_grad()
            (batch_loss * (mine * ranks.size / n)).backward()
            optimizer.step()
            decay = min(settings.ema_decay, (1 + step) / (10 + step))
            for name, parameter in parameters.items():
                ema[name].lerp_(parameter.detach(), 1 - decay)
            total += batch_loss.detach() * mine
            step += 1
        network.eval()
        entry = EpochLog(
            epoch=state.epoch + 1,
            train_loss=float(ranks.sum(total)) / len(rows),
            validation_loss=_validation_loss(network, ema, validation, loss, seed, settings.batch_size, ranks),
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


class _Objective(nn.Module):
    """A network's loss as a module, which is what can be made parallel."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, rows: Tensor, draws: Draws) -> Tensor:
        return self.loss(rows, draws)


def _share(ranks: Ranks, n: int) -> tuple[slice, int]:
    """A process's share of `n` rows, and how many it has; if none, the first one is given, to be of no account.

    For the others wait for a gradient from each, and random numbers are to be drawn in each.
    """
    share = ranks.share(n)
    mine = share.stop - share.start
    return (share if mine else slice(0, 1)), mine


def _batches(rows: Rows, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch: a buffer, and the numbers of the batch's rows in it."""
    for buffer in rows.shuffled(batch_size, generator):
        for chosen in torch.split(torch.randperm(len(buffer), generator=generator), batch_size):
            yield buffer, chosen


def uses_bfloat16(settings: TrainingSettings, device: torch.device) -> bool:
    """Whether training on a device multiplies in bfloat16: by the settings, or if the hardware does."""
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # PyTorch 2.5 has not both
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def most_epochs(settings: TrainingSettings, n: int) -> int:
    """How many epochs a training on `n` rows takes unless it stops early."""
    return max(settings.epochs, math.ceil(settings.min_steps / math.ceil(n / settings.batch_size)))


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Learning rate of a step: constant (section 4.2), or falling to zero like a cosine over all steps."""
    if settings.lr_decay == "constant":
        return settings.lr
    return settings.lr * (1 + math.cos(math.pi * step / steps)) / 2


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def restoration_loss(network: RestorationNetwork, alpha_bar: Tensor) -> Loss:
    """The network's loss on features `z0`, shape `(N, c)`, at uniformly drawn times (Algorithm 1)."""
    T = len(alpha_bar) - 1

    def loss(z0: Tensor, draws: Draws) -> Tensor:
        t = draws.integers(1, T + 1)
        noise = draws.normal(z0.shape[1])
        return network.loss(z0, distort(z0, t, alpha_bar, noise), t)

    return loss


def reconstruction_loss(network: Reconstructor) -> Loss:
    """The loss of an autoencoder on features `z0`, shape `(N, c)`."""

    def loss(z0: Tensor, draws: Draws) -> Tensor:
        return network.loss(z0, draws.normal(network.latent))

    return loss


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
        # The copy is on the parameter's device, where the fused AdamW wants its steps, too.
        optimizer.state[held][key] = tensor.to(held.device, copy=True)
