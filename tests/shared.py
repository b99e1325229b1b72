"""Settings and helpers that tests of several rooms share."""

import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dlsr import SCORES

CHANNELS = (4, 8, 12)
SMALL = {"width": 32, "blocks": 2, "epochs": 2, "lr": 1e-3}
"""A network that trains in a moment."""


def small(score, **changes):
    """Arguments of a detector with this score, small where the score has a network."""
    known = SCORES[score].Settings.model_fields
    return {"score": score} | {name: value for name, value in (SMALL | changes).items() if name in known}


def patches(photograph, count, side=32, seed=0):
    random = np.random.default_rng(seed)
    pixels = np.asarray(photograph)
    tops = random.integers(pixels.shape[0] - side, size=count)
    lefts = random.integers(pixels.shape[1] - side, size=count)
    return np.stack([pixels[top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True)])


def children_of(pid):
    """Processes below a process, with their names."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = entry.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # it has ended
            continue
        found[int(entry.parent.name)] = int(rest.split()[1]), name
    below, grown = {pid}, True
    while grown:
        more = {child for child, (parent, _) in found.items() if parent in below} - below
        below |= more
        grown = bool(more)
    return {child: found[child][1] for child in below - {pid} if child in found}


@contextmanager
def files_no_larger_than(size):
    """Make the operating system itself refuse to write more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
