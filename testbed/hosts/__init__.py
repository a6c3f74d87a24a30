"""What runs on the sites' hosts: processes in their namespaces, servers, the guest's device.

    supervise   processes that are owned and ended                         -> Supervisor, Process
    services    command lines of servers, kernel nbd, device-mapper        -> GuestDevice, KernelNbd
    ssh         an sshd with keys of its own

Promises: a process that ends before it should is an error with its log's tail.
"""
