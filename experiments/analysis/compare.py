"""Says whether two result directories are the same, byte by byte.

    python -m experiments.analysis.compare DIR1 DIR2 [--ignore PATTERN]...

Compares the trees' file names and contents (not times or modes) and lists every difference:
`only in` one of them, or `differs` with the offset of the first different byte. Logs (`*.log`) are
left out: they may tell of wall time. Exit status 0: identical; 1: not; 2: not comparable.
"""

import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import experiments

IGNORED = ("*.log",)
CHUNK_BYTES = 1 << 20


def files_below(root: Path, ignored: Sequence[str]) -> set[str]:
    """The relative names of all files below `root` whose last part matches no pattern."""
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if not path.is_dir() and not any(fnmatch(path.name, pattern) for pattern in ignored)
    }


def first_difference(one: Path, other: Path) -> int | None:
    """The offset of the first byte in which two files differ; None if they are the same."""
    offset = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(CHUNK_BYTES), right.read(CHUNK_BYTES)
            if a != b:
                pairs = zip(a, b, strict=False)
                same = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
                return offset + same
            if not a:
                return None
            offset += len(a)


def differences(one: Path, other: Path, ignored: Sequence[str] = IGNORED) -> Iterator[str]:
    """One line for each file that is not the same in both trees, in order of name."""
    left, right = files_below(one, ignored), files_below(other, ignored)
    for name in sorted(left | right):
        if name not in right:
            yield f"only in {one}: {name}"
        elif name not in left:
            yield f"only in {other}: {name}"
        elif (offset := first_difference(one / name, other / name)) is not None:
            yield f"differs from byte {offset}: {name}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = experiments.parser("analysis.compare", __doc__)
    parser.add_argument("one", type=Path, metavar="DIR1")
    parser.add_argument("other", type=Path, metavar="DIR2")
    parser.add_argument(
        "--ignore",
        action="append",
        default=list(IGNORED),
        metavar="PATTERN",
        help="file names to leave out, besides *.log",
    )
    args = parser.parse_args(argv)
    for directory in (args.one, args.other):
        if not directory.is_dir():
            print(f"compare: {directory} is not a directory", file=sys.stderr)
            return 2
    count = len(files_below(args.one, args.ignore))
    found = list(differences(args.one, args.other, args.ignore))
    for line in found:
        print(line)
    if not found and not count:
        print("compare: there is nothing to compare: both are empty", file=sys.stderr)
        return 2
    print(f"{len(found)} of the files differ" if found else f"identical: {count} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
