"""The evaluation: from scenarios to runs, from runs to metrics, from metrics to figures and a page.

    scenarios   experiments as files, checked, laid out into cells
    running     cells become runs, on this machine or on a cluster
    analysis    runs become metrics, compared with published ones
    publishing  metrics become figures, tables, a page
    demo, reproduce   the two main commands
    bench       local measurements against the peers; no scenario, no run directory
    regress     this code against the code before it, on the virtual clock

Each uses only what stands above it. Nothing here talks to the test bed but through its command
line and the run directories it leaves (results/FORMAT.md).
"""

import argparse


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m experiments.MODULE`, whose help is the module's own text."""
    return argparse.ArgumentParser(
        prog=f"python -m experiments.{module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
