"""Boots of the lab: each runs some worlds, and so many boots run at a time."""

import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from testbed.lab import entry
from tests.campaign.world import World

MODULE = "tests.campaign.inside"
#: of real time that a boot may take: it is long on a busy machine
TIMEOUT_S = 6 * 3600.0
#: as long is what says which worlds they are: a world feels those before it only
GIVEN_BYTES = 256 << 10
Result = dict[str, Any]


class BootError(RuntimeError):
    """The lab ended before its worlds did; says what it printed last."""


def boot(worlds: Sequence[World], logs: Path | None = None) -> list[Result]:
    """The results of these worlds, run one after the other in one boot.

    `logs` gets the logs of worlds that failed.

    Raises:
        BootError: it came to no result.
    """
    with tempfile.TemporaryDirectory(prefix="relocator-campaign-") as name:
        given, out = Path(name) / "worlds.jsonl", Path(name) / "out"
        lines = "".join(json.dumps(world.to_json()) + "\n" for world in worlds)
        given.write_text(lines.ljust(-(-len(lines) // GIVEN_BYTES) * GIVEN_BYTES))
        printed = io.BytesIO()
        entry.run([MODULE], out=out, where="vm", timeout_s=TIMEOUT_S, files=[given], stdout=printed)
        try:
            results = [json.loads((out / f"{at}.json").read_text()) for at in range(len(worlds))]
        except OSError as error:
            raise BootError(printed.getvalue().decode(errors="replace")[-2000:]) from error
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
            for log in out.glob("*.log"):
                number, _, site = log.name.partition("-")
                (logs / f"{worlds[int(number)].seed}-{site}").write_bytes(log.read_bytes())
        return results


def all_of(
    boots: Sequence[tuple[World, ...]], jobs: int, logs: Path | None = None
) -> Iterator[tuple[tuple[World, ...], list[Result]]]:
    """The boots with their results, as they end; `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(boot, worlds, logs): worlds for worlds in boots}
        try:
            for future in as_completed(begun):
                yield begun[future], future.result()
        finally:
            for future in begun:
                future.cancel()


def fails(worlds: tuple[World, ...]) -> bool:
    """Whether the last of these worlds fails, by trying."""
    return not boot(worlds)[-1]["ok"]
