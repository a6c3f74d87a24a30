"""The test bed for other projects: a pytest plugin.

    plugin      pytest's hooks: options, markers, what runs where          -> the entry point
    fixtures    what a test may ask for                                    -> lab, sites, wan
    network     two sites and the link between them, as a test sees them   -> Site, Sites, Wan
    remote      one test sent into the lab, its reports brought back
    inside      the program that runs it there
    covered     which lines it ran, put beside those of the other tests

Promises: a marked test runs in a machine of its own; on the virtual clock, the same test with the
same seed does the same on every machine, however busy. Its reports, output, files, figures and
coverage come back as if it had run here.
"""
