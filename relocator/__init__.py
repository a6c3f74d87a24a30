"""Relocator moves a virtual machine's disk to another site while the VM keeps running.

A *target* serves a disk at the source; a *proxy* at the destination serves the VM at once, fetches
what is missing from the target, and copies the rest. Both are one nbdkit plugin. The tree is the
theory, from the outside in:

    plugin, cli    the edges: nbdkit's callbacks, the operator's commands
    running        one running disk: its life, its guests' requests, the handover
    config         its parameters
    copying        what comes next, how fast, and how a block becomes present
    source         the far end: connections, and what a source is asked besides blocks
    filesystem     which blocks of a disk hold data
    store          what is here, and durable
    errors

Imports go downwards only; `make check` sees to it (pyproject.toml).
"""

__version__ = "0.1.0"
