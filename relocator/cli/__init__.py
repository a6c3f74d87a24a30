"""The command line: one file a command, each with `add` (its parser) and `run`."""
