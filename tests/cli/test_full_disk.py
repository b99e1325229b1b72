"""A full disk is one line, and leaves no half-written file."""

import pytest

from dlsr.encoding.extractor import FeatureStoreWarning
from shared import files_no_larger_than

FIT = "fit {images} -o {output} --encoder test_resnet --weights random --backend torch --no-store"
SCORE = "score {model} {images} --backend torch"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(f"{FIT} --score residual --epochs 2 --width 32", id="checkpoint"),
        pytest.param(f"{FIT} --score mahalanobis", id="model"),
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


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_before_the_disk_was_full_are_kept(run, model, image_folder, tmp_path, suffix):
    output = tmp_path / f"x.{suffix}"
    with files_no_larger_than(5000):
        done = run(*f"{SCORE} --no-store -o {output}".format(model=model, images=image_folder).split())
    assert "check space and permissions" in done.error
    partial = tmp_path / f"x.{suffix}.partial"
    assert list(tmp_path.iterdir()) == [partial]
    rows = partial.read_text().splitlines()
    assert f"results are in {partial}" in done.err
    whole = run(*f"{SCORE} --no-store -o {output}".format(model=model, images=image_folder).split())
    assert whole.status == 0
    assert len(rows) > 10
    assert output.read_text().splitlines()[: len(rows) - 1] == rows[:-1]
    assert list(tmp_path.iterdir()) == [output]


def test_a_feature_store_on_a_full_disk_costs_no_result(run, model, image_folder, tmp_path, recwarn):
    """The run ended, though its output could be written."""
    output, store = tmp_path / "out" / "x.csv", tmp_path / "store"
    (tmp_path / "file").touch()
    expected = run(*f"{SCORE} --no-store".format(model=model, images=image_folder).split())
    with files_no_larger_than(30_000):
        done = run(*f"{SCORE} --store {store} -o {output}".format(model=model, images=image_folder).split())
    assert done.status == 0
    assert output.read_text() == expected.out.replace("\r\n", "\n")
    assert not [path for path in store.rglob("*") if path.is_file()]
    again = run(*f"{SCORE} --store {tmp_path / 'file'}".format(model=model, images=image_folder).split())
    assert (again.status, again.out) == (0, expected.out)
    told = [str(warning.message) for warning in recwarn if warning.category is FeatureStoreWarning]
    assert len(told) == 2
    assert all(text.startswith("features are not kept: cannot write '") for text in told)
