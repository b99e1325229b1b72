"""Models on the Hugging Face Hub, or in its layout on disk: a model directory with a model card."""

import os
from pathlib import Path
from typing import Any

from dlsr.artifact import installed_versions
from dlsr.detector import Detector
from dlsr.errors import ArtifactError, MissingExtraError, OutputError, one_line
from dlsr.files import replacing
from dlsr.model_folder import MANIFEST

CARD = "README.md"


def save_pretrained(detector: Detector, folder: str | os.PathLike[str]) -> None:
    """Write a model directory with a model card, for `from_pretrained` or `Detector.load`.

    Raises:
        OutputError: if the directory cannot be written.
    """
    detector.save(folder)
    with replacing(Path(folder) / CARD) as temporary:
        temporary.write_text(model_card(detector), encoding="utf-8")


def from_pretrained(name: str | os.PathLike[str], *, revision: str | None = None, **options: Any) -> Detector:
    """Load a detector from a local directory or from the Hub.

    Args:
        name: a folder, which is read without network, or `USER/MODEL` on the Hub.
        revision: branch, tag or commit on the Hub.
        **options: as for `Detector.load`.

    Raises:
        ArtifactError: if there is no such model, or it is damaged.
        MissingExtraError: for a model on the Hub, without huggingface_hub.
    """
    if Path(name).is_dir():
        return Detector.load(name, **options)
    hub = _hub()
    try:
        # Only the files of a model, and never code.
        folder = hub.snapshot_download(
            os.fspath(name), revision=revision, allow_patterns=[MANIFEST, "numbers-*.safetensors"]
        )
    # Any error: huggingface_hub raises many exceptions for network, permissions and names.
    except Exception as error:
        raise ArtifactError(f"cannot get '{os.fspath(name)}' from the hub: {one_line(error)}") from error
    return Detector.load(folder, **options)


def push_to_hub(detector: Detector, repo: str, *, private: bool = True, folder: str | os.PathLike[str]) -> str:
    """Upload a detector to the Hub.

    Args:
        detector: a fitted detector.
        repo: `USER/MODEL`; created if it does not exist.
        private: whether a new repository is private, which is the default because a model names the files
            that it was fitted to, and thumbnails are training images.
        folder: where the model directory is written before the upload.

    Returns:
        The URL of the commit.

    Raises:
        OutputError: if writing or uploading fails.
        MissingExtraError: without huggingface_hub.
    """
    hub = _hub()
    save_pretrained(detector, folder)
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repo,
            folder_path=os.fspath(folder),
            allow_patterns=[MANIFEST, "numbers-*.safetensors", CARD],
            delete_patterns=["numbers-*.safetensors"],
            commit_message="Detector",
        )
    except Exception as error:
        raise OutputError(f"cannot push to '{repo}': {one_line(error)}; check the name and your login") from error
    return str(commit)


def model_card(detector: Detector) -> str:
    """A description of the model in Markdown, with the Hub's metadata."""
    settings, fit = detector.settings_, detector.fit_summary_
    encoder = detector.encoder_name_ or "none (fitted to features)"
    examples = len(detector.examples_.names) if detector.examples_ else 0
    rows = {
        "score": f"{settings.score} (preset {settings.preset})",
        "encoder": encoder,
        "fitted to": f"{fit.training_images} images",
        "calibrated on": "these, each left out in turn" if fit.left_out else f"{fit.calibration_images} others",
        "threshold": f"{detector.threshold_:.6g} at a false-alarm rate of {100 * detector.false_alarm_rate:g} %",
        "training images kept as thumbnails": examples,
        "dlsr": installed_versions()["dlsr"],
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: dlsr
tags:
- out-of-distribution-detection
- anomaly-detection
pipeline_tag: image-classification
---

# An out-of-distribution detector

Scores how far an image is from the images that the detector was fitted to. Larger score = more OOD.

| | |
|---|---|
{table}

```python
from dlsr.hub import from_pretrained

detector = from_pretrained("USER/MODEL")
detector.predict("images/")  # 1 = out of distribution
```

The repository contains no code and no pickle. It includes the encoder as a graph, with its weights, unless the model
was saved without graphs (`detector.save(folder, graphs=False)`).
"""


def _hub() -> Any:
    try:
        import huggingface_hub  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hub") from None
    return huggingface_hub
