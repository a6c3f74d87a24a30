"""`relocator COMMAND`: the command carried out, and errors turned into exit statuses.

Status 0: done. 1: it failed, with one line that says why. 2: the command line is wrong.
130: interrupted.
"""

import sys
from collections.abc import Sequence

from relocator.cli.parser import COMMANDS, build_parser
from relocator.errors import ConfigError, RelocatorError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    command = words[0] if words and words[0] in COMMANDS else None
    options = build_parser(command).parse_args(words)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print(f"relocator: {error}", file=sys.stderr)
        return 2
    except (RelocatorError, OSError) as error:
        print(f"relocator: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
