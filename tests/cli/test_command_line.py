"""The command line as a whole: help, errors, interrupts, shared options."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer

from dlsr import FittedDetector, SettingsError
from dlsr.cli.app import app
from dlsr.cli.options import Runtime, named_paths, whole_numbers, with_groups


@pytest.mark.parametrize("command", ["--help", "score --help", "bench --help", "bench --list"])
def test_help_imports_neither_torch_nor_numpy(command):
    code = f"""
import sys
sys.argv = ["dlsr", *{command.split()}]
from dlsr.cli import main
try:
    main()
finally:
    print("slow imports:", sorted({{"torch", "numpy", "timm"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "slow imports: []"


def test_every_module_of_a_command_is_listed():
    folder = Path(sys.modules["dlsr.cli.app"].__file__).parent
    shared = {"__init__", "app", "console", "options", "score_settings"}
    modules = {path.stem for path in folder.glob("*.py")} - shared
    group = typer.main.get_command(app)
    assert set(group.list_commands(None)) == modules | {"bench"}
    assert all(group.get_command(None, name).name == name for name in modules)


def test_a_mistyped_command_is_answered_by_one_like_it(run):
    done = run("scor")
    assert done.status == 2
    assert "Did you mean 'score'?" in done.err


@pytest.mark.parametrize(
    "command", ["fit", "score", "evaluate", "calibrate", "export", "report", "drift", "serve", "info", "demo", "bench"]
)
def test_every_command_has_help(run, command):
    done = run(command, "--help")
    assert done.status == 0
    assert f"Usage: dlsr {command}" in done.out


def test_usage_errors_have_status_2(run):
    missing = run("score")
    assert missing.status == 2
    assert "Missing argument" in missing.err
    assert run("fit", "x", "-o", "y", "--backend", "tpu").status == 2
    assert run("--help").status == 0


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ("no model directory", "score {empty} {images}"),
        ("end the name in one of .csv", "score {model} {images} -o x.txt"),
        ("cannot write", "score {model} {images} -o /proc/none/x.csv --backend torch"),
        ("none of the 1 images", "score {model} {broken} --backend torch"),
        ("cannot use device", "score {model} {images} --device warp"),
        ("NAME=FOLDER", "evaluate {model} --id {images} --ood x"),
        ("images of 'x' can be read", "evaluate {model} --id {images} --ood x={broken} --backend torch"),
    ],
)
def test_an_error_is_one_line(run, model, image_folder, tmp_path, message, command):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "x.png").write_bytes(b"no")
    places = {"model": model, "images": image_folder, "empty": empty, "broken": broken}
    assert message in run(*command.format(**places).split()).error


def test_an_interrupt_says_how_to_resume(run, monkeypatch, model, image_folder):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(FittedDetector, "load", interrupted)
    done = run("score", model, image_folder)
    assert done.status == 130
    assert "to resume an interrupted fit, run the same command again" in done.err


def test_an_unexpected_error_keeps_its_traceback(monkeypatch, model, image_folder):
    from dlsr.cli import main

    monkeypatch.setattr(FittedDetector, "load", lambda *args, **options: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["dlsr", "score", str(model), str(image_folder)])
    with pytest.raises(ZeroDivisionError):
        main()


def test_python_m_dlsr_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "dlsr", "score"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Missing argument" in done.stderr


@dataclass(frozen=True)
class Paint:
    colour: Annotated[str, typer.Option()] = "red"
    coats: Annotated[int, typer.Option(min=1)] = 1


def test_a_command_takes_a_group_of_options_as_one_parameter():
    taken = []

    @with_groups
    def command(wall: str, *, paint: Paint, dry: Annotated[bool, typer.Option("--dry")] = False) -> None:
        taken.append((wall, paint, dry))

    app = typer.Typer()
    app.command()(command)
    app(["north", "--coats", "2", "--dry"], standalone_mode=False)
    app(["south"], standalone_mode=False)
    assert taken == [("north", Paint("red", 2), True), ("south", Paint(), False)]


def test_runtime_options_become_arguments_of_the_detector(tmp_path, monkeypatch):
    monkeypatch.setenv("DLSR_CACHE", str(tmp_path))
    arguments = Runtime(weights="random", workers=3).arguments()
    assert arguments == {
        "weights": "random", "device": "auto", "backend": "auto", "store": tmp_path / "features", "workers": 3,
    }  # fmt: skip
    assert Runtime(no_store=True).arguments()["store"] is None
    assert Runtime(store=tmp_path / "own").arguments()["store"] == tmp_path / "own"


def test_paths_are_named_once():
    assert named_paths(["a=x", "b=y=z"]) == {"a": Path("x"), "b": Path("y=z")}
    for wrong in (["a"], ["a="], ["=x"], ["a=x", "a=y"]):
        with pytest.raises(SettingsError, match="--dataset takes NAME=FOLDER, each name once"):
            named_paths(wrong, "--dataset")


def test_whole_numbers_are_separated_by_commas():
    assert whole_numbers("1,2", "--stages") == (1, 2)
    assert whole_numbers(None, "--stages") is None
    with pytest.raises(SettingsError, match="--stages takes whole numbers separated by commas"):
        whole_numbers("1.5", "--stages")
