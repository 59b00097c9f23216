"""Being asked to end: Ctrl-C, `kill`, a closed terminal, a machine that is taken away."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Handler = Callable[[int], None]
SAME_WISH_S = 0.5
"""What follows the first signal within this time says the same again: a scheduler reaches the processes of torchrun
itself, and once more through torchrun; a terminal that is closed hangs up, and so does its shell."""


class Stopped(KeyboardInterrupt):  # it is no error, and whoever expects Ctrl-C expects it
    """A signal asked the program to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stop_signals(handler: Handler) -> Iterator[None]:
    """Let `handler` answer every signal that asks to end; what answered before is put back.

    Outside the main thread nobody can answer signals; there it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]  # also where a shell ignores the first: it does for a script's jobs
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # else by nohup
        numbers.append(hangup)
    if hasattr(signal, "SIGBREAK"):  # what Windows sends when its console is closed
        numbers.append(signal.SIGBREAK)
    before = {number: signal.signal(number, lambda received, _: handler(received)) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)


class StopWish:
    """The first signal raises `Stopped`, or waits to be asked for while it is deferred; a second ends the process.

    Attributes:
        number: of the first signal; None until it comes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._came_at = 0.0
        self._deferred = False

    @contextmanager
    def listening(self) -> Iterator[StopWish]:
        """Answer the signals."""
        with stop_signals(self._answer):
            yield self

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let what must not be torn apart come to its end; it looks at `number` itself."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within what is deferred, what may be torn apart at any time."""
        self._deferred = False
        try:
            if self.number is not None:
                raise Stopped(self.number)
            yield
        finally:
            self._deferred = True

    def _answer(self, number: int) -> None:
        if self.number is None:
            self.number, self._came_at = number, time.monotonic()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends even what hangs where Python does not get to answer
            if not self._deferred:
                raise Stopped(number)
        elif time.monotonic() - self._came_at > SAME_WISH_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
