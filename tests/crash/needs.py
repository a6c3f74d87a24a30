"""What a test of this directory can't do without, on whatever machine it runs."""

import os
import shutil
from pathlib import Path

import pytest

#: it makes a file system of its own, and mounts it
FILE_SYSTEM = pytest.mark.skipif(
    os.geteuid() != 0
    or shutil.which("mkfs.ext4") is None
    or not Path("/dev/loop-control").exists(),
    reason="a file system of its own needs root, mkfs.ext4 and loop devices",
)
