"""Each codec against its recursion in NumPy, its wire against its formula, and the claims of its paper."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from algorithms.codecs import CODECS, Codec, Message, codec
from algorithms.codecs.codec import pack, packed_bytes, unpack, within
from algorithms.codecs.dgc import DGC
from algorithms.codecs.powersgd import PowerSGD, orthonormal
from algorithms.codecs.qsgd import QSGD
from algorithms.codecs.sign import ScaledSign
from algorithms.codecs.single import decode_bytes, encode_bytes
from algorithms.codecs.terngrad import TernGrad
from algorithms.codecs.topk import RandomK, TopK
from tests.algorithms.recursions import codecs, signs

Array = NDArray[np.float64]

GATHERED: list[Codec] = [
    QSGD(),
    QSGD(levels=1, bucket=0, scaling="max"),
    QSGD(levels=20, bucket=7),
    TernGrad(),
    TernGrad(clip=0.0),
    TopK(density=0.1),
    TopK(density=1.0, error_feedback=False),
    RandomK(density=0.2),
    RandomK(density=0.2, alike=False),
    DGC(density=0.05),
    DGC(density=0.05, stage=2, clip=0.5),
    ScaledSign(),
]


def vector(seed: int, elements: int) -> Array:
    return np.random.default_rng(seed).normal(size=elements)


def through(
    made: Codec,
    x: Array,
    message: Message,
    seed: int = 0,
    drawn: Any = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, Array]:
    """The wire of a message, and what is decoded from it."""
    given_ = torch.from_numpy(x).to(dtype)
    if drawn is None:
        drawn = made.draw(message, np.random.default_rng(seed))
    agreed = None
    if made.agrees:
        given_, agreed = made.agree(given_, message)
    wire = made.encode(given_, message, drawn, agreed)
    return wire, made.decode(wire, message, dtype, drawn, agreed).double().numpy()


# --- The format ---------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 17), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing(elements: int, width: int, seed: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**width, elements))
    wire = pack(codes, width)
    assert wire.dtype == torch.uint8
    assert len(wire) == packed_bytes(elements, width) == math.ceil(elements * width / 8)
    assert torch.equal(unpack(wire, elements, width), codes)


def test_packing_by_hand() -> None:
    # 5, 1, 7 of three bits, the lowest first: 101 100 111 0..., read as bytes from the lowest bit.
    assert pack(torch.tensor([5, 1, 7]), 3).tolist() == [0b11001101, 0b1]


@pytest.mark.parametrize("made", GATHERED, ids=repr)
@given(elements=st.integers(1, 200), seed=st.integers(0, 2**32), itemsize=st.sampled_from([4, 8]))
@settings(max_examples=25, deadline=None)
def test_a_wire_has_exactly_the_bytes_of_its_formula(
    made: Codec, elements: int, seed: int, itemsize: int
) -> None:
    message = Message(
        elements, itemsize, layers=within([(3, 4), (5,), (200, 2)], 0, elements), number=seed % 11
    )
    dtype = {4: torch.float32, 8: torch.float64}[itemsize]
    wire, decoded = through(made, vector(seed, elements), message, seed, dtype=dtype)
    assert wire.dtype == torch.uint8
    assert wire.shape == (made.wire_bytes(message),)
    assert decoded.shape == (elements,)


def test_sizes_are_those_of_the_card() -> None:
    million = Message(1_000_000)
    assert QSGD(levels=7, bucket=512).wire_bytes(million) * 8 == codecs.qsgd_bits(1_000_000, 7, 512)
    assert QSGD(levels=7).width == 4
    assert TernGrad().wire_bytes(million) == 250_000
    assert TopK(density=0.001).wire_bytes(million) == codecs.sparse_bytes(1000)
    assert DGC(density=0.001).wire_bytes(million) == codecs.sparse_bytes(1000)
    assert RandomK(density=0.001).wire_bytes(million) == 4000
    assert RandomK(density=0.001, alike=False).wire_bytes(million) == codecs.sparse_bytes(1000)
    assert ScaledSign().wire_bytes(million) == 4 + signs.pack(np.ones(1_000_000)).nbytes
    shapes = ((64, 3, 7, 7), (64,), (1000, 512), (1000,))
    layered = Message(sum(math.prod(s) for s in shapes), layers=shapes)
    flat = [(64, 147), (64,), (1000, 512), (1000,)]
    for rank in (1, 2, 4):
        assert PowerSGD(rank=rank).wire_bytes(layered) == codecs.powersgd_bytes(flat, rank)
    square = PowerSGD(rank=2, matrices="square")
    assert square.wire_bytes(million) == codecs.powersgd_bytes([(1000, 1000)], 2)


def test_theoretical_bits_stand_below_what_is_sent() -> None:
    message = Message(100_000, layers=((1000, 100),))
    for made in (*GATHERED, PowerSGD()):
        if isinstance(made, QSGD):
            continue  # Elias codes pay with few levels and long buckets only
        assert 0 < made.theoretical_bits(message) <= 8 * made.wire_bytes(message) + 32, made
    assert TernGrad().theoretical_bits(message) == math.log2(3) * 100_000 + 32
    assert ScaledSign().theoretical_bits(message) == 100_032
    assert TernGrad().theoretical_bits(Message(30, layers=((4, 5), (10,)))) == math.log2(3) * 30 + 64
    for levels in (1, 5):
        few = QSGD(levels=levels, bucket=10_000)
        assert few.theoretical_bits(Message(10_000)) == codecs.qsgd_elias_bound(10_000, levels)
    choice = math.log2(math.comb(1000, 10))
    assert TopK(density=0.01).theoretical_bits(Message(1000)) == pytest.approx(320 + choice)
    assert RandomK(density=0.01).theoretical_bits(Message(1000)) == 320


def test_a_slice_of_the_model_keeps_whole_rows() -> None:
    layers = [(4, 3), (5,), (2, 2, 2)]
    assert within(layers, 0, 25) == ((4, 3), (5,), (2, 2, 2))
    assert within(layers, 2, 10) == ((1,), (2, 3), (1,))
    assert within(layers, 4, 5) == ((1,),)
    assert within(layers, 3, 15) == ((3, 3), (3,))
    assert within(layers, 16, 23) == ((1,), (1, 2, 2), (2,))
    for low in range(25):
        for high in range(low + 1, 26):
            assert sum(math.prod(shape) for shape in within(layers, low, high)) == high - low


D, ITEM, MEMBERS = 1000, 4, 5
COSTS: list[tuple[Codec, int, int, int]] = [
    # passes over the message, vectors kept, elements that a decoded message changes
    (QSGD(), 2, 0, D),
    (TernGrad(), 1, 0, D),
    (TopK(density=0.1), 2, 1, 100),
    (TopK(density=0.1, error_feedback=False), 2, 0, 100),
    (RandomK(density=0.2), 1, 1, 200),
    (RandomK(density=0.2, alike=False), 1, 1, 200),
    (DGC(density=0.05), 3, 2, 50),
    (DGC(density=0.05, clip=0.5), 4, 2, 50),
    (ScaledSign(), 2, 1, D),
]


@pytest.mark.parametrize(("made", "passes", "kept", "changed"), COSTS, ids=repr)
def test_bytes_touched_in_closed_form(made: Codec, passes: int, kept: int, changed: int) -> None:
    """A memory is read and written; each message that is decoded changes the mean, which is written last."""
    message = Message(D, ITEM, members=MEMBERS)
    wire = made.wire_bytes(message)
    assert made.buffers == kept
    assert made.encode_bytes(message) == (passes + 2 * kept) * ITEM * D + wire
    assert made.decode_bytes(message) == MEMBERS * (wire + 2 * ITEM * changed) + ITEM * D
    assert made.agree_bytes(message) == (3 * ITEM * D if made.agrees else 0)
    assert made.agreed_elements(message) == int(made.agrees)
    assert (made.summable, made.gradients_only) == (False, isinstance(made, DGC))
    alone = encode_bytes(made, message, feedback=False)
    assert alone == made.agree_bytes(message) + passes * ITEM * D + wire
    assert encode_bytes(made, message) == alone + 2 * kept * ITEM * D
    assert decode_bytes(made, message) == wire + 2 * ITEM * changed + ITEM * D


def test_bytes_touched_by_powersgd() -> None:
    """Three products read or write the message and the factors; correction and residual take five passes."""
    made, message = PowerSGD(rank=3), Message(D + 7, ITEM, ((20, 50), (7,)))
    factors = 3 * (20 + 50) + 7
    assert (made.first_elements(message), made.second_elements(message)) == (3 * 20 + 7, 3 * 50)
    assert (made.first_bytes(message), made.second_bytes(message)) == (4 * (3 * 20 + 7), 4 * 3 * 50)
    assert made.wire_bytes(message) == ITEM * factors
    assert made.theoretical_bits(message) == 32 * factors
    product = ITEM * (D + 7 + factors)
    assert made.product_bytes(message) == product
    assert made.encode_bytes(message) == 3 * ITEM * (D + 7) + 2 * product
    assert made.decode_bytes(message) == product + 2 * ITEM * (D + 7)
    assert made.buffers == 1
    assert made.draws_alike


def test_the_matrices_of_a_message() -> None:
    message = Message(54, 8, SHAPES)
    assert PowerSGD(rank=9).found(message) == ((0, 24, 6, 4, 4), (27, 47, 2, 10, 2))
    assert PowerSGD(rank=3).found(message) == ((0, 24, 6, 4, 3), (27, 47, 2, 10, 2))
    assert PowerSGD().rest(message) == ((24, 27), (47, 54))
    # One row, or one column, is no matrix.
    flat = Message(12, 8, ((1, 4), (4, 1), (2, 2)))
    assert PowerSGD().found(flat) == ((8, 12, 2, 2, 2),)
    # Few columns bound the rank wherever the matrix lies; a kernel is a matrix also where it is 3 x 1.
    assert PowerSGD(rank=9).found(Message(51, 8, ((6, 4), (9, 3)))) == ((0, 24, 6, 4, 4), (24, 51, 9, 3, 3))
    assert PowerSGD().found(Message(13, 8, ((), (4, 3, 1)))) == ((1, 13, 4, 3, 2),)
    square = PowerSGD(rank=9, matrices="square")
    assert square.found(Message(54)) == ((0, 54, 8, 7, 7),)
    assert square.found(Message(64)) == ((0, 64, 8, 8, 8),)
    assert square.found(Message(65)) == ((0, 65, 9, 8, 8),)
    assert PowerSGD(matrices="square").found(Message(1)) == ((0, 1, 1, 1, 1),)
    assert square.rest(Message(54)) == ()


def test_a_model_without_a_matrix_is_refused() -> None:
    PowerSGD(matrices="square").check([(7,)])
    PowerSGD().check([(7,), (2, 9)])
    with pytest.raises(ValueError) as caught:
        PowerSGD().check([(7,), (1, 9)])
    assert str(caught.value) == (
        "PowerSGD: the model's layers hold no matrix; with matrices: square each message is one"
    )


def test_columns_are_orthonormal_to_the_last_bits() -> None:
    random = np.random.default_rng(14)
    # Nearly parallel columns need the second pass.
    p = torch.from_numpy(random.normal(size=(30, 1)) + 1e-9 * random.normal(size=(30, 3)))
    q = orthonormal(p)
    np.testing.assert_allclose((q.t() @ q).numpy(), np.eye(3), rtol=0, atol=1e-14)
    residual = p - q @ (q.t() @ p)
    assert float(residual.abs().max()) < 1e-14
    assert float((q.t() @ p).diagonal().min()) > 0
    gone = orthonormal(torch.cat([p[:, :1], torch.zeros(30, 1, dtype=p.dtype)], dim=1))
    assert float(gone[:, 1].abs().max()) == 0.0


def test_contractions() -> None:
    """1 / (1 + w): QSGD's w is min(d / s^2, sqrt(d) / s) of a bucket, TernGrad's the root of a layer."""
    assert QSGD(levels=4, bucket=10).contraction(Message(100)) == 1 / (1 + min(10 / 16, math.sqrt(10) / 4))
    assert QSGD(levels=1, bucket=0).contraction(Message(100)) == 1 / (1 + 10)
    assert QSGD(levels=2, bucket=0).contraction(Message(100)) == 1 / (1 + 5)
    assert QSGD(levels=50, bucket=0).contraction(Message(100)) == 1 / (1 + 100 / 2500)
    assert QSGD(levels=1, bucket=512).contraction(Message(100)) == 1 / (1 + 10)
    assert TernGrad().contraction(Message(25, layers=((16,), (9,)))) == 1 / (1 + 4)
    assert TopK().contraction(Message(25)) == ScaledSign().contraction(Message(25)) == 1


@pytest.mark.parametrize("name", CODECS)
def test_every_entry_loads_and_documents_its_parameters(name: str) -> None:
    made = codec(name)()
    assert isinstance(made, Codec)
    for field in dataclasses.fields(made):
        assert field.metadata["doc"]
    assert CODECS[name].summary
    assert CODECS[name].paper
    assert made.encode_bytes(Message(100)) > made.wire_bytes(Message(100))
    assert made.decode_bytes(Message(100)) > made.wire_bytes(Message(100))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QSGD(levels=0), "levels must be at least 1, got 0"),
        (lambda: QSGD(scaling="rms"), "scaling must be one of 'norm', 'max', got 'rms'"),  # type: ignore[arg-type]
        (lambda: TopK(density=0.0), "density must be above 0.0, got 0.0"),
        (lambda: RandomK(density=1.5), "density must be at most 1.0, got 1.5"),
        (
            lambda: DGC(stage=1, warm_up=(0.5, 2.0)),
            "a warm-up density must be above 0 and at most 1, got 2.0",
        ),
        (lambda: PowerSGD(rank=0), "rank must be at least 1, got 0"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


def test_an_unknown_codec_is_named_with_the_nearest() -> None:
    for name, near in (("quantise", "qsgd"), ("topk", "top-k")):
        with pytest.raises(ValueError) as caught:
            codec(name)
        assert str(caught.value) == f"unknown codec '{name}'; the nearest is '{near}'"


# --- QSGD ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["norm", "max"])
@pytest.mark.parametrize(("levels", "bucket"), [(1, 0), (4, 8), (7, 5), (100, 30)])
def test_qsgd_rounds_as_the_recursion(scaling: Any, levels: int, bucket: int) -> None:
    x = vector(1, 37)
    x[10:20] = 0
    uniform = np.random.default_rng(2).random(37)
    _, decoded = through(QSGD(levels, bucket, scaling), x, Message(37, 8), drawn=uniform)
    expected = codecs.qsgd(x, levels, uniform, scaling, bucket or None)
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-14)


def test_qsgd_is_unbiased_with_bounded_variance() -> None:
    x = vector(3, 64) * np.geomspace(0.2, 1, 64)
    random = np.random.default_rng(4)
    message = Message(64, 8)
    for levels in (1, 4, 16):
        made = QSGD(levels, bucket=0)
        q = np.array([through(made, x, message, drawn=random.random(64))[1] for _ in range(1500)])
        deviation = q.std(axis=0) / np.sqrt(len(q))
        assert np.all(np.abs(q.mean(axis=0) - x) <= 5 * deviation + 1e-3)
        variance = np.mean(np.sum((q - x) ** 2, axis=1)) / (x @ x)
        assert variance <= codecs.qsgd_variance_bound(64, levels)


def test_a_level_never_leaves_its_bits() -> None:
    # In fp32 the norm of one coordinate may round below its magnitude.
    random = np.random.default_rng(5)
    message = Message(4000)
    _, decoded = through(
        QSGD(bucket=1), random.normal(size=4000), message, drawn=np.zeros(4000), dtype=torch.float32
    )
    expected = np.random.default_rng(5).normal(size=4000)
    np.testing.assert_allclose(decoded, expected, rtol=1e-6, atol=0)


# --- TernGrad -----------------------------------------------------------------------------------------------


def test_the_mean_of_terngrad_has_few_values() -> None:
    members, layers = 3, ((5, 8), (10,))
    message = Message(50, 8, layers, members)
    made = TernGrad()
    x = [vector(seed, 50) for seed in range(members)]
    clipped = [made.agree(torch.from_numpy(g), message) for g in x]
    scales = torch.stack([scale for _, scale in clipped]).max(dim=0).values
    total = torch.zeros(50, dtype=torch.float64)
    for seed, (g, _) in enumerate(clipped):
        drawn = made.draw(message, np.random.default_rng(seed))
        wire = made.encode(g, message, drawn, scales)
        total += made.decode(wire, message, torch.float64, None, scales)
    for layer, part in enumerate((slice(0, 40), slice(40, 50))):
        multiples = (total[part] / scales[layer]).numpy()
        np.testing.assert_allclose(multiples, np.round(multiples), rtol=0, atol=1e-12)
        assert len(set(np.round(multiples))) <= 2 * members + 1
        expected = max(np.abs(codecs.clipped(g[part], 2.5)).max() for g in x)
        assert float(scales[layer]) == pytest.approx(expected, rel=1e-14)


# --- Error feedback -----------------------------------------------------------------------------------------


def test_the_largest_coordinates_are_sent_and_of_equal_ones_the_lower() -> None:
    x = np.array([1.0, -3.0, 3.0, 0.5, -1.0, 3.0])
    _, decoded = through(TopK(density=0.34), x, Message(6, 8))
    assert decoded.tolist() == [0, -3, 3, 0, 0, 3]
    _, decoded = through(TopK(density=0.3), x, Message(6, 8))
    assert decoded.tolist() == [0, -3, 3, 0, 0, 0]
    for seed in range(20):
        x = np.random.default_rng(seed).integers(-4, 5, 30).astype(float)
        _, decoded = through(TopK(density=0.4), x, Message(30, 8))
        np.testing.assert_array_equal(decoded, codecs.only(x, codecs.largest(x, 12)))


def test_random_coordinates_are_sent_as_they_are() -> None:
    x = vector(6, 40)
    for alike in (True, False):
        made = RandomK(density=0.3, alike=alike)
        drawn = made.draw(Message(40, 8), np.random.default_rng(7))
        assert drawn is not None
        _, decoded = through(made, x, Message(40, 8), drawn=drawn)
        assert len(set(drawn.tolist())) == 12
        np.testing.assert_array_equal(decoded, codecs.only(x, drawn))


def test_signs_are_packed_as_the_recursion_packs_them() -> None:
    for elements in (1, 31, 32, 33, 100):
        x = vector(8, elements)
        x[0] = 0.0
        wire, decoded = through(ScaledSign(), x, Message(elements, 8))
        np.testing.assert_array_equal(
            wire[8:].numpy().view(np.uint32), signs.pack(np.where(x >= 0, 1.0, -1.0))
        )
        np.testing.assert_allclose(decoded, codecs.scaled_sign(x, 0, 0), rtol=0, atol=1e-15)


LOSSY: list[Codec] = [
    TopK(density=0.1),
    RandomK(density=0.1),
    RandomK(density=0.1, alike=False),
    ScaledSign(),
    DGC(density=0.1, momentum=0.0, masking=False),
]


@pytest.mark.parametrize("made", LOSSY, ids=repr)
def test_what_is_sent_and_what_is_kept_are_all_there_was(made: Codec) -> None:
    random = np.random.default_rng(9)
    memory: tuple[torch.Tensor, ...] = ()
    sent, given_ = np.zeros(50), np.zeros(50)
    for number in range(30):
        x = random.normal(size=50)
        message = Message(50, 8, number=number)
        drawn = made.draw(message, random)
        wire, memory = made.compress(torch.from_numpy(x), memory, message, drawn)
        sent += made.decode(wire, message, torch.float64, drawn).numpy()
        given_ += x
    assert len(memory) == made.buffers
    np.testing.assert_allclose(sent + memory[-1].numpy(), given_, rtol=0, atol=1e-12)
    assert np.abs(memory[-1].numpy()).max() > 0.1


def test_the_density_of_deep_gradient_compression_falls_in_its_warm_up() -> None:
    made = DGC(density=0.001, stage=3)
    counts = [made.wire_bytes(Message(1000, number=number)) // 8 for number in range(15)]
    assert counts == [250] * 3 + [63] * 3 + [15] * 3 + [4] * 3 + [1] * 3
    assert tuple(codecs.kept(1000, density) for density in codecs.WARM_UP_DENSITIES) == (250, 63, 15, 4, 1)
    assert DGC(density=0.001).wire_bytes(Message(1000)) == 8


def test_a_gradient_of_zero_is_not_clipped() -> None:
    wire, (u, v) = DGC(density=0.5, clip=1.0).compress(torch.zeros(4), (), Message(4))
    assert not DGC(density=0.5).decode(wire, Message(4), torch.float32).any()
    assert not u.any()
    assert not v.any()


@pytest.mark.parametrize("masking", [True, False])
def test_deep_gradient_compression_follows_its_recursion(masking: bool) -> None:
    gradients = np.random.default_rng(10).normal(size=(12, 3, 20))
    run = codecs.dgc_run(
        lambda worker, x, t: gradients[t, worker],
        np.zeros(20),
        1.0,
        3,
        12,
        density=lambda t: (0.5, 0.2)[min(t // 4, 1)],
        momentum=0.9,
        threshold=2.0,
        masking=masking,
    )
    made = DGC(density=0.2, momentum=0.9, clip=2.0, masking=masking, warm_up=(0.5,), stage=4)
    for worker in range(3):
        memory: tuple[torch.Tensor, ...] = ()
        for t in range(12):
            message = Message(20, 8, members=3, number=t)
            wire, memory = made.compress(torch.from_numpy(gradients[t, worker]), memory, message)
            decoded = made.decode(wire, message, torch.float64)
            np.testing.assert_allclose(decoded.numpy(), run.sent[t, worker], rtol=0, atol=1e-13)
        np.testing.assert_allclose(memory[0].numpy(), run.momenta[worker], rtol=0, atol=1e-13)
        np.testing.assert_allclose(memory[1].numpy(), run.velocities[worker], rtol=0, atol=1e-13)


# --- PowerSGD -----------------------------------------------------------------------------------------------


class Members:
    """Workers that average factors of low rank, without a clock."""

    def __init__(self, made: PowerSGD, message: Message, members: int) -> None:
        self.made = made
        self.message = message
        self.memory: list[tuple[torch.Tensor, ...]] = [()] * members
        drawn = made.draw(message, np.random.default_rng(11))
        self.start = self.q = torch.from_numpy(drawn)

    def mean(self, inputs: list[Array]) -> Array:
        made, message = self.made, self.message
        corrected = [
            made.corrected(torch.from_numpy(x), memory) for x, memory in zip(inputs, self.memory, strict=True)
        ]
        first = sum(made.first(c, self.q, message) for c in corrected) / len(inputs)
        pairs = [made.second(c, first, message) for c in corrected]
        second = sum(product for _, product in pairs) / len(inputs)
        results = [
            made.rebuilt(c, first, p, second, message) for c, (p, _) in zip(corrected, pairs, strict=True)
        ]
        self.memory = [(error,) for _, error in results]
        self.q = made.renewed(second, self.start, message)
        return results[0][0].numpy()


SHAPES = ((6, 4), (3,), (2, 2, 5), (7,))


def test_powersgd_is_exact_for_matrices_of_its_rank() -> None:
    random = np.random.default_rng(12)
    message = Message(54, 8, SHAPES, 3)
    members = Members(PowerSGD(rank=2), message, 3)
    low = [random.normal(size=(6, 2)) @ random.normal(size=(2, 4)) for _ in range(1)]
    for _ in range(3):
        # The inputs are of full rank; their mean is not.
        noise = random.normal(size=(2, 54))
        mean = np.concatenate([low[0].ravel(), np.ones(3), np.arange(20.0), np.full(7, 2.0)])
        members.memory = [()] * 3
        output = members.mean([mean + noise[0], mean + noise[1], mean - noise[0] - noise[1]])
        np.testing.assert_allclose(output, mean, rtol=0, atol=1e-11)


@pytest.mark.parametrize("matrices", ["layers", "square"])
def test_sent_and_kept_of_powersgd_agree_summed_over_workers(matrices: Any) -> None:
    random = np.random.default_rng(13)
    members = Members(PowerSGD(rank=1, matrices=matrices), Message(54, 8, SHAPES, 3), 3)
    given_, output = np.zeros(54), np.zeros(54)
    for _ in range(10):
        inputs = list(random.normal(size=(3, 54)))
        given_ += np.sum(inputs, axis=0)
        output += 3 * members.mean(inputs)
    kept = sum(memory[0].numpy() for memory in members.memory)
    np.testing.assert_allclose(output + kept, given_, rtol=0, atol=1e-11)
    assert np.abs(kept).max() > 0.1


def test_a_factor_that_vanishes_starts_afresh() -> None:
    members = Members(PowerSGD(rank=2), Message(54, 8, SHAPES, 2), 2)
    assert not members.mean([np.zeros(54)] * 2).any()
    torch.testing.assert_close(members.q, members.start, rtol=0, atol=0)
    x = np.outer(np.arange(6.0), np.ones(4)).ravel()
    output = members.mean([np.concatenate([x, np.zeros(30)])] * 2)
    np.testing.assert_allclose(output[:24], x, rtol=0, atol=1e-12)
