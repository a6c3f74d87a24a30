"""`python3 -m testbed.migration`: see migration.py."""

import sys

from testbed.migration.migration import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
