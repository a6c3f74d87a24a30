"""The guard of a move is the program that it guards."""

import shutil
import subprocess
import sys
from pathlib import Path

import relocator

_GUARDED = """
import sys
sys.path.insert(0, {ours!r})
from relocator.moving.guard import Guard
guard = Guard(["--version"], [])
guard.watch()
guard.at_rest()
"""


def test_a_guard_runs_nothing_that_lies_in_the_current_directory(tmp_path: Path) -> None:
    """Though the program lies where no Python looks, as a checkout does."""
    ours, trap = tmp_path / "ours", tmp_path / "trap"
    shutil.copytree(Path(relocator.__file__).parent, ours / "relocator")
    (ours / "relocator" / "__init__.py").write_text('__version__ = "of its own"\n')
    for name in ("relocator", "rich"):
        (trap / name).mkdir(parents=True)
        (trap / name / "__init__.py").write_text("print('trapped')\n")
    (trap / "argparse.py").write_text("print('trapped')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", _GUARDED.format(ours=str(ours))],
        cwd=trap,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("relocator of its own\n", "")
