"""Real data, and its division among workers.

Data sets: the 8x8 digits that scikit-learn ships (Alpaydin and Kaynak, UCI 1998), and MNIST and CIFAR-10
from files that the user points at. MNIST is read from IDX files, plain or gzipped; CIFAR-10 from its binary
version, because the Python version consists of pickles, which can run code when they are read. Pixels are
scaled to [0, 1].

Shards: every rule gives each sample to exactly one worker, in sizes proportional to the workers' shares
(largest remainders), so that Σ (n_i / n) f_i = f whatever the rule.
"""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Seed = int | np.random.SeedSequence

SAMPLE_SHAPES: dict[str, tuple[int, int, int]] = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}
"""Shape (channels, height, width) of a sample of each named data set, known without loading it."""
CLASSES = 10
"""Number of classes of each named data set."""

_DIGITS_SEED = 20260
_CIFAR_FILES = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_CIFAR_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Dataset:
    """Samples with labels.

    Parameters
    ----------
    features : torch.Tensor
        Shape (samples, channels, height, width), float32, in [0, 1].
    labels : torch.Tensor
        Shape (samples,), int64.
    name, source : str
        What it is and where it comes from.
    """

    features: Tensor
    labels: Tensor
    name: str
    source: str


@functools.lru_cache(maxsize=1)
def digits() -> Dataset:
    """The 1,797 digits of 8x8 pixels that scikit-learn ships, in a fixed shuffled order.

    The tensors are shared between callers: treat them as read-only.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_DIGITS_SEED).permutation(len(labels))
    # Multiplying makes a tensor in torch's own, always equally aligned memory.
    features = torch.from_numpy(images[order].astype(np.float32)).reshape(-1, 1, 8, 8) * (1 / 16)
    return Dataset(
        features,
        torch.from_numpy(labels[order].astype(np.int64)),
        "digits",
        "scikit-learn load_digits: test set of the UCI optical recognition of handwritten digits",
    )


def mnist(folder: str | Path) -> Dataset:
    """The 60,000 training images of MNIST, from IDX files.

    Parameters
    ----------
    folder : str or Path
        Holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, each plain or with `.gz`.

    Raises
    ------
    ValueError
        If a file is missing, truncated or not what its name says.
    """
    images_path = _idx_path(Path(folder), "train-images-idx3-ubyte")
    labels_path = _idx_path(Path(folder), "train-labels-idx1-ubyte")
    images = _read_idx(images_path, dimensions=3)
    labels = _read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise ValueError(f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels")
    if images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_path} holds images of {images.shape[1]}x{images.shape[2]} pixels, not 28x28"
        )
    _check_labels(labels_path, labels)
    return Dataset(_scaled(images[:, None]), _as_labels(labels), "mnist", f"MNIST, IDX files in {folder}")


def cifar10(folder: str | Path) -> Dataset:
    """The 50,000 training images of CIFAR-10, from the binary version.

    Parameters
    ----------
    folder : str or Path
        Holds `data_batch_1.bin` to `data_batch_5.bin`.

    Raises
    ------
    ValueError
        If a file is missing or truncated, or the folder holds the Python version.
    """
    place = Path(folder)
    records = np.concatenate([_read_cifar(place, name) for name in _CIFAR_FILES])
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    source = f"CIFAR-10, binary version in {folder}"
    return Dataset(_scaled(images), _as_labels(records[:, 0]), "cifar10", source)


def load(name: str, folder: str | Path | None = None) -> Dataset:
    """A data set by its name in a scenario.

    Raises
    ------
    ValueError
        For an unknown name, a missing folder, or unreadable files.
    """
    if name == "digits":
        return digits()
    if name not in SAMPLE_SHAPES:
        raise ValueError(f"unknown data {name!r}; known are {', '.join(SAMPLE_SHAPES)}")
    if folder is None:
        raise ValueError(f"data {name} needs folder, the place of its files")
    return mnist(folder) if name == "mnist" else cifar10(folder)


def iid(labels: NDArray[Any], shares: Sequence[float], seed: Seed) -> list[Indices]:
    """Shards drawn at random, blind to the labels.

    Parameters
    ----------
    labels : array of shape (samples,)
        Only its length counts.
    shares : sequence of float
        One per worker, all above 0; sizes are proportional to them.
    seed : int or numpy.random.SeedSequence
        Fixes the draw.

    Returns
    -------
    list of int64 arrays
        Sample numbers of each worker, sorted; every sample once.

    Raises
    ------
    ValueError
        If a worker would get no sample; the message names it.
    """
    order = np.random.default_rng(seed).permutation(len(labels)).astype(np.int64)
    return _cut(order, _sizes(len(labels), shares))


def by_label(labels: NDArray[Any], shares: Sequence[float], seed: Seed) -> list[Indices]:
    """Shards of neighbouring labels: sorted by label, then cut, so that a worker sees few classes.

    Parameters, result and errors are those of `iid`; within a label the order is random.
    """
    order = np.random.default_rng(seed).permutation(len(labels)).astype(np.int64)
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    return _cut(order, _sizes(len(labels), shares))


def dirichlet(labels: NDArray[Any], shares: Sequence[float], seed: Seed, alpha: float) -> list[Indices]:
    """Shards whose class proportions are drawn from a Dirichlet distribution (Hsu, Qi and Brown, 2019).

    Each worker draws its class proportions from Dir(alpha · C · class frequencies), C being the number of
    classes: for balanced classes Dir(alpha, ..., alpha). Workers then take their samples in a random order;
    a class that is used up drops out of the proportions of those who come later. Sizes stay proportional
    to the shares. Large alpha approaches `iid`, small alpha one class per worker.

    Parameters, result and errors are those of `iid`.
    """
    if not alpha > 0:
        raise ValueError(f"dirichlet shards: alpha must be above 0, got {alpha}")
    generator = np.random.default_rng(seed)
    sizes = _sizes(len(labels), shares)
    _, classes = np.unique(np.asarray(labels), return_inverse=True)
    order = generator.permutation(len(classes)).astype(np.int64)
    by_class = [order[classes[order] == label] for label in range(int(classes.max()) + 1)]
    left = np.array([len(members) for members in by_class])
    frequencies = left / left.sum()
    proportions = generator.dirichlet(alpha * len(left) * frequencies, size=len(sizes))
    shards: list[Indices] = [np.empty(0, np.int64)] * len(sizes)
    for worker in generator.permutation(len(sizes)):
        counts = _class_counts(int(sizes[worker]), proportions[worker], left, generator)
        taken = [members[rest - n : rest] for members, rest, n in zip(by_class, left, counts, strict=True)]
        shards[worker] = np.sort(np.concatenate(taken))
        left = left - counts
    return shards


def _class_counts(
    size: int, proportions: NDArray[np.float64], left: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """How many samples of each class make up one shard, none more than is left."""
    counts = np.zeros_like(left)
    while (missing := size - int(counts.sum())) > 0:
        available = left - counts
        wanted = np.where(available > 0, proportions, 0.0)
        # Proportions can underflow to zero for small alpha; then the remaining samples decide.
        weights = wanted if wanted.sum() > 0 else available.astype(np.float64)
        counts += np.minimum(generator.multinomial(missing, weights / weights.sum()), available)
    return counts


def _sizes(total: int, shares: Sequence[float]) -> NDArray[np.int64]:
    """Whole numbers proportional to the shares that add up to `total` (largest remainders)."""
    if len(shares) == 0:
        raise ValueError("shards need at least one worker")
    weights = np.asarray(shares, dtype=np.float64)
    for worker, share in enumerate(weights):
        if not 0 < share < np.inf:
            raise ValueError(
                f"shards: the share of worker {worker} must be finite and above 0, got {share:g}"
            )
    quotas = total * weights / weights.sum()
    sizes: NDArray[np.int64] = np.floor(quotas).astype(np.int64)
    order = np.argsort(sizes - quotas, kind="stable")
    sizes[order[: total - int(sizes.sum())]] += 1
    for worker, size in enumerate(sizes):
        if size == 0:
            raise ValueError(
                f"shards: worker {worker} would get no sample, its share of {total} samples is "
                f"{quotas[worker]:.3g}; use fewer workers or a larger share"
            )
    return sizes


def _cut(order: Indices, sizes: NDArray[np.int64]) -> list[Indices]:
    """Consecutive pieces of the given sizes, each sorted."""
    return [np.sort(piece) for piece in np.split(order, np.cumsum(sizes)[:-1])]


def _scaled(pixels: NDArray[np.uint8]) -> Tensor:
    """Bytes 0..255 as float32 in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32)).div(255.0)


def _as_labels(labels: NDArray[np.uint8]) -> Tensor:
    """Labels as int64."""
    return torch.from_numpy(labels.astype(np.int64))


def _check_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    """Refuse labels that are no class."""
    if len(labels) and int(labels.max()) >= CLASSES:
        raise ValueError(f"{path} holds the label {int(labels.max())}, but there are only {CLASSES} classes")


def _idx_path(folder: Path, name: str) -> Path:
    """The plain or gzipped file of this name."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{folder} holds neither {name} nor {name}.gz, which MNIST consists of")


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: magic 0, 0, 8, dimensions; sizes as big-endian int32; data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise ValueError(f"{path} starts with 0x{content[:4].hex()}, but its IDX type has 0x{magic.hex()}")
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path} is truncated: {len(content)} bytes are less than its header of {header}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=dimensions, offset=4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        kind = "truncated" if len(content) < expected else "too long"
        raise ValueError(f"{path} is {kind}: {len(content)} bytes instead of {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_cifar(folder: Path, name: str) -> NDArray[np.uint8]:
    """Records (label, 3072 pixels) of one binary batch."""
    path = folder / name
    if not path.is_file():
        if (folder / Path(name).stem).is_file():
            raise ValueError(
                f"{folder} holds the Python version of CIFAR-10, whose pickles are not read; "
                "point at the binary version (cifar-10-binary.tar.gz)"
            )
        raise ValueError(f"{folder} holds no {name}, which CIFAR-10 (binary version) consists of")
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(content) == 0 or len(content) % _CIFAR_RECORD:
        raise ValueError(f"{path} is truncated: {len(content)} bytes are no multiple of {_CIFAR_RECORD}")
    records = content.reshape(-1, _CIFAR_RECORD)
    _check_labels(path, records[:, 0])
    return records
