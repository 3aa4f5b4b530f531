from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simulator.workload import data
from simulator.workload.data import Indices, by_label, dirichlet, iid

LABELS = np.repeat(np.arange(10), 40)
Rule = Callable[[np.ndarray, list[float], int], list[Indices]]
RULES: dict[str, Rule] = {
    "iid": iid,
    "by-label": by_label,
    "dirichlet-0.01": lambda labels, shares, seed: dirichlet(labels, shares, seed, 0.01),
    "dirichlet-1": lambda labels, shares, seed: dirichlet(labels, shares, seed, 1.0),
}


# Data sets


def test_digits() -> None:
    found = data.digits()
    assert found.features.shape == (1797, 1, 8, 8)
    assert found.features.dtype == torch.float32
    assert (float(found.features.min()), float(found.features.max())) == (0.0, 1.0)
    assert torch.bincount(found.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert found.labels[:10].tolist() != list(range(10))  # scikit-learn's order counts through the classes
    data.digits.cache_clear()
    again = data.digits()
    assert torch.equal(found.features, again.features)
    assert torch.equal(found.labels, again.labels)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)


def write_mnist(folder: Path, images: bytes, labels: bytes, compress: bool = False) -> None:
    for name, content in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("compress", [False, True])
def test_mnist(tmp_path: Path, compress: bool) -> None:
    write_mnist(tmp_path, idx(IMAGES), idx(np.array([3, 0, 9], np.uint8)), compress)
    found = data.load("mnist", tmp_path)
    assert found.features.shape == (3, 1, 28, 28)
    assert torch.equal(found.features[:, 0], torch.from_numpy(IMAGES.astype(np.float32)) / 255)
    assert found.labels.tolist() == [3, 0, 9]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(IMAGES)[:-1], [1, 2, 3], "{i} is truncated: 2367 bytes instead of 2368"),
        (idx(IMAGES) + b"x", [1, 2, 3], "{i} is too long: 2369 bytes instead of 2368"),
        (idx(IMAGES)[:10], [1, 2, 3], "{i} is truncated: 10 bytes are less than its header of 16"),
        (b"\x89PNG", [1, 2, 3], "{i} starts with 0x89504e47, but its IDX type has 0x00000803"),
        (b"", [1, 2, 3], "{i} starts with 0x, but its IDX type has 0x00000803"),
        (idx(IMAGES), [1, 2], "{i} holds 3 images but {l} 2 labels"),
        (idx(IMAGES), [1, 2, 10], "{l} holds the label 10, but there are only 10 classes"),
        (idx(IMAGES[:, :5, :5]), [1, 2, 3], "{i} holds images of 5x5 pixels, not 28x28"),
    ],
)
def test_bad_mnist(tmp_path: Path, images: bytes, labels: list[int], message: str) -> None:
    write_mnist(tmp_path, images, idx(np.array(labels, np.uint8)))
    names = {"i": tmp_path / "train-images-idx3-ubyte", "l": tmp_path / "train-labels-idx1-ubyte"}
    with pytest.raises(ValueError) as e:
        data.mnist(tmp_path)
    assert str(e.value) == message.format(**names)


def test_missing_and_broken_mnist(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as e:
        data.mnist(tmp_path)
    assert str(e.value) == (
        f"{tmp_path} holds neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz, "
        "which MNIST consists of"
    )
    write_mnist(tmp_path, idx(IMAGES), idx(np.zeros(3, np.uint8)), compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} cannot be read: "):
        data.mnist(tmp_path)


def test_cifar10(tmp_path: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (10, 3073)).astype(np.uint8)
    records[:, 0] = np.arange(10)
    for k in range(5):
        (tmp_path / f"data_batch_{k + 1}.bin").write_bytes(records[2 * k : 2 * k + 2].tobytes())
    found = data.load("cifar10", tmp_path)
    assert found.labels.tolist() == list(range(10))
    # A record is red, green and blue, each row by row.
    assert float(found.features[4, 2, 31, 1]) == pytest.approx(records[4, 1 + 2 * 1024 + 31 * 32 + 1] / 255)


def test_bad_cifar10(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(ValueError) as e:
            data.cifar10(tmp_path)
        return str(e.value)

    assert message() == f"{tmp_path} holds no data_batch_1.bin, which CIFAR-10 (binary version) consists of"
    (tmp_path / "data_batch_1").write_bytes(b"pickle")
    assert message() == (
        f"{tmp_path} holds the Python version of CIFAR-10, whose pickles are not read; "
        "point at the binary version (cifar-10-binary.tar.gz)"
    )
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes(3072))
    assert message() == f"{path} is truncated: 3072 bytes are no multiple of 3073"
    path.write_bytes(b"\x0b" + bytes(3072))
    assert message() == f"{path} holds the label 11, but there are only 10 classes"


def test_load_errors() -> None:
    with pytest.raises(ValueError, match=r"^unknown data 'iris'; known are digits, mnist, cifar10$"):
        data.load("iris")
    with pytest.raises(ValueError, match=r"^data mnist needs folder, the place of its files$"):
        data.load("mnist")


# Shards


@pytest.mark.parametrize("rule", RULES)
@given(
    shares=st.lists(st.floats(0.2, 5.0), min_size=1, max_size=12),
    labels=st.lists(st.integers(-3, 6), min_size=300, max_size=500),
    seed=st.integers(0, 2**32),
)
def test_every_sample_has_one_owner_and_sizes_follow_shares(
    rule: str, shares: list[float], labels: list[int], seed: int
) -> None:
    shards = RULES[rule](np.array(labels), shares, seed)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    for shard, share in zip(shards, shares, strict=True):
        assert abs(len(shard) - len(labels) * share / sum(shares)) < 1
        assert len(shard) > 0


@pytest.mark.parametrize("rule", RULES)
def test_shards_depend_on_the_seed_alone(rule: str) -> None:
    first, again, other = (RULES[rule](LABELS, [1.0] * 4, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def dominant(shards: list[Indices]) -> float:
    """Mean share of a worker's most frequent class."""
    return float(np.mean([np.bincount(LABELS[s]).max() / len(s) for s in shards]))


def test_by_label_gives_few_classes() -> None:
    shards = by_label(LABELS, [1.0] * 5, 0)
    assert [sorted(set(LABELS[s].tolist())) for s in shards] == [[2 * k, 2 * k + 1] for k in range(5)]


def test_small_alpha_is_heterogeneous_and_large_alpha_is_not() -> None:
    few, some, many = (dominant(dirichlet(LABELS, [1.0] * 5, 1, a)) for a in (0.01, 0.5, 1000.0))
    assert few > 0.4 > some > 0.2 > many
    assert many == pytest.approx(dominant(iid(LABELS, [1.0] * 5, 1)), abs=0.05)


def test_shard_errors() -> None:
    with pytest.raises(ValueError) as e:
        iid(LABELS, [1.0, 1e-6, 1.0], 0)
    assert str(e.value) == (
        "shards: worker 1 would get no sample, its share of 400 samples is 0.0002; "
        "use fewer workers or a larger share"
    )
    with pytest.raises(
        ValueError, match=r"^shards: worker 3 would get no sample, its share of 3 samples is 0.75;"
    ):
        by_label(LABELS[:3], [1.0] * 4, 0)
    with pytest.raises(
        ValueError, match=r"^shards: the share of worker 1 must be finite and above 0, got -1$"
    ):
        dirichlet(LABELS, [1.0, -1.0], 0, 1.0)
    with pytest.raises(ValueError, match=r"^shards need at least one worker$"):
        iid(LABELS, [], 0)
    with pytest.raises(ValueError, match=r"^dirichlet shards: alpha must be above 0, got 0.0$"):
        dirichlet(LABELS, [1.0], 0, 0.0)
