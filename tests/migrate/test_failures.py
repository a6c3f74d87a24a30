"""QEMU's own failures, a link that is cut, and sites that are reached through ssh."""

import getpass
import subprocess
from functools import partial
from pathlib import Path

from testbed.hosts.qmp import connect
from testbed.hosts.ssh import keys, known, sshd_command
from tests.migrate.sites import Sites, settled_owner, standing, stopped, wait_for
from tests.support import command, servers
from tests.support.link import PROXY_ADDRESS, SOURCE_ADDRESS, Link
from tests.support.link import sites as namespaces
from tests.support.relay import relay
from tests.support.servers import Server
from tests.support.sources import daemon

NBD_PORT = 10809


def test_memory_that_can_not_be_sent_leaves_the_guest_where_it_is(tmp_path: Path) -> None:
    with Sites(tmp_path, 2) as sites:
        done = sites.migrate("--uri", f"unix:{tmp_path / 'nowhere'}", "--incoming", "unix:/x/y")
        assert done.returncode == 1
        assert "the destination's QEMU refused 'migrate-incoming'" in done.stderr
        done = sites.migrate("--uri", f"unix:{tmp_path / 'no'}", "--incoming", f"unix:{tmp_path}/i")
        assert done.returncode == 1
        assert "The guest is at the source, its disks are writable there" in done.stderr
        assert settled_owner(sites) == "source"
        sites.source.goes_on()
        sites.moved("--incoming", f"unix:{tmp_path}/i", "--uri", f"unix:{tmp_path}/i")
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)


class Unlike(Sites):
    """The source's QEMU has a device that the destination's lacks."""

    source_flags = ("-device", "virtio-rng-pci")


def test_a_guest_that_does_not_fit_comes_back(tmp_path: Path) -> None:
    with Unlike(tmp_path, 2) as sites:
        done = sites.migrate()
        assert done.returncode == 1
        assert "the destination's QEMU was lost before it had the guest" in done.stderr
        assert "The guest is at the source, its disks are writable there" in done.stderr
        assert settled_owner(sites) == "source"
        sites.source.goes_on()
        monitor = connect(sites.source.qmp)
        known = monitor.call("query-migrate-capabilities")
        assert {"capability": "pause-before-switchover", "state": False} in known
        monitor.close()
        sites.source.kill()
        sites.prove(sites.source, site=sites.a)


def test_a_move_that_is_killed_leaves_the_limits_that_were_before(tmp_path: Path) -> None:
    with Sites(tmp_path, 1) as sites:
        monitor = connect(sites.source.qmp)
        monitor.call("migrate-set-parameters", max_bandwidth=1 << 30, downtime_limit=500)
        monitor.close()
        limits = ("--bandwidth", "80M", "--downtime-limit", "77")
        with standing("memory", *sites.arguments(*limits)) as process:
            process.kill()
            process.communicate(timeout=60)  # until its guard has ended, too
        assert settled_owner(sites) == "source"
        monitor = connect(sites.source.qmp)
        found = monitor.call("query-migrate-parameters")
        monitor.close()
        assert (found["max-bandwidth"], found["downtime-limit"]) == (1 << 30, 500)


def test_a_guest_whose_qemu_can_not_be_told_while_memory_is_sent_runs_on(tmp_path: Path) -> None:
    """And is not paused at its end: its migration fails as the destination's QEMU is ended."""
    far = tmp_path / "far.qmp"
    with Sites(tmp_path, 1) as sites, relay(far, sites.source.qmp) as way:
        slow = sites.arguments("--from", str(far), "--bandwidth", "400K")
        with standing("memory", *slow) as process:
            way.cut()
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            process.wait(60)
            monitor = connect(sites.source.qmp)
            status = lambda: monitor.call("query-migrate")["status"]  # noqa: E731
            wait_for(lambda: status() in ("failed", "pre-switchover"), "the stream's end", 60)
            assert status() == "failed"
            monitor.close()
            sites.source.goes_on()
            way.mend()
            out, err = process.communicate(timeout=60)  # of its guard, too
        assert process.returncode == 1, err
        assert "the destination's, which was still receiving, was ended" in err
        assert "The guest is at the source, its disks are writable there" in out
        assert settled_owner(sites) == "source"
        sites.new_destination()
        sites.moved()
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)


class Apart(Sites):
    """Each site in a network namespace of its own; what runs the move reaches both."""

    def __init__(self, directory: Path, link: Link) -> None:
        super().__init__(directory, 2, "retry-timeout=3")
        self.link = link
        self.file = servers.impatient(directory)
        self.uri = f"tcp:{PROXY_ADDRESS}:4444"

    def within(self, site: Path) -> list[str]:
        return self.link.within(self.link.source if site == self.a else self.link.proxy)

    def target(self, at: int) -> Server:
        server = super().target(at)
        relay = f"TCP-LISTEN:{NBD_PORT + at},bind={SOURCE_ADDRESS},reuseaddr,fork"
        process = subprocess.Popen(
            [*self.within(self.a), "socat", relay, f"UNIX-CONNECT:{server.socket}"]
        )
        self.ends.callback(process.wait)
        self.ends.callback(process.kill)
        wait_for(lambda: self.link.listens(NBD_PORT + at), "the relay")
        return server

    def way(self, at: int) -> str:
        return f"nbd://{SOURCE_ADDRESS}:{NBD_PORT + at}"


def test_a_link_that_is_cut_while_the_guest_stands_still_brings_it_back(tmp_path: Path) -> None:
    with namespaces() as link, Apart(tmp_path, link) as sites:
        with stopped(sites, "continued", command.impatient(tmp_path)) as process:
            link.cut()
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            _, err = process.communicate(timeout=200)
        assert process.returncode == 1, err
        assert "The guest is at the source, its disks are writable there" in err
        sites.source.goes_on()
        link.mend()
        assert settled_owner(sites) == "source"
        sites.new_destination()
        sites.moved()
        for server in sites.targets:
            server.kill()  # rather than to wait for the relays
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)


def test_a_proxy_that_dies_as_the_guest_arrives_lets_it_go_on_at_the_source(tmp_path: Path) -> None:
    """Whatever the destination's QEMU waits for: here the move would wait for its answer, too."""
    with Sites(tmp_path, 2) as sites:
        with stopped(sites, "arrived", command.patient(tmp_path)) as process:
            sites.proxies[-1].kill()
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            sites.source.goes_on()
            assert sites.destination.alive  # it waits for its disk
            there = len(sites.destination.numbers)
            sites.proxies[-1] = sites.proxy(sites.disks[-1])
            _, err = process.communicate(timeout=90)
        assert process.returncode == 1, err
        assert "The guest is at the source" in err
        sites.destination.process.wait(60)
        assert len(sites.destination.numbers) == there
        assert settled_owner(sites) == "source"
        sites.source.kill()
        sites.prove(sites.source, site=sites.a)


def test_the_destination_may_be_reached_through_ssh(tmp_path: Path) -> None:
    options = keys(tmp_path)
    with (
        daemon(tmp_path, "sshd", partial(sshd_command, tmp_path, "127.0.0.1")) as door,
        Sites(tmp_path, 1) as sites,
    ):
        known(tmp_path, "127.0.0.1", door.port)
        there = f"ssh://{getpass.getuser()}@127.0.0.1:{door.port}"
        target, proxy = sites.targets[0], sites.proxies[0]
        argv = ["--from", f"unix:{sites.source.qmp}", "--to", f"{there}{sites.destination.qmp}"]
        argv += ["--uri", sites.uri, "--disk", f"{target.uri},{there}{proxy.control_path}"]
        done = sites.run(*argv, f"--ssh-options={options}")
        assert done.returncode == 0, done.stderr
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)
        ps = ["ps", "-eo", "args"]
        said = lambda: subprocess.run(ps, capture_output=True, text=True, check=True)  # noqa: E731
        wait_for(lambda: f"ssh -N -F none -i {tmp_path}" not in said().stdout, "ssh to end")
