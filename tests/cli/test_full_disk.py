"""A full disk is one line, and leaves no half-written file."""

import pytest

from shared import files_no_larger_than

FIT = "fit {images} -o {output} --encoder test_resnet --weights random --backend torch --no-store"
SCORE = "score {model} {images} --backend torch"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(f"{FIT} --score residual --epochs 2 --width 32", id="checkpoint"),
        pytest.param(f"{FIT} --score mahalanobis", id="model"),
        pytest.param(f"{SCORE} --store {{output}}", id="feature store"),
        pytest.param(f"{SCORE} --no-store -o {{output}}.csv", id="csv"),
        pytest.param(f"{SCORE} --no-store -o {{output}}.jsonl", id="jsonl"),
        pytest.param(f"{SCORE} --no-store -o {{output}}.parquet", id="parquet"),
        pytest.param(
            "evaluate {model} --id {images} --ood a={odd} -o {output} --no-store --backend torch", id="evaluation"
        ),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(run, model, image_folder, odd_folder, tmp_path, command):
    folder = tmp_path / "out"
    folder.mkdir()
    places = {"model": model, "images": image_folder, "odd": odd_folder, "output": folder / "x"}
    with files_no_larger_than(100):
        done = run(*command.format(**places).split())
    assert "check space and permissions" in done.error
    assert [path for path in folder.rglob("*") if path.is_file()] == []
