"""One scripted move, act by act, and its immutable run directory (results/FORMAT.md).

    migration   the story                                                  -> migrate, main
    stage       what the acts leave for each other                         -> Stage
    prepare, observe, move, relocate, prove   the acts
    options     everything that decides a run                              -> Parameters
    results, record, summary   what a run leaves behind
    disk, memory, requests, completion, proof   what the acts use

Threads beside the script: the sampler, link events, the memory copy, the system's copy. Each is
ended, and its failure raised, where its `with` is left.
"""
