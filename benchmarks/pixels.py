"""Detection on the suite with each way to make pixels, and in each precision of the encoder.

    python benchmarks/pixels.py --data ../shared/data --output docs/pixels.json --work /tmp/pixels --store /tmp/store

Draft decoding changes nothing here, since no image is large enough. Finished runs are kept in `--work`. Writes a JSON
file, and a table beside it.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dlsr.bench.suite import SuiteSettings, run_suite
from dlsr.bench.tasks import SHIPPED, TaskOpener, chosen_tasks, read_suite
from quality import write_report

BEFORE = "Pillow"
WAYS: dict[str, dict[str, Any]] = {
    BEFORE: {"resizer": "pillow"},
    "cykooz": {"resizer": "cykooz"},
    "cykooz, bfloat16": {"resizer": "cykooz", "precision": "bfloat16"},
    "cykooz, int8": {"resizer": "cykooz", "precision": "int8"},
}


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    work: Annotated[Path, typer.Option(help="Folder for finished runs.")],
    only: Annotated[str | None, typer.Option(help="Names of tasks, separated by commas.")] = None,
    store: Path | None = None,
) -> None:
    suite, opener = read_suite(SHIPPED), TaskOpener(read_suite(SHIPPED), data)
    tasks = [opener.open(task) for task in chosen_tasks(suite, only.split(",") if only else ())]
    settings = SuiteSettings({name: {"detector": "dlsr", **way} for name, way in WAYS.items()})
    report = run_suite(tasks, settings, work, store=store, on_message=typer.echo)
    found: dict[str, dict[str, float]] = {}
    for row in report["rows"]:
        (run,) = row["runs"]
        found.setdefault(row["task"], {})[row["detector"]] = float(
            100 * np.mean([metrics["auroc"] for metrics in run["datasets"].values()])
        )
    content = {
        "command": "python benchmarks/pixels.py " + " ".join(sys.argv[1:]),
        "auroc": found,
        "mean": {way: float(np.mean([of[way] for of in found.values()])) for way in WAYS},
        "greatest_change": {
            way: max((of[way] - of[BEFORE] for of in found.values()), key=abs) for way in WAYS if way != BEFORE
        },
    }
    write_report(output, content, markdown(content))


def markdown(content: dict[str, Any]) -> str:
    lines = [
        f"`{content['command']}`",
        "",
        "AUROC in %, mean over the OOD datasets of each task:",
        "",
        f"| task | {' | '.join(WAYS)} |",
        "|---" * (1 + len(WAYS)) + "|",
    ]
    for name, of in content["auroc"].items():
        lines.append(f"| {name} | {' | '.join(f'{of[way]:.2f}' for way in WAYS)} |")
    means = " | ".join(f"{content['mean'][way]:.2f}" for way in WAYS)
    lines.append(f"| mean | {means} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
