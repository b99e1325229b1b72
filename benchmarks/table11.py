"""The networks of the paper's Table 11 with equal training: autoencoder, VAE and diffusion, all scored by MFsim.

    python benchmarks/table11.py --data ../shared/data --folder /tmp/table11 --output docs/table11.json

On the 18 tasks of the shipped suite, on the paper's features, the mean of each map. `--steps` gives the lengths of
training to compare, `--width` and `--blocks` the size, `--networks` and `--only` the networks and tasks to run.
Finished fits in the folder are not repeated. Writes a JSON file with all numbers, and a Markdown table beside it; rows
of an earlier output stay in it unless they are measured again.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dlsr.artifact import installed_versions
from dlsr.bench.paper import PAPER
from dlsr.bench.suite import SuiteSettings, run_suite
from dlsr.bench.tasks import SHIPPED, TaskOpener, read_suite
from dlsr.encoding.store import default_store_root
from quality import write_report

DETECTORS = {"autoencoder": "autoencoder", "feature-vae": "feature-vae", "diffusion": "dlsr+mfsim"}
"""In the order of Table 11, which is that of its averages."""
WITHOUT_BLOCKS = {"feature-vae"}
"""The VAE has the paper's 13 layers, not residual blocks."""


def main(
    data: Annotated[Path, typer.Option(help="Folder with the tars of shared/data.")],
    folder: Annotated[Path, typer.Option(help="For finished fits.")],
    output: Annotated[Path, typer.Option(help="JSON file to write, with a Markdown table beside it.")],
    steps: Annotated[str, typer.Option(help="Steps of training, separated by commas.")] = "600",
    width: Annotated[int, typer.Option(help="Of the networks' hidden layers; twice the features in the paper.")] = 512,
    blocks: Annotated[int, typer.Option(help="Residual blocks of autoencoder and diffusion; 16 in the paper.")] = 4,
    networks: Annotated[str, typer.Option(help="Names of networks, separated by commas.")] = ",".join(DETECTORS),
    only: Annotated[str | None, typer.Option(help="Names of tasks, separated by commas.")] = None,
    store: Path | None = None,
) -> None:
    suite = read_suite(SHIPPED)
    opener = TaskOpener(suite, data)
    tasks = [opener.open(task) for task in suite.tasks if only is None or task.name in only.split(",")]
    lengths = [int(number) for number in steps.split(",")]
    chosen = {
        f"{name}/{number}": variant(name, number, width, blocks) for number in lengths for name in networks.split(",")
    }
    report = run_suite(
        tasks,
        SuiteSettings(chosen),
        folder / "runs",
        store=store or default_store_root(),
        on_message=lambda message: print(message, file=sys.stderr, flush=True),
    )
    halves = {task.name: task.half for task in suite.tasks}
    command = "python benchmarks/table11.py " + shlex.join(sys.argv[1:])
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"] if output.exists() else []
    for row in report["rows"]:
        (run,) = row["runs"]
        name, number = row["detector"].split("/")
        depth = None if name in WITHOUT_BLOCKS else blocks
        about = {"task": row["task"], "detector": name, "steps": int(number), "width": width, "blocks": depth}
        aurocs = {ood: metrics["auroc"] for ood, metrics in run["datasets"].items()}
        rows = [old for old in rows if any(old[key] != about[key] for key in about)]
        rows.append({**about, "auroc": aurocs, "command": command})
    content = {"versions": installed_versions(), "halves": halves, "rows": rows}
    write_report(output, content, markdown(content))


def variant(name: str, steps: int, width: int, blocks: int) -> dict[str, Any]:
    """Settings of a detector in the form of a suite."""
    size = {} if name in WITHOUT_BLOCKS else {"blocks": blocks}
    return {"detector": DETECTORS[name], "pooling": "mean", "width": width, "epochs": 1, "min_steps": steps} | size


def markdown(content: dict[str, Any]) -> str:
    """Mean AUROC by network, size and steps, over each half and all tasks, and each task's."""
    halves: dict[str, str] = content["halves"]
    rows = content["rows"]
    kinds = list(dict.fromkeys(halves.values()))
    lines = [f"`{command}`\n" for command in dict.fromkeys(row["command"] for row in rows)]
    lines += [
        "AUROC in %. The printed averages are those of the paper's Table 11 (CIFAR-10, seven OOD datasets).",
        "",
        f"| network | width | blocks | steps | printed | {' | '.join(kinds)} | all tasks | {' | '.join(halves)} |",
        "|---" * (6 + len(kinds) + len(halves)) + "|",
    ]
    by_network: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        network = (row["width"], row["steps"], list(DETECTORS).index(row["detector"]), row["blocks"])
        by_network.setdefault(network, {})[row["task"]] = float(np.mean(list(row["auroc"].values())))
    for (width, steps, place, blocks), found in sorted(by_network.items()):
        name = list(DETECTORS)[place]
        means = [mean_of(found, [task for task, half in halves.items() if half == kind]) for kind in kinds]
        cells = [*means, mean_of(found, list(halves)), *(mean_of(found, [task]) for task in halves)]
        head = [name, f"{width:,}", "" if blocks is None else str(blocks), f"{steps:,}", f"{printed(name):.2f}"]
        lines.append(f"| {' | '.join([*head, *cells])} |")
    return "\n".join(lines) + "\n"


def mean_of(found: dict[str, float], tasks: list[str]) -> str:
    """The mean over tasks in %, or nothing if some were not measured."""
    return f"{100 * np.mean([found[task] for task in tasks]):.2f}" if set(tasks) <= set(found) else ""


def printed(name: str) -> float:
    """The average that Table 11 prints."""
    (table,) = (table for table in PAPER if table.table == "table11" and table.metric == "auroc")
    numbers = [number for number in table.rows[DETECTORS[name]] if number is not None]
    return float(np.mean(numbers))


if __name__ == "__main__":
    typer.run(main)
