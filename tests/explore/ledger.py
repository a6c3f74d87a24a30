"""What each block of the disk may read as, by what its guests were told."""


class Ledger:
    """Values of blocks: a write that was acknowledged counts, one that was refused doesn't.

    One that got no answer may or may not. What was acknowledged without a flush may be lost where
    power fails, until another site has taken the disk over: that promises that all is durable.
    """

    def __init__(self, first: tuple[int, ...]) -> None:
        self.allowed = [{value} for value in first]
        self._floor = [{value} for value in first]
        self._since: list[list[tuple[str, int]]] = [[] for _ in first]

    def begin(self, block: int, value: int) -> None:
        self.allowed[block].add(value)

    def acknowledge(self, site: str, block: int, value: int, *, durable: bool) -> None:
        self.allowed[block] = {value}
        self._since[block].append((site, value))
        if durable:
            self._flush(block)

    def refuse(self, block: int, value: int) -> None:
        self.allowed[block].discard(value)

    def flush(self) -> None:
        """All that was acknowledged is promised to be durable."""
        for block in range(len(self.allowed)):
            self._flush(block)

    def _flush(self, block: int) -> None:
        self._floor[block] = set(self.allowed[block])
        self._since[block].clear()

    def power_failed(self, site: str) -> None:
        for block, since in enumerate(self._since):
            lost = {value for where, value in since if where == site}
            if lost:
                self.allowed[block] |= self._floor[block] | lost

    def key(self) -> tuple[object, ...]:
        return (
            tuple(tuple(sorted(values)) for values in self.allowed),
            tuple(tuple(sorted(values)) for values in self._floor),
            tuple(tuple(since) for since in self._since),
        )
