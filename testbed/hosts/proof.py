"""What must hold at the end whatever the guest did: a clean file system."""

import subprocess
from pathlib import Path


def file_system(device: Path, offset_bytes: int = 0) -> list[str]:
    """What e2fsck, which changes nothing, says against the file system; empty if it is clean."""
    where = f"{device}?offset={offset_bytes}" if offset_bytes else str(device)
    done = subprocess.run(["e2fsck", "-fn", where], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("Pass ")]
    return [f"e2fsck: exit status {done.returncode}", *lines[:4]]
