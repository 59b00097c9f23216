"""What a run leaves out of its data: said in the log once, and listed in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from mnet_det.data.faults import KINDS, Fault, count_kinds
from mnet_det.engine.distributed import ALONE, World
from mnet_det.files import write_json

LINES = 10
"""Lines in the log; from then on faults are only listed, so that a bad disk does not flood it."""


class LeftOut:
    """The list `left_out.json` of a run folder; nothing is written while nothing is left out.

    Of several processes the first one writes; it is told what the others met by `exchange`.
    """

    def __init__(self, out: Path, console: Console, *, resumed: bool = False, world: World = ALONE) -> None:
        """Begin the list, or go on with that of a run that is resumed."""
        self._path = out / "left_out.json"
        self._console = console
        self._world = world
        self._met: list[Fault] = []
        self._listed = _read(self._path) if resumed else {}
        self._lines = 0
        if world.is_first and not resumed:
            with suppress(OSError):
                self._path.unlink()  # of a run that ended before its first checkpoint

    def add(self, faults: Iterable[Fault]) -> None:
        """List the faults that are new, and say in one line what they are.

        Raises:
            MnetDetError: the list cannot be written.
        """
        if not self._world.is_first:
            self._met += faults
            return
        new = {str(fault): fault for fault in faults if str(fault) not in self._listed}
        if not new:
            return
        self._listed |= {place: fault.to_json() for place, fault in new.items()}
        write_json(self._path, {"left_out": list(self._listed.values())})
        self._lines += 1
        if self._lines <= LINES:
            counts = ", ".join(f"{KINDS[kind].title} ({count})" for kind, count in count_kinds(new.values()).items())
            self._say(f"left out: {counts}, such as {next(iter(new))}; listed in {self._path}")
        if self._lines == LINES:
            self._say(f"more that is left out is only listed in {self._path}")

    def exchange(self) -> None:
        """List what the other processes met; all of them call this together."""
        met, self._met = self._world.collect(self._met), []
        self.add(fault for faults in met for fault in faults)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier part of the run listed; nothing where there is no such list."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["left_out"]
        return {f"{fault['where']}: {fault['message']}": fault for fault in listed}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
