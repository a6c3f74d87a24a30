"""What must hold at the end: a clean file system, and every acknowledged write in its place."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from testbed.workloads import ledger


def file_system(device: Path) -> list[str]:
    """What e2fsck, which changes nothing, says against the file system; empty if it is clean."""
    done = subprocess.run(
        ["e2fsck", "-fn", str(device)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return []
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("Pass ")]
    return [f"e2fsck: exit status {done.returncode}", *lines[:4]]


def ledger_file(path: Path, acknowledged: Iterable[ledger.Acknowledged]) -> list[str]:
    """Slots that lost an acknowledged write."""
    return ledger.check_file(path, acknowledged)
