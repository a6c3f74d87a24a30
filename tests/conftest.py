"""What every test may rely on."""

import os
import signal
import sys
from pathlib import Path

# A job that a shell starts in the background ignores SIGINT, and so would all that is started here:
# then nothing that a test interrupts would end.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The command `relocator` is found; last, so that `python3` stays what it is.
os.environ["PATH"] += f"{os.pathsep}{Path(sys.executable).parent}"
