"""Which signals end a process, and when none does."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from relocator.cli.movepage import unheard

ROOT = Path(__file__).parents[2]


def said(code: str, *before: str) -> list[str]:
    """What a process says that runs `code`."""
    argv = [*before, sys.executable, "-c", f"import os, signal, subprocess\n{code}"]
    done = subprocess.run(
        argv,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.split()


def test_a_hangup_that_is_ignored_from_the_beginning_stays_so() -> None:
    code = "from relocator import signals\nprint(*sorted(signals.ending()))"
    every = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert set(map(int, said(code))) == every
    assert set(map(int, said(code, "nohup"))) == every - {signal.SIGHUP}


def test_what_may_not_be_interrupted_is_not_but_what_it_starts_is() -> None:
    code = """
from relocator.signals import uninterrupted
with uninterrupted():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    started = subprocess.Popen(["sleep", "60"])
    started.terminate()
    print(started.wait())
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("afterwards")
"""
    assert said(code) == [str(-signal.SIGTERM), "afterwards"]


def test_what_is_an_interruption_within_a_block_is_none_after_it() -> None:
    code = """
from relocator.signals import interrupting
before = signal.getsignal(signal.SIGTERM)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    try:
        with interrupting():
            os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        print(number.name)
print(signal.getsignal(signal.SIGTERM) == before)
"""
    assert said(code) == ["SIGINT", "SIGTERM", "SIGHUP", "True"]


def test_an_interruption_while_nobody_hears_what_is_said_is_one() -> None:
    with pytest.raises(KeyboardInterrupt), unheard():
        try:
            raise KeyboardInterrupt
        finally:
            raise BrokenPipeError
    with unheard():
        raise BrokenPipeError


def test_an_interruption_that_python_drops_comes_again() -> None:
    code = """
import time, weakref
from relocator import signals
signals.interrupt()
class Thing: pass
thing = Thing()
seen = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
try:
    del thing  # nothing is raised here: it is in the callback
    print("dropped")
    time.sleep(60)
except KeyboardInterrupt:
    print("heard")
"""
    assert said(code) == ["dropped", "heard"]
