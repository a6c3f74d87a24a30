"""A real guest moves across the emulated WAN: QEMU within the lab, by its own live migration."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1500)]

PROJECT = Path(__file__).parents[2]
SMALL = (
    "--guest qemu --rtt 50ms --disk 48M --fill 28M --read-iops 15 --write-iops 5 "
    "--switch-at 8s --background-delay 2s --duration 16s --tail 2s"
)
PROOFS = {
    "nothing-kept-early",
    "source-untouched",
    "guest",
    "file-system-device",
    "file-system-image",
    "ledger",
    "checksums-image",
}


def links(out: Path) -> dict[str, list[tuple[float, int]]]:
    """Bytes of each link, both ways, over time."""
    found: dict[str, list[tuple[float, int]]] = {}
    with (out / "links.csv").open() as file:
        for row in csv.DictReader(file):
            both = int(row["rx_bytes"]) + int(row["tx_bytes"])
            found.setdefault(row["link"], []).append((float(row["t_s"]), both))
    return found


def test_a_real_guest_and_its_disk_move_across_the_wan(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "testbed.migration.lab", "run", "--where", "vm"]
    command += ["--out", str(tmp_path), "--timeout", "1400", "--", "testbed.migration"]
    done = subprocess.run(
        [*command, *SMALL.split()], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    run: dict[str, Any] = json.loads((tmp_path / "run.json").read_text())
    assert {check["name"] for check in run["checks"] if check["ok"]} == PROOFS
    summary = run["summary"]
    assert summary["ledger"]["acknowledged"] > 20
    assert summary["downtime_s"] > 0
    # Memory and disk go apart: the one before the switch, the other after it.
    assert summary["wan_bytes"]["memory"] > summary["memory_copy"]["bytes"] * 0.99
    early, late = moved(tmp_path, "A", run)
    assert early > 4 * late
    for link in ("B", "C"):
        early, late = moved(tmp_path, link, run)
        assert late > 4 * early


def moved(out: Path, link: str, run: dict[str, Any]) -> tuple[int, int]:
    """Bytes of a link before the switch, and after it."""
    rows = links(out)[link]
    at_switch = [count for at_s, count in rows if at_s <= run["summary"]["switch_s"]][-1]
    return at_switch - rows[0][1], rows[-1][1] - at_switch
