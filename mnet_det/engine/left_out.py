"""What a run leaves out of its data: said in the log once, and listed in the run folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from mnet_det.data.faults import KINDS, Fault, count_kinds
from mnet_det.files import write_json

LINES = 10
"""Lines in the log; from then on faults are only listed, so that a bad disk does not flood it."""


class LeftOut:
    """The list `left_out.json` of a run folder; nothing is written while nothing is left out."""

    def __init__(self, out: Path, console: Console) -> None:
        self._path = out / "left_out.json"
        self._console = console
        self._faults: dict[str, Fault] = {}
        self._lines = 0

    def add(self, faults: Iterable[Fault]) -> None:
        """List the faults that are new, and say in one line what they are.

        Raises:
            MnetDetError: the list cannot be written.
        """
        new = {str(fault): fault for fault in faults if str(fault) not in self._faults}
        if not new:
            return
        self._faults |= new
        write_json(self._path, {"left_out": [fault.to_json() for fault in self._faults.values()]})
        self._lines += 1
        if self._lines <= LINES:
            counts = ", ".join(f"{KINDS[kind].title} ({count})" for kind, count in count_kinds(new.values()).items())
            self._say(f"left out: {counts}, such as {next(iter(new))}; listed in {self._path}")
        if self._lines == LINES:
            self._say(f"more that is left out is only listed in {self._path}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)
