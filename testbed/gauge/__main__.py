"""`python3 -m testbed.gauge PART...`: measures in the lab; LAB_OUT/PART.json each.

The product is compiled beforehand, as where it is installed: then servers start fast, and how long
a module's text is doesn't count. Addresses are not drawn at random.
"""

import compileall
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed import ending
from testbed.copybench import cpu_times
from testbed.gauge import copies, misses, requests
from testbed.hosts import services

PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "requests": requests.measure,
    "copies": copies.measure,
    "misses": misses.measure,
}
STABLE_ADDRESSES = Path("/proc/sys/kernel/randomize_va_space")


def main() -> int:
    """Status 2 for a part that isn't one."""
    ending.on_signals()
    if not sys.argv[1:] or (unknown := [one for one in sys.argv[1:] if one not in PARTS]):
        given = unknown[0] if sys.argv[1:] else ""
        print(f"gauge: part '{given}': must be one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    out = Path(os.environ.get("LAB_OUT", "out/gauge"))
    out.mkdir(parents=True, exist_ok=True)
    services.prepare_kernel()
    STABLE_ADDRESSES.write_text("0")
    compileall.compile_dir(services.PLUGIN.parent, quiet=1)
    for part in sys.argv[1:]:
        _say(part)
        with tempfile.TemporaryDirectory(prefix="gauge-") as work:
            measured = PARTS[part](Path(work))
        _say(part)
        (out / f"{part}.json").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    return 0


def _say(part: str) -> None:
    busy_s, all_s = cpu_times()
    print(f"{part}: {all_s:.1f} s after the boot, {busy_s:.1f} of them busy", flush=True)


if __name__ == "__main__":
    sys.exit(main())
