"""The kernel's trace of the guest's requests."""

from testbed.migration.requests import Request, parse

TRACE = """\
# tracer: nop
#
             fio-812     [000] .....    12.345678: block_rq_issue: 43,1 R 4096 () 2048 + 8 [fio]
    kworker/0:1H-77  [000] .....    12.400000: block_rq_issue: 43,1 WS 8192 () 0 + 16 [kworker]
             fio-812     [000] .....    12.500000: block_rq_issue: 43,1 FF 0 () 0 + 0 [fio]
            jbd2-812  [000] .....    12.600000: block_rq_issue: 43,1 FWFSM 4096 () 8 + 8 [jbd2]
          fstrim-813  [000] .....    12.700000: block_rq_issue: 43,1 DS 1048576 () 4096 + 2048 [x]
"""


def test_reads_writes_and_trims_are_kept_and_flushes_are_not() -> None:
    assert list(parse(TRACE.splitlines())) == [
        Request(12.345678, "read", 1048576, 4096),
        Request(12.4, "write", 0, 8192),
        Request(12.6, "write", 4096, 4096),
        Request(12.7, "trim", 2097152, 1048576),
    ]
