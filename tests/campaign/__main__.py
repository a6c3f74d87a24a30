"""Fault campaigns: `python -m tests.campaign [--seeds N]`, `--replay FILE`, `--shrink FILE`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from testbed import ending
from tests.campaign import boots, runfile
from tests.campaign.journal import ABORTED, STATES
from tests.campaign.picture import draw
from tests.campaign.planted import BUGS
from tests.campaign.runfile import RunFile
from tests.campaign.shrink import smaller
from tests.campaign.world import World, world

#: so many seeds must have reached every state
LONG = 100
DEFAULT_OUT = Path("out/campaign")


def _count(text: str) -> int:
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}': must be a whole number above 0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", type=_count, default=20, metavar="N", help="how many (20)")
    parser.add_argument("--first", type=_count, default=1, metavar="SEED", help="from this on (1)")
    parser.add_argument("--boot", type=_count, default=5, metavar="N", help="worlds a boot (5)")
    parser.add_argument("--jobs", type=_count, default=2, metavar="N", help="boots at a time (2)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="out/campaign")
    parser.add_argument("--planted", choices=BUGS, help="put a known bug back: must be found")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this failing run again")
    parser.add_argument("--shrink", type=Path, metavar="FILE", help="make a failing run smaller")
    return parser


def say(text: str) -> None:
    """Tell the user."""
    print(text, flush=True)


def campaign(given: argparse.Namespace) -> int:
    """Run the seeds that have no result of this commit yet; 1 if any failed."""
    state = {"commit": runfile.commit(), "image": runfile.image_digest()}
    state["planted"] = given.planted
    results = given.out / "seeds"
    told = given.out / "campaign.json"
    if not told.exists() or json.loads(told.read_text()) != state or state["commit"].endswith("+"):
        for old in results.glob("*.json"):
            old.unlink()
    results.mkdir(parents=True, exist_ok=True)
    told.write_text(json.dumps(state))
    wanted = range(given.first, given.first + given.seeds)
    todo = [seed for seed in wanted if not (results / f"{seed}.json").exists()]
    if len(todo) < len(wanted):
        say(f"{len(wanted) - len(todo)} seeds have their results already")
    cut = [todo[at : at + given.boot] for at in range(0, len(todo), given.boot)]
    begun_s, done = time.monotonic(), 0
    for worlds, found in boots.all_of(
        [tuple(replace(world(seed), planted=given.planted) for seed in part) for part in cut],
        given.jobs,
        given.out / "logs",
    ):
        for number, result in enumerate(found):
            (results / f"{result['seed']}.json").write_text(json.dumps(result))
            draw(worlds[number], result, results / f"{result['seed']}.png")
            if not result["ok"]:
                _failed(given.out, worlds[: number + 1], result)
        done += len(worlds)
        left_s = (time.monotonic() - begun_s) / done * (len(todo) - done)
        say(f"{done} of {len(todo)} seeds, about {left_s / 60:.0f} min left")
        if given.planted and not all(result["ok"] for result in found):
            return 0
    if given.planted:
        say(f"{given.planted} was not found by {len(wanted)} seeds")
        return 1
    return _verdict([json.loads((results / f"{seed}.json").read_text()) for seed in wanted])


def _failed(out: Path, worlds: tuple[World, ...], result: boots.Result) -> None:
    path = out / f"failed-{result['seed']}.json"
    RunFile.of(worlds, result).write(path)
    say(f"seed {result['seed']} failed: {result['wrong'][0]}\n  again: --replay {path}")


def _verdict(results: Sequence[boots.Result]) -> int:
    failed = [result for result in results if not result["ok"]]
    reached: dict[str, int] = {}
    for result in results:
        for state in result["reached"]:
            reached[state] = reached.get(state, 0) + 1
    for state in (*STATES, ABORTED):
        say(f"  {reached.get(state, 0):4}  {state}")
    writes, seconds = (sum(result[key] for result in results) for key in ("writes", "seconds"))
    say(f"{len(results)} seeds, {writes} writes in {seconds:.0f} s: {len(failed)} failed")
    missing = [state for state in STATES if state not in reached]
    if missing and len(results) >= LONG:
        say(f"not reached: {', '.join(missing)}")
        return 1
    return 1 if failed else 0


def replay(path: Path) -> int:
    """Run a failing run again; 0 if the same came of it."""
    run = RunFile.read(path)
    for line in run.elsewhere():
        say(f"it may differ: {line}")
    result = boots.boot(run.worlds)[-1]
    say("\n".join(result["wrong"]) or "it passes")
    same = runfile.digest(result) == run.result
    say("the same to the byte" if same else "not the same as in the file")
    return 0 if same else 1


def shrink(path: Path) -> int:
    """Make a failing run smaller, beside the one given."""
    run = RunFile.read(path)
    if not boots.fails(run.worlds):
        say("it passes here: nothing to make smaller")
        return 1
    worlds = smaller(run.worlds, boots.fails, say)
    result = boots.boot(worlds)[-1]
    to = path.with_suffix(".small.json")
    RunFile.of(worlds, result).write(to)
    say("\n".join([f"{to}:", *(f"  {event}" for event in worlds[-1].events), *result["wrong"]]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; status 2 for a wrong parameter."""
    ending.on_signals()
    given = _parser().parse_args(argv)
    try:
        if given.replay is not None:
            return replay(given.replay)
        if given.shrink is not None:
            return shrink(given.shrink)
        return campaign(given)
    except ValueError as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 2
    except boots.BootError as error:
        print(f"campaign: the lab came to no result: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
