import inspect
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from dlsr import ArtifactError, Detector, MissingExtraError, OutputError
from dlsr.hub import from_pretrained, push_to_hub, save_pretrained


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub in a folder: replaces the functions of huggingface_hub that are used, and keeps their signatures."""
    root = tmp_path / "hub"
    real = {name: inspect.signature(getattr(huggingface_hub, name)) for name in
            ("snapshot_download", "create_repo", "upload_folder")}  # fmt: skip

    def checked(name, function):
        def call(*args, **kwargs):
            bound = real[name].bind(*args, **kwargs)
            return function(**bound.arguments)

        monkeypatch.setattr(huggingface_hub, name, call)

    def create(repo_id, private, exist_ok):
        (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload(repo_id, folder_path, allow_patterns, delete_patterns, commit_message):
        if not (root / repo_id).exists():
            raise ConnectionError("401\nnot logged in")
        for pattern in delete_patterns:
            for old in (root / repo_id).glob(pattern):
                old.unlink()
        for pattern in allow_patterns:
            for path in Path(folder_path).glob(pattern):
                shutil.copy(path, root / repo_id)
        return f"https://hub/{repo_id}/commit/1"

    def download(repo_id, revision, allow_patterns):
        if not (root / repo_id).exists():
            raise FileNotFoundError("no such\nmodel")
        target = tmp_path / "cache" / repo_id
        target.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for path in (root / repo_id).glob(pattern):
                shutil.copy(path, target)
        return str(target)

    for name, function in (("create_repo", create), ("upload_folder", upload), ("snapshot_download", download)):
        checked(name, function)
    return root


def test_a_local_directory_is_loaded_without_huggingface_hub(model, odd_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    detector = Detector.load(model, backend="torch")
    save_pretrained(detector, tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dlsr\n")
    assert f"| threshold | {detector.threshold_:.6g} at a false-alarm rate of 5 % |" in card
    loaded = from_pretrained(tmp_path / "saved", backend="torch")
    np.testing.assert_array_equal(loaded.score_samples(odd_folder), detector.score_samples(odd_folder))
    with pytest.raises(MissingExtraError, match=r"pip install 'dlsr\[hub\]'"):
        from_pretrained("someone/model")


def test_a_detector_from_the_hub_gives_the_same_scores(hub, model, odd_folder, tmp_path):
    detector = Detector.load(model, backend="torch")
    assert push_to_hub(detector, "someone/model", folder=tmp_path / "out") == "https://hub/someone/model/commit/1"
    assert {path.suffix for path in (hub / "someone" / "model").iterdir()} == {".json", ".safetensors", ".md"}
    (hub / "someone" / "model" / "evil.py").write_text("raise SystemExit")
    pulled = from_pretrained("someone/model", backend="torch")
    assert not list((tmp_path / "cache").rglob("*.py"))
    np.testing.assert_array_equal(pulled.score_samples(odd_folder), detector.score_samples(odd_folder))
    detector.false_alarm_rate = 0.2
    push_to_hub(detector, "someone/model", folder=tmp_path / "out")
    assert len(list((hub / "someone" / "model").glob("numbers-*"))) == 1
    assert from_pretrained("someone/model").false_alarm_rate == 0.2


def test_an_error_of_the_hub_is_one_line(hub, model, tmp_path, monkeypatch):
    with pytest.raises(ArtifactError, match="cannot get 'someone/else' from the hub: no such model"):
        from_pretrained("someone/else")
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *args, **kwargs: None)
    with pytest.raises(OutputError, match="cannot push to 'a/b': 401 not logged in; check the name and your login"):
        push_to_hub(Detector.load(model), "a/b", folder=tmp_path / "out")
