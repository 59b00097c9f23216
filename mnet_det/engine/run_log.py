"""The numbers of a run: one row an epoch in `metrics.csv`, and the same as TensorBoard curves."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard.writer import SummaryWriter

from mnet_det.files import whole_file

Row = dict[str, float | None]


class RunLog:
    """Write rows as they come. A resumed run goes on after the rows of the epochs that it keeps.

    Curves that cannot be written are no reason to stop: the same numbers are in the rows.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_epoch: int = 0,
        enabled: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Go on after the first epochs; of several processes, all but one are not `enabled` and write nothing."""
        self._enabled = enabled
        self._curves: SummaryWriter | None = None
        if not enabled:
            return
        self._say = say
        self._path = folder / "metrics.csv"
        self._rows = [row for row in _read_rows(self._path) if int(row["epoch"]) <= first_epoch]
        with self._curves_may_fail():
            # purge_step hides the points of epochs that are trained again
            purged = first_epoch + 1 if first_epoch else None
            self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=purged)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._curves_may_fail():
            if self._curves is not None:
                self._curves.close()

    def write(self, epoch: int, row: Row) -> None:
        """Add the numbers of one epoch (counted from 1); None leaves the cell empty."""
        if not self._enabled:
            return
        self._rows.append({"epoch": str(epoch)} | {k: "" if v is None else f"{v:.6g}" for k, v in row.items()})
        columns = list(dict.fromkeys(name for written in self._rows for name in written))
        with whole_file(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        with self._curves_may_fail():
            if self._curves is not None:
                for name, value in row.items():
                    if value is not None:
                        self._curves.add_scalar(name, value, epoch)
                self._curves.flush()

    @contextmanager
    def _curves_may_fail(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._curves = None
            self._say(f"no more TensorBoard curves, which cannot be written ({error.strerror or error})")


def _read_rows(path: Path) -> list[Mapping[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
