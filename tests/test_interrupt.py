"""Signals that ask to end, in processes of their own: a test that fails would end the tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process there cannot be sent these signals")

LISTEN = """
import signal, time
from mnet_det.interrupt import SAME_WISH_S, Stopped, StopWish

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has set to be ignored, for the tests

def come(number):
    signal.raise_signal(number)

with StopWish().listening() as wish:
    try:
        {0}
    except Stopped as stopped:
        print("stopped by", stopped.number)
"""


def listen(what: str) -> tuple[int, str]:
    """Exit status of a process that listens (minus the signal that ended it), and what it said."""
    ended = subprocess.run(
        [sys.executable, "-c", LISTEN.format(what.replace("\n", "\n        "))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not ended.stderr
    return ended.returncode, ended.stdout.strip()


@pytest.mark.parametrize(("name", "number"), [("SIGINT", 2), ("SIGTERM", 15), ("SIGHUP", 1)])
def test_the_first_signal_stops_at_once_what_is_not_deferred(name: str, number: int) -> None:
    assert listen(f"come(signal.{name})") == (0, f"stopped by {number}")


def test_what_is_deferred_looks_for_itself() -> None:
    assert listen("with wish.deferred():\n    come(15)\n    print(wish.number)") == (0, "15")


def test_within_what_is_deferred_some_may_be_torn_apart() -> None:
    script = (
        "with wish.deferred():\n    come(15)\n    print(wish.number)\n    with wish.at_once():\n        print('torn')"
    )
    assert listen(script) == (0, "15\nstopped by 15")


@pytest.mark.parametrize("number", [1, 15])
def test_the_same_wish_may_come_twice(number: int) -> None:
    """A scheduler signals torchrun's processes, and so does torchrun: the second killed the run before it had saved."""
    script = f"with wish.deferred():\n    come({number})\n    come({number})\n    print('saved')"
    assert listen(script) == (0, "saved")


@pytest.mark.parametrize(("first", "second"), [(15, 15), (2, 15), (15, 1)])
def test_a_second_wish_ends_the_process(first: int, second: int) -> None:
    wait = "time.sleep(SAME_WISH_S + 0.1)"
    script = f"with wish.deferred():\n    come({first})\n    {wait}\n    come({second})\n    print('deaf')"
    assert listen(script) == (-second, "")


@pytest.mark.parametrize("first", [2, 15])
def test_a_second_ctrl_c_ends_the_process_at_once(first: int) -> None:
    assert listen(f"with wish.deferred():\n    come({first})\n    come(2)\n    print('deaf')") == (-2, "")


def test_what_answered_before_answers_again() -> None:
    script = (
        "with wish.deferred():\n    come(15)\n"
        "wish.__init__()\nbefore = [signal.getsignal(number) for number in (2, 15)]\n"
        "with StopWish().listening() as inner, inner.deferred():\n    come(15)\n"
        "print(before == [signal.getsignal(number) for number in (2, 15)])"
    )
    assert listen(script) == (0, "True")
