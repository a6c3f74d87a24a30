"""What every test may rely on."""

import signal

# A job that a shell starts in the background ignores SIGINT, and so would all that is started here:
# then nothing that a test interrupts would end.
signal.signal(signal.SIGINT, signal.default_int_handler)
