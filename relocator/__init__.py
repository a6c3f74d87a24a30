"""Relocator moves a virtual machine's disk to another site while the VM keeps running.

The tree reads from the inside out: pure modules (geometry, bitmap, states, errors, config, pacing,
ordering), I/O (image, maps, store, connection, upstream), the engine (hydration, disk, copier), and
the edges (plugin, cli). Imports go from the edges inwards, never back.
"""

__version__ = "0.1.0"
