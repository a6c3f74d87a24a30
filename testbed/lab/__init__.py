"""The lab: where a test-bed program runs, with the same arguments and results everywhere.

    entry       natively or in the VM: decided, and run                    -> choose, run, shell
    native      on this kernel
    vm          QEMU, its console, the virtual clock
    image       the VM's root, built from Debian's packages, the same on every host
    payload     what travels into the VM: only what may change a run
    luggage     what else travels, of a project that isn't ours
    cpio        the archive it travels in
    guest/      the VM's own first programs

Promises: in the VM a run's bytes depend on arguments, seed, image and shipped files only.
"""
