"""What the guest does while its disk moves: fio, a compile, and a ledger that must not lose a line.

Each runs as a process of its own on the guest's file system, from the start to the end of the run,
and ends with status 0 only if it met no error. None of them knows about the switch.
"""
