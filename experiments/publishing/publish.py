"""Puts an evaluation among the published ones.

    python -m experiments.publishing.publish OUT DIRECTORY      such as out/reproduce results/full

Takes metrics, tables and figures, and the runs themselves as one archive; README.md says what they
are of and what they show, and names every run that failed or was refused under the figure that
lacks it. All runs must be there, of one version of the product and the test bed, and the metrics
must be of them: otherwise nothing is written. What was published in DIRECTORY before is replaced.

Exit status: 0 published; 1 it can't be.
"""

import csv
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import experiments
from experiments.running import archive
from experiments.running.rundir import replace
from experiments.scenarios import cells
from experiments.scenarios.cells import Cell

PARTS = ("metrics.csv", "tables", "figures")
README = """# {title}

Of `{command}`: {runs} runs of {cells} cells, {clocks}.

| | |
|---|---|
| code | `{describe}` (product and test bed: `{run}`) |
| machine | {processors} processors, kernel {kernel}, Python {python} |
| lab image | `{lab_image}` |

`metrics.csv` has a row for each run ([metrics](../../docs/metrics.md)), `tables/` and
`figures/` are of it; `{archive}` is the runs themselves ([format](../FORMAT.md)). Whether
another evaluation agrees:

    .venv/bin/python -m experiments.analysis.agree results/{name} {out}

Going on from these runs, with more seeds or another system, takes the code of that commit. The
archive there is an older one ([how](../../docs/reproduce.md)):

    cp results/{name}/{archive} /tmp/{archive}
    git checkout {describe}
    make reproduce{more} RUNS=/tmp/{archive}

{summary}"""


class PublishError(Exception):
    """It can't be published; the message says why."""


def _document(out: Path, cell: Cell) -> dict[str, Any]:
    """The cell.json of a run that is whole, and its `outcome`."""
    place = out / "runs" / cell.id
    try:
        run = json.loads((place / "run.json").read_text(encoding="utf-8"))
        document = json.loads((place / "cell.json").read_text(encoding="utf-8"))
        return {**document, "outcome": run["outcome"]}
    except (OSError, ValueError, KeyError) as error:
        raise PublishError(f"{cell.id}: the run can't be read: {error!r}") from error


def _check_metrics(path: Path, outcomes: Mapping[str, str]) -> None:
    """That the table is of these runs (cell -> outcome), and not of those of another day."""
    with path.open(encoding="utf-8", newline="") as file:
        table = {row["cell"]: row["outcome"] for row in csv.DictReader(file)}
    wrong = sorted(cell for cell in {*table, *outcomes} if table.get(cell) != outcomes.get(cell))
    if wrong:
        raise PublishError(f"{path}: is not of these runs: {', '.join(wrong[:3])}: make it anew")


def readme(out: Path, directory: Path) -> str:
    """What is said of the evaluation in `out`."""
    matrix = cells.read(out / "matrix.json")
    documents = [_document(out, cell) for cell in matrix]
    versions = sorted({document["code"]["run"] for document in documents})
    if len(versions) > 1:
        raise PublishError(f"the runs are of {len(versions)} versions: {', '.join(versions)}")
    outcomes = {cell.id: one["outcome"] for cell, one in zip(matrix, documents, strict=True)}
    _check_metrics(out / "metrics.csv", outcomes)
    clocks = [cell.clock for cell in matrix if cell.same_as is None]
    counted = [f"{clocks.count(one)} on the {one} clock" for one in sorted(set(clocks))]
    quick = "quick" in out.name
    machine = {
        key: " and ".join(sorted({str(document["machine"][key]) for document in documents}))
        for key in ("processors", "kernel", "python", "lab_image")
    }
    return README.format(
        title="The quick evaluation" if quick else "The evaluation",
        command=_command(matrix, quick),
        runs=len(clocks),
        cells=len(matrix),
        clocks=", ".join(counted),
        describe=documents[0]["code"]["describe"],
        run=versions[0],
        more=" QUICK=1" if quick else "",
        name=directory.name,
        archive=archive.NAME,
        out=f"out/{out.name}",
        summary=(out / "summary.md").read_text(encoding="utf-8"),
        **machine,
    )


def _command(matrix: Sequence[Cell], quick: bool) -> str:
    seeds, usual = (_seeds(found) for found in (matrix, cells.quick_or_full(quick)))
    as_usual = all(usual.get(scenario) == count for scenario, count in seeds.items())
    given = [" QUICK=1"] * quick + [f" SEEDS={max(seeds.values())}"] * (not as_usual)
    return "make reproduce" + "".join(given)


def _seeds(found: Sequence[Cell]) -> dict[str, int]:
    """How many seeds each scenario has."""
    seeds: dict[str, int] = {}
    for cell in found:
        seeds[cell.scenario] = max(cell.seed, seeds.get(cell.scenario, 0))
    return seeds


def publish(out: Path, directory: Path) -> None:
    """Writes `directory`, whole or not at all."""
    missing = [part for part in (*PARTS, "summary.md", "matrix.json") if not (out / part).exists()]
    if missing:
        raise PublishError(f"{out}: has no {', '.join(missing)}: make reproduce has not ended well")
    text = readme(out, directory)
    found = [cell.id for cell in cells.read(out / "matrix.json")]
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.with_name(f".{directory.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (out / part).is_dir() else shutil.copyfile
        copy(out / part, building / part)
    archive.pack(out, found, building / archive.NAME)
    (building / "README.md").write_text(text, encoding="utf-8")
    replace(building, directory)


def main(argv: Sequence[str] | None = None) -> int:
    parser = experiments.parser("publishing.publish", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    args = parser.parse_args(argv)
    try:
        publish(args.out, args.directory)
    except PublishError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    print(f"publish: {args.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
