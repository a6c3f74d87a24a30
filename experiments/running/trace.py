"""The oracle's order: what the guest of one run asked for, as a trace for the copy of another.

The guest's requests after its move (requests.csv) become lines `OFFSET,LENGTH`, a block once, where
it was first needed from the source: by a read, or by a write that covers only a part of it. A block
that the guest's first write covers whole never has to come, so it is not in the trace.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK_BYTES = 4096
COLUMNS = ("t_s", "kind", "offset_bytes", "length_bytes")


def needed(requests: Iterable[tuple[str, int, int]]) -> Iterator[int]:
    """Offsets of blocks in the order of need, from (kind, offset, length) in order of time."""
    seen: set[int] = set()
    for kind, offset, length in requests:
        end = offset + length
        for block in range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            if block in seen:
                continue
            seen.add(block)
            start = block * BLOCK_BYTES
            whole = offset <= start and start + BLOCK_BYTES <= end
            if kind == "read" or not whole:
                yield start


def write(run: Path, trace: Path) -> None:
    """Makes `trace` of a run; ValueError if it never moved or has no such requests.csv."""
    summary = json.loads((run / "run.json").read_text(encoding="utf-8")).get("summary") or {}
    if summary.get("switch_s") is None:
        raise ValueError(f"{run}: the guest of this run did not move")
    requests = run / "requests.csv"
    with requests.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{requests}: these columns are missing: {', '.join(missing)}")
        rows = [
            (row["kind"], int(row["offset_bytes"]), int(row["length_bytes"]))
            for row in sorted(reader, key=lambda row: float(row["t_s"]))
            if float(row["t_s"]) >= summary["switch_s"]
        ]
    lines = [f"{offset},{BLOCK_BYTES}\n" for offset in needed(rows)]
    trace.write_text("".join(lines), encoding="utf-8")
