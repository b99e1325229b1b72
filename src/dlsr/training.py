"""Training (paper, Algorithm 1): arrays in, network out, one epoch a step so that it can be resumed exactly.

Every random number of an epoch comes from `(seed, epoch)`, so an epoch is a function of the state before it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dlsr.autoencoder import Reconstructor
from dlsr.diffusion import distort
from dlsr.lfdn import RestorationNetwork
from dlsr.settings import TrainingSettings

Weights = dict[str, Tensor]
Loss = Callable[[Tensor, torch.Generator], Tensor]
"""The mean loss, shape `()`, of a batch of rows; all that is random comes from the generator."""


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
    """All that the next epoch depends on."""

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
    rows: Tensor,
    validation: Tensor,
    loss: Loss,
    settings: TrainingSettings,
    seed: int,
    state: TrainingState,
) -> Iterator[TrainingState]:
    """Train, yielding the state after each epoch, until the last epoch or until it no longer pays.

    Args:
        network: is trained in place; its weights before are of no account, `state`'s are taken.
        rows: what to train on, shape `(N, ..)`, on the network's device: features, for LFDN.
        validation: held-out ones, shape `(V, ..)`, likewise.
        loss: of the network on a batch of rows: `restoration_loss`, for LFDN.
        settings: batch size, learning rate, epochs, patience.
        seed: of order, times and noise.
        state: from `new_state`, or as yielded by an earlier run with the same other arguments.
    """
    network.load_state_dict(state.network)
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    _restore_optimizer(optimizer, parameters, state.optimizer)
    ema = {name: tensor.clone() for name, tensor in state.ema.items()}
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    epochs = most_epochs(settings, len(rows))
    device = rows.device
    bfloat16 = uses_bfloat16(settings, device)
    while state.epoch < epochs and state.epoch - state.best_epoch < settings.patience:
        generator = epoch_generator(seed, state.epoch)
        network.train()
        total = torch.zeros((), device=device)
        order = torch.randperm(len(rows), generator=generator)
        for i, chosen in enumerate(torch.split(order, settings.batch_size)):
            step = state.epoch * steps_per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, epochs * steps_per_epoch)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                batch_loss = loss(rows[chosen.to(device)], generator)
            optimizer.zero_grad()
            batch_loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay = min(settings.ema_decay, (1 + step) / (10 + step))
            for name, parameter in parameters.items():
                ema[name].lerp_(parameter.detach(), 1 - decay)
            total += batch_loss.detach() * len(chosen)
        network.eval()
        entry = EpochLog(
            epoch=state.epoch + 1,
            train_loss=float(total) / len(rows),
            validation_loss=_validation_loss(network, ema, validation, loss, seed, settings.batch_size),
        )
        improved = not state.log or entry.validation_loss < min(e.validation_loss for e in state.log)
        averaged = _copy(ema)
        state = TrainingState(
            network=_copy(network.state_dict()),
            ema=averaged,
            optimizer=_optimizer_tensors(optimizer, parameters),
            initial=state.initial or averaged,
            best=averaged if improved else state.best,
            log=[*state.log, entry],
        )
        yield state


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

    def loss(z0: Tensor, generator: torch.Generator) -> Tensor:
        t = torch.randint(1, T + 1, (len(z0),), generator=generator).to(z0.device)
        noise = torch.randn(z0.shape, generator=generator).to(z0.device)
        return network.loss(z0, distort(z0, t, alpha_bar, noise), t)

    return loss


def reconstruction_loss(network: Reconstructor) -> Loss:
    """The loss of an autoencoder on features `z0`, shape `(N, c)`."""

    def loss(z0: Tensor, generator: torch.Generator) -> Tensor:
        return network.loss(z0, torch.randn(len(z0), network.latent, generator=generator).to(z0.device))

    return loss


@torch.no_grad()
def _validation_loss(
    network: nn.Module, ema: Weights, validation: Tensor, loss: Loss, seed: int, batch_size: int
) -> float:
    generator = epoch_generator(seed, -1)
    own = _copy(network.state_dict())
    network.load_state_dict(ema)
    losses = [loss(rows, generator) * len(rows) for rows in torch.split(validation, batch_size)]
    network.load_state_dict(own)
    return float(torch.stack(losses).sum()) / len(validation)


def _copy(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def _optimizer_tensors(optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor]) -> Weights:
    return {
        f"{name}.{key}": value.detach().clone()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore_optimizer(optimizer: torch.optim.AdamW, parameters: Mapping[str, Tensor], tensors: Weights) -> None:
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        optimizer.state[parameters[parameter]][key] = tensor.clone()
