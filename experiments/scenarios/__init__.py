"""Experiments as files: what is varied, what stays, what a run needs.

    *.toml      the scenarios; common/base.toml is what all begin from
    schema      keys, their values, how a wrong one is refused             -> ScenarioError
    scenario    one file, read and checked                                 -> Scenario
    cells       scenarios x axes x systems x seeds, each one run           -> Cell

In: TOML. Out: cells, each with the command line of one run. Nothing is run or written.
"""
