"""`relocator units`: the systemd units of target, proxy and iSCSI, written where systemd looks."""

import argparse
import shutil
import sys
from pathlib import Path

from relocator.cli.common import Commands
from relocator.errors import RelocatorError

FOLDER = Path(__file__).resolve().parent.parent / "units"
_USUAL = "/etc/systemd/system"
_PACKAGED = Path("/usr/lib/systemd/system")


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "units",
        help="write systemd units for target, proxy and iSCSI",
        description="Write the systemd units relocator-target@, relocator-proxy@ and "
        "relocator-iscsi@, which start this very command. Each instance NAME is configured by "
        "/etc/relocator/NAME.conf; --example prints one.",
    )
    parser.add_argument(
        "directory", metavar="DIRECTORY", nargs="?", default=_USUAL, help=f"where to ({_USUAL})"
    )
    parser.add_argument(
        "--example", action="store_true", help="only print an example of /etc/relocator/NAME.conf"
    )
    parser.add_argument(
        "--command", metavar="PATH", type=Path, help="the `relocator` that they start (this one)"
    )
    parser.set_defaults(run=_run)


def units(command: Path) -> dict[str, str]:
    """The text of each unit, by its file's name; they start `command`."""
    common = (FOLDER / "common").read_text().rstrip("\n")
    return {
        path.name: path.read_text().replace("@COMMON@", common).replace("@RELOCATOR@", str(command))
        for path in sorted(FOLDER.glob("*.service"))
    }


def _run(options: argparse.Namespace) -> int:
    if options.example:
        print((FOLDER / "example.conf").read_text(), end="")
        return 0
    for name, text in units(options.command or this_command()).items():
        path = Path(options.directory, name)
        try:
            path.write_text(text)
        except OSError as error:
            raise RelocatorError(f"{path}: {error.strerror}") from error
        print(path)
        if options.directory == _USUAL and (_PACKAGED / name).exists():
            print(f"relocator: {path} hides the package's; remove it to use that", file=sys.stderr)
    return 0


def this_command() -> Path:
    """The `relocator` that belongs to this interpreter, or the one in PATH."""
    beside = Path(sys.executable).with_name("relocator")
    found = beside if beside.exists() else shutil.which("relocator")
    if found is None:
        raise RelocatorError("the command `relocator` is not installed; see `make install`")
    return Path(found).absolute()
