"""A real Prometheus scrapes a real proxy: alerts fire when the source dies, and end."""

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relocator.cli import metrics
from tests.support.command import started
from tests.support.model import source_bytes
from tests.support.servers import nbdkit, proxy, wait_for
from tests.support.sources import free_port

SIZE_BYTES = 4 << 20
PATIENCE_S = 60.0
CONFIG = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: relocator
    static_configs: [{{targets: ["{sidecar}"]}}]
"""


class Prometheus:
    """A server that can be asked."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its HTTP API; None if it isn't up yet."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as page:
                return json.load(page)["data"]
        except urllib.error.URLError:
            return None

    def firing(self) -> set[str]:
        """The alerts that fire."""
        found = (self.ask("alerts") or {"alerts": []})["alerts"]
        return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}


@contextmanager
def prometheus(directory: Path, sidecar: str) -> Iterator[Prometheus]:
    """A Prometheus with our rules, whose alerts fire after a second."""
    rules = (metrics.FOLDER / "alerts.yml").read_text()
    (directory / "alerts.yml").write_text(re.sub(r"for: \d+m", "for: 1s", rules))
    (directory / "prometheus.yml").write_text(CONFIG.format(sidecar=sidecar))
    port = free_port()
    flags = [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={directory / 'tsdb'}"]
    command = ["prometheus", f"--config.file={directory / 'prometheus.yml'}", *flags]
    with (directory / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(30)


def expressions() -> list[str]:
    """What the dashboard asks for, with its variables filled in."""
    document = json.loads((metrics.FOLDER / "dashboard.json").read_text())
    asked = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    asked += [one["expr"] for one in document["annotations"]["list"]]
    return [one.replace("$disk", ".*").replace("$__rate_interval", "5s") for one in asked]


def test_a_source_that_dies_is_an_alert_until_it_comes_back(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    served = ["file", str(tmp_path / "disk.img")]
    with nbdkit(tmp_path, "source", served) as source:
        with proxy(tmp_path, source, "rate=1M", "background=on") as copy:
            command = ("metrics", str(copy.control_path), "--listen", "127.0.0.1:0")
            with started(*command, stdout=subprocess.PIPE) as sidecar:
                assert sidecar.stdout is not None
                url = sidecar.stdout.readline().split()[-1]
                with prometheus(tmp_path, url.split("/")[2]) as server:
                    found = {"query": 'relocator_source_lost{disk="proxy"} == 0'}
                    wait_for(lambda: (server.ask("query", **found) or {}).get("result"), "a scrape")
                    wait_for(lambda: server.firing() == set(), "quiet")
                    for expression in expressions():
                        assert server.ask("query", query=expression) is not None, expression
                    source.kill()
                    fires = "RelocatorSourceLost"
                    wait_for(lambda: fires in server.firing(), "the alert", PATIENCE_S)
                    with nbdkit(tmp_path, "source", served):
                        wait_for(lambda: fires not in server.firing(), "its end", PATIENCE_S)
                        copy.kill()
                        wait_for(
                            lambda: server.firing() == {"RelocatorDown"}, "the next", PATIENCE_S
                        )
                        sidecar.kill()
                        wait_for(
                            lambda: server.firing() == {"RelocatorUnwatched"},
                            "the last",
                            PATIENCE_S,
                        )
