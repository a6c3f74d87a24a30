"""Puts an evaluation among the published ones.

    python -m experiments.publishing.publish OUT DIRECTORY      such as out/reproduce results/full

Takes metrics, tables and figures, not the raw runs; README.md says what they are of and what they
show, and names every run that failed or was refused under the figure that lacks it. All runs must
be there, of one version of the product and the test bed: otherwise nothing is written. What was
published in DIRECTORY before is replaced.

Exit status: 0 published; 1 it can't be.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import experiments
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
`figures/` are of it. Whether another evaluation agrees:

    .venv/bin/python -m experiments.analysis.agree results/{name} {out}

{summary}"""


class PublishError(Exception):
    """It can't be published; the message says why."""


def _document(out: Path, cell: Cell) -> dict[str, Any]:
    """The cell.json of a run that is whole."""
    place = out / "runs" / cell.id
    try:
        json.loads((place / "run.json").read_text(encoding="utf-8"))
        return dict(json.loads((place / "cell.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PublishError(f"{cell.id}: the run can't be read: {error}") from error


def readme(out: Path, directory: Path) -> str:
    """What is said of the evaluation in `out`."""
    matrix = cells.read(out / "matrix.json")
    documents = [_document(out, cell) for cell in matrix]
    versions = sorted({document["code"]["run"] for document in documents})
    if len(versions) > 1:
        raise PublishError(f"the runs are of {len(versions)} versions: {', '.join(versions)}")
    clocks = [cell.clock for cell in matrix if cell.same_as is None]
    counted = [f"{clocks.count(one)} on the {one} clock" for one in sorted(set(clocks))]
    quick = "quick" in out.name
    machine = {key: str(value) for key, value in documents[0]["machine"].items()}
    return README.format(
        title="The quick evaluation" if quick else "The evaluation",
        command=_command(matrix, quick),
        runs=len(clocks),
        cells=len(matrix),
        clocks=", ".join(counted),
        describe=documents[0]["code"]["describe"],
        run=versions[0],
        name=directory.name,
        out=f"out/{out.name}",
        summary=(out / "summary.md").read_text(encoding="utf-8"),
        **machine,
    )


def _command(matrix: Sequence[Cell], quick: bool) -> str:
    seeds, usual = (max(cell.seed for cell in c) for c in (matrix, cells.quick_or_full(quick)))
    given = [" QUICK=1"] * quick + [f" SEEDS={seeds}"] * (seeds != usual)
    return "make reproduce" + "".join(given)


def publish(out: Path, directory: Path) -> None:
    """Writes `directory`, whole or not at all."""
    missing = [part for part in (*PARTS, "summary.md", "matrix.json") if not (out / part).exists()]
    if missing:
        raise PublishError(f"{out}: has no {', '.join(missing)}: make reproduce has not ended well")
    text = readme(out, directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.with_name(f".{directory.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (out / part).is_dir() else shutil.copyfile
        copy(out / part, building / part)
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
