"""In the lab: the worlds of a file, one after the other, in one boot.

    python3 -m tests.campaign.inside

LAB_FILES holds `worlds.jsonl`, a world a line, of which each is read when it is its turn: what
comes after it changes nothing of what happens in it. LAB_OUT gets a file for each world, `0.json`
and so on, as soon as it has ended, and the logs of one that failed.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from testbed.hosts.services import PLUGIN
from testbed.hosts.supervise import run
from testbed.network.topology import sites
from tests.campaign import course, link
from tests.campaign.planted import plugin
from tests.campaign.server import share_mounts
from tests.campaign.storage import make_template
from tests.campaign.world import MOST_KIB, World
from tests.support.stamps import make_seed, make_source

FS_MIB = 32


def worlds() -> Iterator[World]:
    """Those of the file, one after the other."""
    with (Path(os.environ["LAB_FILES"]) / "worlds.jsonl").open() as given:
        for line in given:
            if line.strip():
                yield World.from_json(json.loads(line))


def main() -> int:
    """The command line; 1 if a world failed."""
    run(["modprobe", "-a", "loop", "dm_mod", "dm_delay", "dm_flakey", "ext4"])
    # Under emulation a start is half compiling: the first servers would be slower than others.
    run([sys.executable, "-m", "compileall", "-q", str(PLUGIN.parent)])
    share_mounts()
    with tempfile.TemporaryDirectory() as name, sites(link.FIRST) as network:
        directory = Path(name)
        make_source(directory / "source.img", MOST_KIB * 2)
        make_seed(directory / "seed.img", MOST_KIB * 2)
        make_template(directory / "empty.fs", FS_MIB)
        failed = False
        for number, world in enumerate(worlds()):
            place = directory / f"w{number}"
            place.mkdir()
            told = course.run(world, place, network, plugin(world.planted, place))
            out = Path(os.environ["LAB_OUT"])
            (out / f"{number}.json").write_text(json.dumps(told))
            if not told["ok"]:
                for log in place.glob("*.log"):
                    (out / f"{number}-{log.name}").write_bytes(log.read_bytes())
            said = "ok" if told["ok"] else told["wrong"][0]
            print(f"seed {world.seed}: {told['seconds']:.1f} s, {said}", flush=True)
            failed = failed or not told["ok"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
