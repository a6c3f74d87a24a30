"""xNBD, the prototype of the paper's authors, where it is installed.

Its proxy keeps what is read and written, `xnbd-bgctl --cache-all` has it fetch the rest, and
`--switch` makes it a plain server of what it has kept, a raw image. It greets clients as NBD did
before 2011, which nbd-client no longer understands: at both sites `nbdkit nbd` stands between.
"""

from pathlib import Path

from testbed.hosts import services
from testbed.network.topology import ADDRESS
from testbed.systems.base import EVERYWHERE, System

SERVER, CONTROL = "xnbd-server", "xnbd-bgctl"
PORT = services.PORT + 10
_LOCAL = f"nbd://127.0.0.1:{PORT}"


class Xnbd(System):
    """xNBD's target at the source, its proxy at the destination."""

    name = "xnbd"
    programs = (SERVER, CONTROL)

    @property
    def _control(self) -> Path:
        return self.place.work / "xnbd.sock"

    def _server(self, mode: str, *arguments: object) -> list[str]:
        options = [f"--{mode}", "--lport", str(PORT)]
        return [self.place.program(SERVER), *options, *map(str, arguments)]

    def start_source(self) -> None:
        place = self.place
        self.source = place.at_source("source", self._server("target", place.image), PORT)
        self._greeter = place.at_source("greeter", services.relay_command(_LOCAL, EVERYWHERE))

    def prepare(self) -> None:
        bitmap = self.place.work / "xnbd.bitmap"
        host = ADDRESS["st_src-wan"]
        command = self._server("proxy", host, PORT, self.image, bitmap, self._control)
        self.place.at_destination("proxy", command, PORT)
        self.place.at_destination("moved", services.relay_command(_LOCAL, EVERYWHERE))

    def copy(self) -> None:
        for verb in ("--cache-all", "--switch"):
            self.place.run_at_destination([self.place.program(CONTROL), verb, str(self._control)])

    def shut_off_source(self) -> None:
        self.place.servers.stop(self._greeter)
        super().shut_off_source()
