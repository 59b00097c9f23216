"""Training in several processes, as torchrun starts them: who is who, and what they tell each other."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from textwrap import shorten
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mnet_det.errors import MnetDetError

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: while the first one scores, decodes a cache or fetches weights."""
MEETING_S = 0.02
"""Between two looks at who is there."""
CHOSEN = "chosen"
"""What `World.once` keeps goes by this name in torchrun's store."""


@dataclass(frozen=True)
class World:
    """The processes of a run. They hold the same weights; each sees its own part of every batch.

    Attributes:
        rank: of this process, 0…size-1. The first one prints, writes and scores.
        size: how many there are.
        local_rank: of this process on its machine, which is the number of its GPU.
        store: what torchrun keeps while it starts processes again; None without torchrun.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: dist.Store | None = None  # type: ignore[name-defined]

    @property
    def is_first(self) -> bool:
        """Whether this process prints, writes and scores."""
        return self.rank == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a float tensor over all processes."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of ranks, on every process; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def collect(self, value: Any) -> list[Any]:
        """As `gather`, but the first process alone gets it, and the others nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.is_first else []
        dist.gather_object(value, values or None)
        return values

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Bring tensors to what the first process has in them."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            self.gather(None)

    def share(self, value: Any) -> Any:
        """What the first process has, on every process; anything that can be pickled."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def once(self, choose: Callable[[], Any]) -> tuple[Any, bool]:
        """What this process chooses (anything that JSON can hold), for as long as torchrun lives.

        How often torchrun says that it started a process would not do: where one dies on another machine, it says that
        it has not.

        Returns:
            The choice, and whether it was made by a process in whose place torchrun started this one.
        """
        if self.store is None:
            return choose(), False
        if self.store.check([CHOSEN]):
            return json.loads(self.store.get(CHOSEN)), True
        chosen = choose()
        self.store.set(CHOSEN, json.dumps(chosen))
        return chosen, False


ALONE = World()


@contextmanager
def open_world() -> Iterator[World]:
    """The processes that torchrun started with this one, or this one alone.

    Raises:
        MnetDetError: the others cannot be met, or one of them has ended.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if os.environ.get("WORLD_SIZE", "1") == "1" and not by_torchrun:
        yield ALONE
        return
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
        if size > 1:
            # Tensors of GPUs go through NCCL; what is pickled, and all of it without GPUs, through gloo.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            own_part = dist.PrefixStore(_meet(store, rank=rank, size=size), store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=own_part, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise MnetDetError(
            f"the other processes of this run cannot be met ({_reason(error)}); start them with torchrun, or this one "
            "without WORLD_SIZE"
        ) from error
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        yield World(rank=rank, size=size, local_rank=local_rank, store=store if by_torchrun else None)
    except RuntimeError as error:
        if not any(mark in str(error).lower() for mark in ("gloo", "nccl", "connection")):
            raise
        raise MnetDetError(f"another process of this run has ended ({_reason(error)}); see what it said") from error
    if size > 1:  # only where all is well, since NCCL waits for all to do the same; else the end of the process does it
        dist.destroy_process_group()


def _meet(store: dist.Store, *, rank: int, size: int) -> str:  # type: ignore[name-defined]
    """A word that all processes of this start know, and none of an earlier one did.

    torchrun keeps its store when it starts processes again, and in it the addresses at which those that died had
    listened: who is quick would wait for one of them. How often it did so is no such word, since each machine counts
    for itself.
    """
    mine = uuid.uuid4().hex
    store.set(f"here/{rank}", mine)
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < deadline:
        places = [f"here/{other}" for other in range(size)]
        if rank == 0 and store.check(places):
            called = "".join(store.get(place).decode() for place in places)  # some may be of an earlier start
            store.set("called", called)
        called = store.get("called").decode() if store.check(["called"]) else ""
        if mine in called:
            word = hashlib.sha256(called.encode()).hexdigest()
            store.set(f"{word}/{rank}", "heard")
            if store.check([f"{word}/{other}" for other in range(size)]):
                return word
        time.sleep(MEETING_S)
    raise MnetDetError(f"only some of {size} processes came within {PATIENCE}; see what torchrun says")


def _reason(error: Exception) -> str:
    line = str(error).partition("\n")[0]
    return shorten(re.sub(r"^\[.*?\] ", "", line), 120, placeholder=" …")  # gloo begins with where it was built
