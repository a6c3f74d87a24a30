"""Cells become runs: immutable directories, each made once, whole or not at all.

    matrix      the command that lists, shows and runs cells
    runner      one run, from its cell to its place                        -> run
    rundir      a run's directory, read                                    -> Run, load_run
    code        which code decides a run
    batch       processes side by side, ended in order                     -> Batch, Job
    progress, watch     what is shown meanwhile, with time left
    trace       the blocks a guest asked for, as an order of another run
    Snakefile, profiles/    the whole matrix, here or on a cluster

Interrupted, it goes on with the runs that are missing.
"""
