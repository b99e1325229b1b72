"""What scoring may import. PyTorch takes seconds to import and gigabytes to install."""

import json
import pickle
import subprocess
import sys

import pytest

from dlsr import MissingExtraError

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "sklearn",
    "scipy",
    "matplotlib",
    "mlflow",
    "onnx",
    "onnxscript",
    "pandas",
    "pyarrow",
    "av",
)
RUNTIMES = ("openvino", "onnxruntime")
LIGHT = (
    "dlsr.calibration.conformal",
    "dlsr.calibration.fdr",
    "dlsr.encoders.presets",
    "dlsr.encoding.examples",
    "dlsr.encoding.pipeline",
    "dlsr.encoding.store",
    "dlsr.explaining.explain",
    "dlsr.explaining.groups",
    "dlsr.explaining.layout",
    "dlsr.fitted_detector",
    "dlsr.images.quality",
    "dlsr.images.sources",
    "dlsr.images.transforms",
    "dlsr.method.noise",
    "dlsr.reports.html",
    "dlsr.results",
    "dlsr.runtime.backends",
    "dlsr.watch.watching",
    "dlsr.selection",
)
BLOCKED = f"""
import importlib.util, sys

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {HEAVY!r} else found(name, package)

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_no_heavy_package(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY + RUNTIMES!r} if name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


@pytest.fixture
def without_heavy(tmp_path, model, image_folder, odd_folder):
    """Runs the command line in a process that cannot import what only a fit needs."""

    def run(*arguments):
        code = f"{BLOCKED}\nfrom dlsr.cli import main\nmain()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_images_are_scored_as_pytorch_scores_them(without_heavy, run, model, odd_folder, backend):
    done = without_heavy("score", model, odd_folder, "--json", "--no-store", "--backend", backend)
    assert done.returncode == 0, done.stderr
    by_pytorch = run("score", model, odd_folder, "--json", "--no-store", "--backend", "torch")
    light, heavy = ([json.loads(line) for line in text.splitlines()] for text in (done.stdout, by_pytorch.out))
    assert len(light) == len(heavy) == 40
    for a, b in zip(light, heavy, strict=True):
        assert a["path"] == b["path"]
        assert a["score"] == pytest.approx(b["score"], rel=1e-4, abs=1e-4)


def test_every_command_on_a_fitted_model_runs_without_what_a_fit_needs(
    without_heavy, model, image_folder, odd_folder, tmp_path
):
    import shutil

    own = shutil.copytree(model, tmp_path / "own")
    for arguments in (
        ("info", own),
        ("info", own, "--json"),
        ("score", own, odd_folder, "--fdr", "0.1", "-o", "rows.csv"),
        ("report", own, odd_folder, "-o", "page.html"),
        ("select", own, odd_folder, "--count", "3"),
        ("calibrate", own, "--images", odd_folder),
        ("calibrate", own, "--confidence", "0.9", "--false-alarm-rate", "0.2"),
        ("score", own, odd_folder, "-o", "rows.jsonl"),
        ("watch", own, odd_folder, "-o", "watched.jsonl", "--once", "--settle", "0.1"),
    ):
        done = without_heavy(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (arguments, done.stderr)
    drifted = without_heavy("drift", own, odd_folder, "--reference", image_folder)
    assert drifted.returncode == 1, drifted.stderr
    assert "moved" in drifted.stdout


def test_reasons_need_no_package_and_groups_and_umap_say_which(without_heavy, explaining_model, odd_folder):
    done = without_heavy("score", explaining_model, odd_folder, "--reasons")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.startswith("path,score,p_value,is_ood,top_layer,error,reasons")
    done = without_heavy("score", explaining_model, odd_folder, "--groups")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("run: pip install 'dlsr[groups]'")


def test_what_needs_a_fit_says_what_to_install(without_heavy, model, odd_folder):
    for arguments in (
        ("fit", odd_folder, "-o", "new"),
        ("audit", odd_folder),
        ("drift", model, odd_folder, "--plot", "p.png"),
    ):
        done = without_heavy(*arguments)
        assert done.returncode == 2
        assert "dlsr[fit]" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_model_without_graphs_says_what_to_install(without_heavy, model, odd_folder, tmp_path):
    from dlsr import Detector

    Detector.load(model).save(tmp_path / "bare", graphs=False)
    done = without_heavy("score", tmp_path / "bare", odd_folder)
    assert done.returncode == 2
    assert "holds no graphs" in done.stderr
    assert "dlsr[fit]" in done.stderr


@pytest.mark.parametrize("extra", ["quantise", None])
def test_the_error_of_a_missing_extra_comes_back_from_another_process(extra):
    error = MissingExtraError("nncf", extra)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (MissingExtraError, str(error))
