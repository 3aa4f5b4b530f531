"""The batches of a user's loader, epoch after epoch, from any position; and what is random in a process.

The generators of torch, NumPy and Python are seeded from (seed, rank, epoch) when an epoch begins, and a
sampler that has ``set_epoch`` is told the epoch. So the order of an epoch depends on nothing that happened
before, and a position is found again by reading an epoch's batches up to it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from simulator.parts import BadInput


@dataclass(frozen=True)
class Randomness:
    """The states of the generators that a training script may draw from.

    Attributes
    ----------
    cpu, gpu
        Of torch on the CPU, and on the model's device if that is a GPU.
    numpy, python
        Of NumPy's and Python's own.
    """

    cpu: Tensor
    gpu: Tensor | None
    numpy: tuple[Any, ...]
    python: tuple[Any, ...]

    @classmethod
    def now(cls, device: torch.device) -> Randomness:
        """Return the states as they are."""
        name, keys, *rest = np.random.get_state()  # noqa: NPY002 - it is the state of the user's draws
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            (name, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest),
            random.getstate(),
        )

    def restore(self, device: torch.device) -> None:
        """Put the states back."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.gpu, device)
        name, keys, *rest = self.numpy
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002 - as above
        random.setstate(self.python)


def seed_all(seed: int, rank: int, epoch: int) -> int:
    """Seed every generator of this process for an epoch and return the number that torch's got."""
    words = np.random.SeedSequence([seed, rank, epoch]).generate_state(2)
    number = int(words[0])
    torch.manual_seed(number)
    np.random.seed(int(words[1]))  # noqa: NPY002 - the user's code may draw from it
    random.seed(number)
    return number


class Feed:
    """Gives one batch after another.

    Parameters
    ----------
    loader
        Iterated anew in every epoch.
    seed, rank
        Name the random numbers.

    Attributes
    ----------
    epoch, batch
        The position: epochs ended, and batches taken of the one under way.
    """

    def __init__(self, loader: Iterable[Any], seed: int, rank: int) -> None:
        self._loader = loader
        self._seed = seed
        self._rank = rank
        self.epoch = 0
        self.batch = 0
        self._batches: Iterator[Any] | None = None
        self._after_seeking: tuple[Randomness, torch.device] | None = None

    def next(self) -> Any:
        """Return the next batch.

        Raises
        ------
        BadInput
            The loader gives no batch at all.
        """
        if self._batches is None:
            self._begin()
        assert self._batches is not None
        for batch in self._batches:
            self.batch += 1
            return batch
        if self.batch == 0:
            raise BadInput("loader", f"rank {self._rank} gets no batch from it; it has too few samples")
        self.epoch, self.batch, self._batches = self.epoch + 1, 0, None
        return self.next()

    def seek(self, epoch: int, batch: int, random: Randomness, device: torch.device) -> None:
        """Go on at a position with these random numbers, where the next batch is asked for."""
        self.close()
        self.epoch, self.batch = epoch, batch
        self._after_seeking = random, device

    def close(self) -> None:
        """Let the loader's workers end."""
        self._batches = None

    def _begin(self) -> None:
        """Begin the epoch, and skip what was taken of it."""
        number = seed_all(self._seed, self._rank, self.epoch)
        generator = getattr(self._loader, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)
        for key in ("sampler", "batch_sampler"):
            set_epoch = getattr(getattr(self._loader, key, None), "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epoch)
        self._batches = iter(self._loader)
        for _ in range(self.batch):
            next(self._batches, None)
        if self._after_seeking is not None:
            state, device = self._after_seeking
            state.restore(device)
            self._after_seeking = None


class EndsWithRank:
    """Begins a loader's worker: it ends when its rank has ended, however that came about.

    torch's own watch looks at the process that forked the worker, which lives as long as the worker does.

    Parameters
    ----------
    begin
        What the loader's author does in each worker.
    """

    def __init__(self, begin: Callable[[int], None] | None) -> None:
        self._begin = begin

    def __call__(self, number: int) -> None:
        """Begin the worker of a number."""
        threading.Thread(target=_end_with_rank, daemon=True).start()
        if self._begin is not None:
            self._begin(number)


def _end_with_rank() -> None:
    rank = multiprocessing.parent_process()
    if rank is not None:
        rank.join()
        os._exit(1)


def shared_out(loader: Iterable[Any], rank: int, world_size: int, seed: int) -> Iterable[Any]:
    """Return a loader of this rank's part of the samples.

    A plain ``DataLoader(dataset, …)`` gets a ``DistributedSampler``. One with a sampler of its own, over an
    iterable dataset, or any other iterable is taken to give each rank its own part already.
    """
    if world_size == 1 or not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    if type(loader.sampler) not in (RandomSampler, SequentialSampler) or loader.batch_size is None:
        return loader
    sampler: DistributedSampler[Any] = DistributedSampler(
        loader.dataset,
        world_size,
        rank,
        shuffle=isinstance(loader.sampler, RandomSampler),
        seed=seed,
        drop_last=loader.drop_last,
    )
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=EndsWithRank(loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor,
    )
