from __future__ import annotations

import itertools
import re
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from simulator.devices import Device, device
from simulator.workload.cost import (
    MIB,
    MODEL_NAMES,
    CostProfile,
    GivenCost,
    LayerCost,
    ModelCost,
    StepTime,
    profile,
    resolve,
)
from simulator.workload.models import MODELS, ModelEntry, resnet18_cifar, small_cnn

ROOT = Path(__file__).parents[3]
DEVICE = Device(
    "d", peak_flops=100.0, memory_bandwidth=10.0, memory=1e9, efficiency=0.5, launch_overhead=0.25
)


def cost_of(layers: Sequence[LayerCost], **fields: object) -> ModelCost:
    """A ModelCost of these layers, by the way a user names an own profile."""
    module = types.ModuleType("stub_models")
    module.Stub = CostProfile("stub", tuple(layers))  # type: ignore[attr-defined]
    sys.modules["stub_models"] = module
    cost = ModelCost("stub_models:Stub", **{"batch": 1, **fields})  # type: ignore[arg-type]
    assert cost.parameters == sum(layer.parameters for layer in layers)
    del sys.modules["stub_models"]
    return cost


def layer(parameters: int, forward: float = 0.0, activation: float = 0.0) -> LayerCost:
    return LayerCost("layer", parameters, forward, 2 * forward, activation)


# Profiles


@pytest.mark.parametrize(
    ("name", "parameters", "gflop"),
    [
        # 2 FLOP per multiply-add: ResNet-50 has 4.09 GMAC, VGG-16 15.47, ResNet-18 (CIFAR) 0.555.
        ("resnet18-cifar", 11_173_962, 1.111),
        ("resnet50", 25_557_032, 8.178),
        ("vgg16", 138_357_544, 30.941),
        ("mlp-digits", 2_410, 2 * (64 * 32 + 32 * 10) / 1e9),
    ],
)
def test_catalogue_totals(name: str, parameters: int, gflop: float) -> None:
    found = resolve(name)
    assert found.parameters == parameters
    assert found.forward_flops / 1e9 == pytest.approx(gflop, rel=5e-4)


def test_convolution_backward_is_twice_forward_without_the_input_gradient_of_the_first() -> None:
    # Weight and input gradient each cost one forward pass; images need no gradient.
    found = resolve("resnet18-cifar")
    stem = 2 * 3 * 9 * 64 * 32 * 32
    assert found.layers[0].forward_flops == stem
    assert found.backward_flops == 2 * found.forward_flops - stem


def test_transformer_totals() -> None:
    # Per token 2·(12·12·768² + 768·50257) for the matrix products and 4·1024·768 a layer for attention.
    found = resolve("gpt2-small")
    assert found.parameters == 124_439_808
    products = 1024 * 2 * (12 * 12 * 768**2 + 768 * 50257)
    attention = 12 * 4 * 1024 * 1024 * 768
    assert found.forward_flops == products + attention
    assert found.backward_flops == 2 * found.forward_flops


def test_names_without_torch_are_the_catalogue() -> None:
    assert tuple(MODELS) == MODEL_NAMES


def test_profile_equals_real_module_and_leaves_it_untouched() -> None:
    module = resnet18_cifar().eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert profile(module, (3, 32, 32), "resnet18-cifar") == resolve("resnet18-cifar")
    assert not module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())
    assert all(p.device.type == "cpu" and p.grad is None for p in module.parameters())


def test_layers_follow_the_flat_vector() -> None:
    module = small_cnn()
    names = [entry.name for entry in profile(module, (1, 8, 8)).layers if entry.parameters]
    assert names == list(dict.fromkeys(name.rsplit(".", 1)[0] for name, _ in module.named_parameters()))


class Pair(nn.Module):
    """Two inputs (tokens and values), tied weights, a frozen table, work of its own, outputs in a dict."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.ones(4))

    def forward(self, tokens: Tensor, values: Tensor) -> dict[str, object]:
        mixed = F.linear(self.table(tokens) + values, self.table.weight.t() @ self.table.weight)
        return {"logits": self.head(F.relu(self.frozen(mixed)) * self.scale), "extras": [tokens]}


def test_shared_parameters_several_inputs_and_own_work() -> None:
    found = profile(Pair(), ((5,), (5, 4)), sample_dtype=("int64", "float32"))
    table, root = (next(e for e in found.layers if e.name == name) for name in ("table", ""))
    frozen, head = (next(e for e in found.layers if e.name == name) for name in ("frozen", "head"))
    assert found.name == "Pair"
    assert found.parameters == table.parameters == 28  # tied once, frozen not at all
    assert table.forward_flops == table.backward_flops == 0
    # Five tokens of four values: 2·5·4·4 through the product; the product itself, 2·4·7·4, once for the
    # profiling batch of two.
    assert root.forward_flops == 2 * 5 * 4 * 4 + 2 * 4 * 7 * 4 / 2
    assert root.backward_flops == 2 * root.forward_flops
    assert (frozen.forward_flops, frozen.backward_flops) == (160, 160)  # no weight gradient
    assert (head.forward_flops, head.backward_flops) == (280, 560)
    assert head.activation_bytes == 5 * 7 * 4
    assert frozen.activation_bytes == 5 * 4 * 4


def test_views_and_in_place_results_take_no_memory() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 3)), nn.Flatten())
    found = profile(module, (4,))
    assert found.activation_bytes == 6 * 4
    assert [entry.name for entry in found.layers] == ["0"]


def test_profile_errors() -> None:
    with pytest.raises(ValueError, match=r"^model 'ReLU' has no trainable parameter$"):
        profile(nn.ReLU(), (3,))
    with pytest.raises(ValueError, match=r"^model 'Linear' cannot be profiled on the meta device: .+$"):
        profile(nn.Linear(4, 2), (5,))
    with pytest.raises(ValueError, match=r"^sample_dtype names 1 inputs and sample_shape 2$"):
        profile(Pair(), ((5,), (5, 4)), sample_dtype=("int64",))


def test_user_models_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\nfrom simulator.workload.models import ModelEntry\n"
        "Net = ModelEntry(lambda: nn.Linear(8, 2), (8,), 'mine')\n"
        "def make():\n    return Net\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert ModelCost("own_models:Net", batch=4).parameters == 18
    assert ModelCost("own_models:make", batch=4).profile.forward_flops == 32
    for model, message in [
        ("own_models:Nett", "'own_models' has no 'Nett'; the nearest is 'Net'"),
        (
            "own_models:number",
            "model 'own_models:number' must be a ModelEntry, a CostProfile or a function "
            "returning one, got int",
        ),
        (
            "no_such_module:Net",
            "cannot import 'no_such_module:Net': No module named 'no_such_module'",
        ),
    ]:
        with pytest.raises(ValueError) as e:
            _ = ModelCost(model, batch=4).profile
        assert str(e.value) == message
    assert isinstance(MODELS["resnet50"], ModelEntry)


# Buckets


@given(st.lists(st.integers(1, 3 * MIB), min_size=1, max_size=30), st.sampled_from([MIB, 4 * MIB, 25 * MIB]))
def test_buckets_are_those_of_distributed_data_parallel(sizes: list[int], limit: int) -> None:
    distributed = pytest.importorskip("torch.distributed")
    assign = getattr(distributed, "_compute_bucket_assignment_by_size", None)
    if assign is None:
        pytest.skip("this torch is built without torch.distributed")
    cost = cost_of([layer(size) for size in sizes], bucket_size=limit)
    tensors = [torch.empty(size, device="meta") for size in reversed(sizes)]
    assigned, _ = assign(tensors, [MIB, limit], [False] * len(tensors))
    expected = [4 * sum(tensors[index].numel() for index in bucket) for bucket in assigned]
    assert [4 * (high - low) for low, high in cost.buckets()] == expected


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20).filter(any))
def test_buckets_partition_the_vector_backwards(sizes: list[int]) -> None:
    cost = cost_of([layer(size, 1.0) for size in sizes])
    bounds = cost.buckets()
    assert bounds[0][1] == cost.parameters
    assert bounds[-1][0] == 0
    assert all(later[1] == earlier[0] for earlier, later in itertools.pairwise(bounds))
    assert all(low < high for low, high in bounds)
    time = cost.gradient_seconds(device("ideal"), 3)
    assert len(time.backward) == len(bounds)
    assert sum(time.backward) == pytest.approx(2 * 3 * len(sizes) / 1e12)


def test_first_bucket_is_small_and_layers_stay_whole() -> None:
    # In fp32 MIB/4 parameters fill 1 MiB. Backwards: the last layer alone reaches 1 MiB, then 25 MiB.
    sizes = [10 * MIB // 4, 16 * MIB // 4, 3 * MIB // 4, 2 * MIB // 4]
    total = sum(sizes)
    cost = cost_of([layer(size) for size in sizes])
    last = total - sizes[3]
    assert cost.buckets() == ((last, total), (0, last))
    assert cost_of([layer(size) for size in sizes], precision="bf16").buckets() == ((last, total), (0, last))


def test_bucket_of_half_precision_holds_twice_the_parameters() -> None:
    sizes = [MIB // 4] * 4  # 1 MiB each in fp32, half of that in bf16
    assert len(cost_of([layer(size) for size in sizes], bucket_size=MIB).buckets()) == 4
    assert len(cost_of([layer(size) for size in sizes], bucket_size=MIB, precision="bf16").buckets()) == 2


# Seconds and bytes


def test_roofline_per_layer() -> None:
    # 50 FLOP/s reachable, 10 B/s. batch 2:
    # a: forward max(2·100/50, (4·2 + 2·1)/10) = 4; backward max(2·200/50, 2·10/10) = 8
    # b (no parameters): forward max(0, 2·30/10) = 6; backward 12. Each plus 0.25 s of overhead.
    # c: forward max(2·5/50, (4·25)/10) = 10; backward 20
    layers = [layer(2, 100.0, 1.0), layer(0, 0.0, 30.0), layer(25, 5.0, 0.0)]
    time = cost_of(layers, first_bucket=100.0).gradient_seconds(DEVICE, 2)
    assert time == StepTime(forward=20.75, backward=(20.25, 12.25 + 8.25))
    assert time.total == 20.75 + 40.75


def test_layers_without_parameters_below_the_last_bucket_still_count() -> None:
    time = cost_of([layer(0, 10.0), layer(3, 5.0)], first_bucket=1.0).gradient_seconds(device("ideal"), 1)
    assert time.backward == pytest.approx((30e-12,))


def test_precision_chooses_rate_and_bytes() -> None:
    layers = [layer(10, 1e9, 100.0)]
    h200 = device("h200")
    assert cost_of(layers, precision="bf16").parameter_bytes == 2
    fp32, tf32, bf16 = (
        cost_of(layers, precision=p).gradient_seconds(h200, 1).forward - h200.launch_overhead
        for p in ("fp32", "tf32", "bf16")
    )
    assert fp32 / tf32 == pytest.approx(494.5 / 67)
    assert fp32 / bf16 == pytest.approx(989.5 / 67)
    with pytest.raises(ValueError, match=re.escape("device 'gtx-1080-ti' has no bf16 rate")):
        cost_of(layers, precision="bf16").gradient_seconds(device("gtx-1080-ti"), 1)


def test_peak_memory_and_passes() -> None:
    cost = cost_of([layer(10, 0.0, 100.0)])
    assert cost.peak_memory(3, 2) == (2 + 2) * 10 * 4 + 3 * 100
    assert cost_of([layer(10, 0.0, 100.0)], precision="fp16").peak_memory(3, 2) == 4 * 10 * 2 + 3 * 50
    assert cost.pass_seconds(DEVICE, 25.0) == 2.5


def test_given_cost() -> None:
    cost = GivenCost(parameters=10, batch=4, gradient=0.3, forward_share=0.25, bucket_count=3, update=0.6)
    assert cost.buckets() == ((6, 10), (3, 6), (0, 3))
    time = cost.gradient_seconds(DEVICE, 8)
    assert time.forward == pytest.approx(0.15)
    assert time.backward == pytest.approx((0.18, 0.135, 0.135))
    assert cost.pass_seconds(DEVICE, 3 * 10 * 4) == 0.6
    assert cost.pass_seconds(DEVICE, 60) == 0.3
    assert cost.peak_memory(4, 1) == 3 * 10 * 4
    assert GivenCost(parameters=10, batch=1, gradient=1.0).pass_seconds(DEVICE, 1e9) == 0.0


@pytest.mark.parametrize("seconds", [1.0, 1.5, 2.0, 0.9, 1.0373])
@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.5, 0.7])
def test_one_given_bucket_loses_no_time(seconds: float, share: float) -> None:
    cost = GivenCost(parameters=10, batch=32, gradient=seconds, forward_share=share)
    assert cost.gradient_seconds(DEVICE, 32).total == seconds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parameters": 0}, "given cost: parameters must be at least 1, got 0"),
        ({"batch": 0}, "given cost: batch must be at least 1, got 0"),
        ({"gradient": -1.0}, "given cost: gradient must be finite and at least 0 s, got -1.0"),
        ({"forward_share": 1.0}, "given cost: forward_share must be in [0, 1), got 1.0"),
        ({"bucket_count": 9}, "given cost: bucket_count must be between 1 and the 8 parameters, got 9"),
        ({"update": -1.0}, "given cost: update must be finite and at least 0 s, got -1.0"),
    ],
)
def test_bad_given_cost(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GivenCost(**({"parameters": 8, "batch": 2, "gradient": 1.0} | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "resnet-50"}, "unknown model 'resnet-50'; the nearest is 'resnet50'"),
        ({"model": "xyz"}, "unknown model 'xyz'; known are " + ", ".join(MODEL_NAMES)),
        ({"precision": "fp8"}, "unknown precision 'fp8'; the nearest is 'fp32'"),
        ({"batch": 0}, "cost of 'vgg16': batch must be at least 1, got 0"),
        ({"bucket_size": 0.0}, "cost of 'vgg16': bucket_size must be above 0, got 0.0"),
        ({"first_bucket": -1.0}, "cost of 'vgg16': first_bucket must be above 0, got -1.0"),
    ],
)
def test_bad_model_cost(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as e:
        ModelCost(**({"model": "vgg16", "batch": 2} | values))  # type: ignore[arg-type]
    assert str(e.value) == message


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, simulator.devices, simulator.workload.cost, simulator.workload.kinds\n"
        "simulator.workload.ModelCost('resnet50', batch=32); simulator.workload.Mlp()\n"
        "print(sorted({'torch', 'sklearn', 'scipy', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
