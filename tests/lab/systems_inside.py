"""What test_systems runs in the lab: `python3 -m tests.lab.systems_inside NAME=OPTIONS...`.

Several migrations in one boot, one after the other: LAB_OUT/NAME has what each leaves behind, and
beside that what it printed and its exit status.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PRINTED, STATUS = "printed", "status"


def main(arguments: Sequence[str]) -> int:
    for argument in arguments:
        name, _, options = argument.partition("=")
        out = Path(os.environ["LAB_OUT"]) / name
        out.mkdir()
        command = [sys.executable, "-m", "testbed.migration", *options.split()]
        with (out / PRINTED).open("wb") as said:
            both = {"stdout": said, "stderr": subprocess.STDOUT}
            told = os.environ | {"LAB_OUT": str(out)}
            done = subprocess.run(command, **both, env=told, check=False)
        (out / STATUS).write_text(str(done.returncode))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
