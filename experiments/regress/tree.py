"""The code that is measured: the product to be judged, measured by the test bed as it stands here.

So old commits are measured like new ones, and what is compared differs in nothing but the product.
The tree stands in a temporary directory of its own: the lab takes its files from there, and equal
files give equal figures.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relocator.errors import RelocatorError
from testbed.lab.payload import PROJECT

OURS = ("testbed", "experiments/fio")
_LEFT = shutil.ignore_patterns("__pycache__")


class RegressError(RelocatorError):
    """The check can't go on; the message says why."""


@contextmanager
def with_product(product: Path, tests: Path = PROJECT) -> Iterator[Path]:
    """A tree with the product in the directory `product`, and the test bed of `tests`."""
    with tempfile.TemporaryDirectory(prefix="regress-tree-") as name:
        tree = Path(name)
        shutil.copytree(product, tree / "relocator", ignore=_LEFT)
        for ours in OURS:
            shutil.copytree(tests / ours, tree / ours, ignore=_LEFT)
        yield tree


@contextmanager
def of_commit(commit: str) -> Iterator[Path]:
    """A tree with the product of a commit.

    Raises:
        RegressError: git doesn't know it.
    """
    with tempfile.TemporaryDirectory(prefix="regress-product-") as name:
        archive = git("archive", "--format=tar", commit, "relocator")
        subprocess.run(["tar", "--extract", "--directory", name], input=archive, check=True)
        with with_product(Path(name) / "relocator") as tree:
            yield tree


def commit_of(revision: str) -> str:
    """A revision's full name.

    Raises:
        RegressError: git doesn't know it.
    """
    return git("rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip()


def last_commit() -> str:
    """The last one that touched the product: it stays the same when others are put before it."""
    return git("log", "-1", "--format=%H", "--", "relocator").decode().strip()


def differs_from(commit: str) -> bool:
    """Whether the product on the disk is another than the commit's."""
    return bool(git("status", "--porcelain", "--", "relocator").strip()) or bool(
        git("diff", "--name-only", commit, "--", "relocator").strip()
    )


def git(*arguments: str, directory: Path = PROJECT) -> bytes:
    """What git prints.

    Raises:
        RegressError: it failed.
    """
    command = ["git", "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise RegressError(f"{' '.join(command)}: {done.stderr.decode().strip()}")
    return done.stdout
