"""Long runs of the targets: inputs are made up, and those that reach new code are kept and changed.

    python -m tests.fuzz [TARGET...] [--time S] [--corpus DIR]
    python -m tests.fuzz TARGET --replay FILE

Each target has the time given, one after the other (all of them if none is named). With atheris
(libFuzzer) coverage guides what is made; where it isn't installed, chance alone does, and for a
target that is a process of its own. What is worth
keeping stays in DIR/TARGET for the next run; what failed is written there too, as crash-..., and
shrunk into hypothesis' own database, from which pytest tries it first.
"""

import argparse
import importlib
import importlib.util
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORPUS = Path(".cache/fuzz")
#: targets whose code runs in another process, where nobody sees what is reached
ELSEWHERE = ("verb",)
_EVERY_S = 10.0
_MOST_BYTES = 4096

Feed = Callable[[bytes], Any]


def modules() -> list[str]:
    """The names of the modules with targets."""
    return [f"tests.fuzz.{path.stem}" for path in sorted(Path(__file__).parent.glob("test_*.py"))]


def targets() -> dict[str, Feed]:
    """Every target by its name: what takes the bytes that an input is made from."""
    found: dict[str, Feed] = {}
    for name in modules():
        for attribute, value in vars(importlib.import_module(name)).items():
            if attribute.startswith("test_") and hasattr(value, "hypothesis"):
                found[attribute.removeprefix("test_")] = value.hypothesis.fuzz_one_input
    return found


def guided(name: str, directory: Path, time_s: int) -> None:
    """Run a target under atheris; ends this process."""
    import atheris

    with atheris.instrument_imports(include=["relocator"]):
        feed = targets()[name]
    options = [f"-max_total_time={time_s}", f"-max_len={_MOST_BYTES}", f"-timeout={60}"]
    options += [
        f"-artifact_prefix={directory}/",
        "-print_final_stats=1",
        "-len_control=0",
        "-rss_limit_mb=2048",
    ]
    atheris.Setup([sys.argv[0], *options, str(directory)], feed)
    atheris.Fuzz()


def by_chance(name: str, directory: Path, time_s: int) -> int:
    """Run a target on random bytes; the exit status."""
    feed, chance, inputs = targets()[name], random.Random(time.time_ns()), 0
    began_s = told_s = time.monotonic()
    while (now_s := time.monotonic()) < began_s + time_s:
        data = chance.randbytes(chance.randrange(_MOST_BYTES))
        inputs += 1
        try:
            feed(data)
        except Exception:
            traceback.print_exc()
            (directory / f"crash-{inputs}").write_bytes(data)
            return 1
        if now_s - told_s >= _EVERY_S:
            told_s = now_s
            print(f"{name}: {inputs} inputs, {began_s + time_s - now_s:.0f} s left", flush=True)
    return 0


def one(name: str, directory: Path, time_s: int) -> int:
    """Run one target in this process."""
    directory.mkdir(parents=True, exist_ok=True)
    if name in ELSEWHERE or importlib.util.find_spec("atheris") is None:
        return by_chance(name, directory, time_s)
    guided(name, directory, time_s)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="(all)")
    parser.add_argument("--time", type=int, default=600, help="seconds for each (600)")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help=f"({CORPUS})")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="one input again")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        (name,) = given.targets
        return one(name, given.corpus / name, given.time)
    known = targets()
    if unknown := [name for name in given.targets if name not in known]:
        parser.error(f"no target '{unknown[0]}'; there are: {', '.join(known)}")
    if given.replay is not None:
        known[given.targets[0]](given.replay.read_bytes())
        return 0
    failed = []
    for number, name in enumerate(names := given.targets or list(known), 1):
        left = (len(names) - number + 1) * given.time // 60
        print(f"== {name}: {number} of {len(names)}, {left} min left in all", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", name, "--here", "--time", str(given.time)]
        if subprocess.run([*command, "--corpus", str(given.corpus)], check=False).returncode:
            failed.append(name)
    print(f"== {len(names) - len(failed)} of {len(names)} held", *failed, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
