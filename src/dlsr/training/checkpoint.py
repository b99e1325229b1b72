"""The state of an unfinished training on disk, from which a killed fit resumes."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlsr.errors import ArtifactError
from dlsr.files import write_arrays
from dlsr.training.log import EpochLog
from dlsr.training.state import TrainingState

SCHEMA = 1
_PARTS = ("network", "ema", "optimizer", "initial", "best")


class Checkpoint:
    """One file, replaced after each epoch.

    Args:
        path: of the file.
        key: digest of everything that the training depends on; the state of another training is not loaded.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._key = key

    def save(self, state: TrainingState) -> None:
        """Write the state.

        Raises:
            OutputError: if that fails.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for part in _PARTS:
            arrays |= {f"{part}/{name}": tensor.cpu().numpy() for name, tensor in getattr(state, part).items()}
        about = {"schema": SCHEMA, "key": self._key, "log": [asdict(entry) for entry in state.log]}
        write_arrays(self.path, arrays, {"dlsr-checkpoint": json.dumps(about)})

    def load(self) -> TrainingState | None:
        """The state, on the CPU, or None if there is none or it belongs to another training.

        Raises:
            ArtifactError: if the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["dlsr-checkpoint"])
                if (about["schema"], about["key"]) != (SCHEMA, self._key):
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            log = [EpochLog(**entry) for entry in about["log"]]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"the checkpoint '{self.path}' is damaged ({error}); delete it to start again"
            ) from error
        parts = {
            part: {name.removeprefix(f"{part}/"): t for name, t in tensors.items() if name.startswith(f"{part}/")}
            for part in _PARTS
        }
        return TrainingState(**parts, log=log)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if there is one; a file of another kind is kept."""
    with suppress(OSError, SafetensorError):
        with safe_open(path, framework="pt") as file:
            ours = "dlsr-checkpoint" in (file.metadata() or {})
        if ours:
            path.unlink()


def training_key(about: str, *inputs: Iterable[Tensor]) -> str:
    """Digest of what a training depends on, besides the code, of which the version of dlsr must do.

    Args:
        about: settings, names and shapes, as text.
        inputs: tensors, each given in parts; how it is cut does not matter.
    """
    digest = hashlib.sha256(f"{metadata.version('dlsr')}\n{about}".encode())
    for parts in inputs:
        for part in parts:
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()
