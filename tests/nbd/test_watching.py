"""A running plugin watched: pages, lines, metrics, as their users read them."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relocator.errors import RelocatorError
from tests.nbd.test_activation import Source, standby
from tests.support.command import relocator, started
from tests.support.model import source_bytes
from tests.support.servers import moving, nbdkit, plugin, proxy, target, wait_for

SIZE_BYTES = 4 << 20

Sample = tuple[str, tuple[tuple[str, str], ...]]


def scrape(url: str) -> dict[Sample, float]:
    """All samples of a Prometheus page by name and labels."""
    with urllib.request.urlopen(url, timeout=20) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_are_read_at_the_scrape_and_a_lost_plugin_leaves_no_stale_ones(
    tmp_path: Path,
) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    with nbdkit(tmp_path, "source", ["file", str(tmp_path / "disk.img")]) as source:
        keys = (f"store={tmp_path / 'store'}", f"source={source.uri}", "background=off")
        # No read-ahead: it counts as background even where it fetches what a read waits for.
        with plugin(tmp_path, "copy", *keys, "readahead=0") as server:
            command = ("metrics", str(server.control_path), str(tmp_path / "gone.sock"))
            with started(*command, "--listen", "127.0.0.1:0", stdout=subprocess.PIPE) as sidecar:
                assert sidecar.stdout is not None
                url = sidecar.stdout.readline().split()[-1]
                copy = ("disk", "copy")
                first = scrape(url)
                assert first["relocator_up", (copy,)] == 1
                assert first["relocator_state", (copy, ("relocator_state", "active"))] == 1
                assert first["relocator_state", (copy, ("relocator_state", "complete"))] == 0
                assert first["relocator_size_bytes", (copy,)] == SIZE_BYTES
                assert first["relocator_on_demand_bytes_total", (copy,)] == 0
                handle = server.connect()
                handle.pread(65536, 2 << 20)
                handle.pwrite(b"x" * 8192, 1 << 20)
                second = scrape(url)
                assert second["relocator_on_demand_bytes_total", (copy,)] == 65536
                assert second["relocator_dirty_bytes", (copy,)] == 8192
                assert second["relocator_requests_total", (copy, ("kind", "write"))] == 1
                quantile = (copy, ("kind", "write"), ("quantile", "0.99"))
                assert second["relocator_request_seconds", quantile] > 0
                assert [key for key in second if ("disk", "gone") in key[1]] == [
                    ("relocator_up", (("disk", "gone"),))
                ]
                server.kill()
                assert scrape(url) == {
                    ("relocator_up", (copy,)): 0,
                    ("relocator_up", (("disk", "gone"),)): 0,
                }
                taken = relocator("metrics", "/c", "--listen", url.split("/")[2])
                assert taken.returncode == 1
                assert "Address already in use" in taken.stderr


def test_metrics_without_its_package_names_it() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from relocator.cli.main import main; sys.exit(main(['metrics', '/c']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, "pip install prometheus-client" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_watch_into_a_pipe_prints_a_line_a_second_and_says_when_the_plugin_goes(
    tmp_path: Path,
) -> None:
    with moving(tmp_path, SIZE_BYTES, "rate=100K") as server:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with started("status", str(server.control_path), "--watch", **pipes) as watch:
            assert watch.stdout is not None
            assert watch.stdout.readline().startswith("proxy, active")
            assert "background " in watch.stdout.readline()
            server.kill()
            _, errors = watch.communicate(timeout=20)
            assert watch.returncode == 1
            assert "the plugin went away" in errors


def test_who_waits_for_a_disk_that_has_moved_on_is_told_that_all_is_there(tmp_path: Path) -> None:
    with target(tmp_path, SIZE_BYTES) as server:
        server.control.call("seal")
        control = str(server.control_path)
        assert relocator("wait", control, "--timeout", "20").returncode == 0
        watched = relocator("status", control, "--watch")
        assert (watched.returncode, watched.stdout[:14]) == (0, "target, sealed")


def read_until(terminal: int, wanted: str) -> str:
    """What a program writes to its terminal, up to `wanted`."""
    text = ""
    while wanted not in text:
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("interrupted", [True, False])
def test_watch_on_a_terminal_leaves_it_as_it_was(tmp_path: Path, interrupted: bool) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with nbdkit(tmp_path, "source", ["file", str(tmp_path / "disk.img")]) as source:
        with proxy(tmp_path, source, "rate=100K") as server:
            command = ("status", str(server.control_path), "--watch")
            with started(*command, stdin=theirs, stdout=theirs, stderr=theirs) as watch:
                text = read_until(ours, "last minute")
                assert "\x1b[?1049h" in text  # the page has a screen of its own
                if interrupted:
                    watch.send_signal(signal.SIGINT)
                else:
                    server.control.call("set", rate="none")
                text = read_until(ours, "\x1b[?1049l")  # the old screen
                assert "\x1b[?25h" in text  # and the cursor
                if not interrupted and "target, complete" not in text:
                    read_until(ours, "target, complete")
                assert watch.wait(20) == (130 if interrupted else 0)
    os.close(ours)
    os.close(theirs)


def test_the_map_gives_shares_of_equal_stretches(tmp_path: Path) -> None:
    with moving(tmp_path, SIZE_BYTES, "background=off", "readahead=0") as server:
        server.connect().pwrite(b"x" * (SIZE_BYTES // 8), SIZE_BYTES // 4)
        found = server.control.call("map", cells=4)["map"]
        assert found == {"present": [0.0, 0.5, 0.0, 0.0], "dirty": [0.0, 0.5, 0.0, 0.0]}
        blocks = SIZE_BYTES // 4096
        assert len(server.control.call("map", cells=50000)["map"]["present"]) == blocks
        for wrong in (0, -1, "many", True, 1 << 20):
            with pytest.raises(RelocatorError, match="must be a number from 1 to 65536"):
                server.control.call("map", cells=wrong)


def test_a_target_shows_what_it_has_and_nothing_of_a_copy(tmp_path: Path) -> None:
    with target(tmp_path, SIZE_BYTES) as server:
        server.connect().pwrite(b"x" * 8192, 0)
        shown = relocator("status", str(server.control_path)).stdout
    assert "target, complete" in shown and "4.0 MiB" in shown
    assert "2 blocks" in shown and "write" in shown
    assert not [word for word in ("None", "source", "background", "time left") if word in shown]


def test_who_waits_is_told_for_what(tmp_path: Path) -> None:
    source = Source(tmp_path)
    keys = ("background=on", "seal-brings=0")
    with source.serve() as target, standby(tmp_path, target, *keys) as proxy:
        wait = ("wait", str(proxy.control_path), "--timeout")
        wait_for(lambda: proxy.status()["rounds"], "the copy ahead")
        shown = relocator(*wait, "0.6").stderr
        assert "100% in standby: waits for `activate`" in shown
        assert "gave up after 0.6 s: not complete yet; in standby: waits for `activate`" in shown
        proxy.control.call("set", background="off")
        target.connect().pwrite(b"x" * (SIZE_BYTES // 4), 0)
        done = proxy.control.call("activate", wait=True)
        assert done["background"] == "off"  # as it was told
        target.kill()
        wait_for(lambda: not proxy.status()["source_connected"], "the end")
        shown = relocator(*wait, "0.6").stderr
        assert "% source not connected\n" in shown
        assert "not complete yet; source not connected" in shown
        with source.serve() as again:
            again.control.call("unseal", force=True)
            again.connect().pwrite(b"at home", 0)
            wait_for(lambda: proxy.status()["state"] == "outdated", "the proxy to find out", 60)
            status = proxy.status()
            share = 100 * status["present_blocks"] / status["total_blocks"]
            shown = relocator(*wait, "60").stderr
            assert f" {share:.0f}% outdated\n" in shown and status["error"] in shown
            again.kill()  # rather than to wait for its client


def test_a_source_that_is_silent_or_gone_leaves_no_time_to_tell(tmp_path: Path) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target, "background=on", "rate=1M") as proxy:

        def shown() -> str:
            return relocator("status", str(proxy.control_path)).stdout

        wait_for(lambda: proxy.status()["eta_s"], "the copy's rate")
        assert "(connected)" in shown()
        target.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: "(connected, silent for " in shown(), "the silence to be told")
        target.kill()
        wait_for(lambda: not proxy.status()["source_connected"], "the end")
        page = shown()
        assert "(not connected)" in page and "time left        unknown" in page
        assert [line for line in page.splitlines() if line != line.rstrip()] == []


def test_lines_into_a_pipe_are_as_long_as_they_need(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    with nbdkit(tmp_path, "source", ["file", str(tmp_path / "disk.img")]) as source:
        keys = (f"store={tmp_path / 'store'}", f"source={source.uri}", "background=off")
        with plugin(tmp_path, "copy", *keys) as server:
            shown = relocator("status", str(server.control_path)).stdout
    assert len(source.uri) > 80
    assert f"{source.uri} (connected)" in shown or f"{source.uri} (not connected)" in shown
