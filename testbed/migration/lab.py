"""A scripted migration in the lab, with what its guest needs brought along.

    python -m testbed.migration.lab run [LAB OPTIONS] -- testbed.migration [OPTIONS]

is `python -m testbed.lab` of the same arguments; with `--guest qemu` the kept guest with such a
disk comes along, made now if there is none (natively: in seconds).
"""

import sys
from collections.abc import Sequence

from relocator.errors import RelocatorError
from testbed import ending
from testbed.guest.prepared import prepared
from testbed.hosts.supervise import ProcessError
from testbed.lab.__main__ import main as lab
from testbed.lab.image import LabError
from testbed.migration import options
from testbed.migration.disk import DiskError
from testbed.migration.qemu_guest import contents

MODULE = "testbed.migration"


def along(arguments: Sequence[str]) -> list[str]:
    """The lab's options that bring the guest of a migration with these arguments."""
    parameters = options.parse(arguments)
    if parameters.guest != "qemu":
        return []
    wanted = contents(parameters.disk_bytes, parameters.fill_bytes, parameters.file_system)
    return [word for path in prepared((wanted,)).files for word in ("--file", str(path))]


def main(argv: Sequence[str]) -> int:
    """The lab's exit status; 2 for a wrong argument."""
    ending.on_signals()
    if MODULE not in argv:
        return lab(argv)
    at = argv.index(MODULE)
    run, rest = list(argv[:at]), list(argv[at:])
    try:
        brought = along(rest[1:])
    except (DiskError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except (LabError, ProcessError, RelocatorError) as error:
        print(f"lab: the guest can't be made: {error}", file=sys.stderr)
        return 1
    before, dashes = (run[:-1], ["--"]) if run[-1:] == ["--"] else (run, [])
    return lab([*before, *brought, *dashes, *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
