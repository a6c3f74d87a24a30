"""The VM that moves: a small Linux with a workload that can tell whether its disk is right.

    image    kernel, first boot stage and system, from Debian's packages   -> build.ensure()
    disks    its disks: ext3 or ext4, the system, a ledger, a large file   -> make, Contents
    vm       a QEMU that runs it, fresh, arriving, or from a kept state    -> Vm, Settings
    report   what it said, and whether the disk holds what it was told     -> Report, problems
    site     servers of disks and the VM, at one place                     -> Site
    prepared booted once, kept, and woken where a test needs it            -> prepared()
    inside/  what runs in it: init, main, work.py

It is told what to do over one virtio port and tells what happened over another (inside/work.py has
the words). What it says is kept at whichever host it runs on, byte by byte: one report read after
the other, in the order of the guest's way, is the whole of it.

In short, a guest that moves from one QEMU to another:

    with Supervisor(logs) as supervisor:
        origin = prepared()                               # booted at the first call, then kept
        a, b = (Site(name, directory / name, supervisor, origin.boot) for name in "ab")
        target = a.target(origin.disk(a.directory))
        proxy = b.proxy(target.uri, "mode=standby")
        one = a.vm([target.uri], origin.settings, state=origin.state)
        one.tell("write 0 20 1")
        one.wait_for_acknowledged(10)
        other = b.vm([proxy.uri], origin.settings, incoming=True)
        ...     # one.qmp, other.qmp, proxy.control are sockets; other.incoming is where it listens
        other.shut_down()                                 # unmounts, powers off
        supervisor.stop(proxy.process)
    assert report.problems(
        [one.report, other.report], [one.console, other.console], [proxy.image]) == []
"""
