"""Explores every world, or those whose names have the given words in them."""

import argparse
import sys

from tests.explore.search import Explorer, told
from tests.explore.worlds import worlds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description=__doc__)
    parser.add_argument("words", nargs="*", help="of a world's name")
    parser.add_argument("--more", type=int, default=0, help="so much more of everything (0)")
    parser.add_argument("--most-s", type=float, default=600.0, help="seconds of CPU a world (600)")
    given = parser.parse_args()
    wrong = 0
    for plan in worlds(given.more):
        if not all(word in plan.name for word in given.words):
            continue
        found = Explorer(plan, given.most_s).explore()
        print(found, flush=True)
        if found.violation is not None:
            wrong += 1
            what, trace = found.violation
            print("\n".join([*told(plan, trace), *(f"     WRONG: {one}" for one in what)]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
