"""One worker in this process: against torch's own loop, what is refused, resuming, what comes back."""

from __future__ import annotations

import copy
import io
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from algorithms import ALGORITHMS
from simulator.execution.training import state as states
from simulator.execution.training.feed import shared_out
from simulator.execution.training.source import _Watch
from simulator.execution.training.trainer import Trainer
from simulator.execution.training.worker import ModuleSide
from simulator.faults import WorkerFailed
from simulator.parts import BadInput
from simulator.run import Run

Batch = tuple[Tensor, Tensor]


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3), nn.Linear(3, 3)
    )


def loss(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(inputs)
    return nn.functional.cross_entropy(scores.float(), labels)


def samples(count: int = 40) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(count, 6, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long())


def batches(count: int = 10) -> list[Batch]:
    inputs, labels = samples().tensors
    return [(inputs[4 * k : 4 * k + 4], labels[4 * k : 4 * k + 4]) for k in range(count)]


def drawn(count: int) -> Tensor:
    """Return numbers from the generators that scripts draw from: torch's, NumPy's old one and Python's."""
    return torch.rand(count) + random.random() + np.random.rand()  # noqa: NPY002 - as scripts do


class Noisy(Dataset[Batch]):
    """Samples that every reading changes, by all three generators."""

    def __init__(self) -> None:
        self.inputs, self.labels = samples().tensors

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.inputs[index] + drawn(6), self.labels[index]


Make = Callable[..., Trainer]


@pytest.fixture
def make() -> Make:
    def made(model: nn.Module | None = None, loader: Any = None, **more: Any) -> Trainer:
        settings: dict[str, Any] = {"step_size": 0.1, "iterations": 8, **more}
        chosen = settings.pop("loss", loss)
        return Trainer(model or network(), chosen, batches() if loader is None else loader, **settings)

    return made


def fitted(trainer: Trainer, until: int | None = None) -> Run:
    run = trainer.fit(until)
    assert run is not None
    return run


def values(model: nn.Module) -> list[list[float]]:
    return [value.double().reshape(-1).tolist() for value in model.state_dict().values()]


class TestBits:
    @pytest.mark.parametrize("bucket_size", [25e6, 100.0])
    @pytest.mark.parametrize("algorithm", ["allreduce-sgd", {"name": "local-sgd", "period": 2}])
    def test_those_of_a_loop_in_torch(self, make: Make, algorithm: object, bucket_size: float) -> None:
        """Momentum, a cosine schedule, accumulation of two batches, autocast and batch normalisation."""
        ours, theirs = network(), network()
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
        expected = []
        stream = [batch for _ in range(2) for batch in batches()]
        for step in range(8):
            optimizer.zero_grad()
            both = []
            for batch in stream[2 * step : 2 * step + 2]:
                value = loss(theirs, batch)
                (value / 2).backward()
                both.append(float(value.detach()))
            optimizer.step()
            schedule.step()
            expected.append(sum(both) / 2)
        rule = {"rule": "momentum", "momentum": 0.9, "weight-decay": 0.01, "schedule": {"kind": "cosine"}}
        run = fitted(make(ours, algorithm=algorithm, update=rule, accumulate=2, bucket_size=bucket_size))
        assert values(ours) == values(theirs)
        assert run.samples.loss == expected

    def test_a_frozen_parameter_and_an_unused_one(self, make: Make) -> None:
        model = network()
        model[0].weight.requires_grad_(False)
        model.register_parameter("unused", nn.Parameter(torch.ones(3)))
        before = model[0].weight.clone()
        fitted(make(model, bucket_size=64))
        assert torch.equal(model[0].weight, before)
        assert model.unused.tolist() == [1, 1, 1]
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_parts_train_as_they_were_given(self, make: Make) -> None:
        model = network()
        model[1].eval()
        before = model[1].running_mean.clone()
        fitted(make(model, evaluate=lambda _: None, evaluate_every=2))
        assert torch.equal(model[1].running_mean, before)
        assert [part.training for part in model] == [True, False, True, True, True, True]


class TestResuming:
    @pytest.fixture(params=["list", "shuffled", "workers"])
    def loader(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        def made() -> Any:
            if request.param == "list":
                return batches()
            workers = 1 if request.param == "workers" else 0
            return DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers)

        return made

    def test_the_same_bits(self, make: Make, loader: Callable[[], Any]) -> None:
        """Dropout, noise by three generators, shuffling, AdamW; cut within an epoch and after one."""
        settings: dict[str, Any] = {"iterations": 14, "update": "adamw", "algorithm": "local-sgd"}
        whole = network(dropout=0.3)
        losses = fitted(make(whole, loader(), **settings)).samples.loss
        # A run that stops in between, and one that another process goes on with.
        model = network(dropout=0.3)
        trainer = make(model, loader(), **settings)
        begun = fitted(trainer, 7).samples.loss
        file = io.BytesIO()
        torch.save(trainer.state_dict(), file)
        begun_twice = begun + fitted(trainer).samples.loss
        assert (begun_twice, values(model)) == (losses, values(whole))
        # The script of another process builds the same and draws on its own before.
        drawn(3)
        model = network(dropout=0.3)
        trainer = make(model, loader(), **settings)
        file.seek(0)
        trainer.load_state_dict(torch.load(file, weights_only=True))
        assert trainer.reached == 7
        assert begun + fitted(trainer).samples.loss == losses
        assert values(model) == values(whole)

    def test_nothing_left(self, make: Make) -> None:
        trainer = make()
        fitted(trainer, 100)
        assert trainer.reached == 8
        assert trainer.fit() is None

    def test_an_evaluation_changes_nothing(self, make: Make) -> None:
        plain, watched = network(dropout=0.3), network(dropout=0.3)
        fitted(make(plain))

        def evaluate(model: nn.Module) -> float:
            assert not any(part.training for part in model.modules())
            drawn(5)
            with torch.no_grad():
                model[1].running_mean.fill_(7.0)
            return float(loss(model, batches()[0]))

        run = fitted(make(watched, evaluate=evaluate, evaluate_every=3))
        assert values(watched) == values(plain)
        noted = [noted for noted in run.observations if noted.name == "evaluation"]
        assert [noted.iteration for noted in noted] == [3, 6]
        assert {span.operation for span in run.timeline} == {"gradient", "update", "evaluation"}

    def test_the_folder(self, make: Make, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"folder": tmp_path / "kept", "save_every": 3}
        whole = network(0.3)
        fitted(make(whole))
        trainer = make(network(0.3), **settings)
        assert trainer.resume() == 0
        fitted(trainer, 7)
        names = [f"iteration-0000000{k}-rank-0-of-1.pt" for k in (6, 7)]
        assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == names
        # As if it had been killed in iteration 7.
        (tmp_path / "kept" / names[1]).unlink()
        model = network(0.3)
        trainer = make(model, **settings)
        assert trainer.resume() == 6
        fitted(trainer)
        assert values(model) == values(whole)

    def test_a_training_that_starts_anew_in_the_folder_of_another(self, make: Make, tmp_path: Path) -> None:
        """Its own states alone are gone on from, however far the other one came."""
        settings: dict[str, Any] = {"folder": tmp_path, "save_every": 2}
        fitted(make(**settings))
        assert states.kept(tmp_path, 0, 1) == {6, 8}
        fitted(make(**settings), 2)
        assert states.kept(tmp_path, 0, 1) == {2}
        assert make(**settings).resume() == 2

    @pytest.mark.parametrize(
        ("there", "reached", "left"),
        [((), 3, {3}), ((9,), 3, {3}), ((1, 2), 3, {2, 3}), ((1, 3), 3, {1, 3}), ((1, 2, 4, 9), 3, {2, 3})],
    )
    def test_which_are_kept(
        self, tmp_path: Path, there: tuple[int, ...], reached: int, left: set[int]
    ) -> None:
        for number in there:
            states.file_of(tmp_path, number, 0, 2).touch()
        others = states.file_of(tmp_path, 9, 1, 2), states.file_of(tmp_path, 9, 0, 3)
        for other in others:
            other.touch()
        states.write({"reached": reached}, tmp_path, 0, 2)
        assert states.kept(tmp_path, 0, 2) == left
        assert all(other.exists() for other in others)

    def test_what_is_not_its_own(self, make: Make, tmp_path: Path) -> None:
        trainer = make()
        with pytest.raises(BadInput, match=r"^state: there is none before the first iteration$"):
            trainer.state_dict()
        fitted(trainer, 2)
        with pytest.raises(BadInput) as caught:
            make(seed=4).load_state_dict(trainer.state_dict())
        assert str(caught.value) == "state: was saved with seed 0, but this training has 4"
        with pytest.raises(BadInput) as caught:
            make().load_state_dict({**trainer.state_dict(), "format": 9})
        assert str(caught.value) == "state: is no training state of format 1"
        trainer.save(tmp_path)
        file = tmp_path / "iteration-00000002-rank-0-of-1.pt"
        file.rename(tmp_path / "iteration-00000002-rank-0-of-4.pt")
        with pytest.raises(BadInput) as caught:
            make().resume(tmp_path)
        assert str(caught.value) == f"{tmp_path}: keeps a training of 4 workers, but this one has 1"
        file.write_bytes(b"no state")
        with pytest.raises(BadInput, match=r"rank-0-of-1\.pt: cannot be read: "):
            make().resume(tmp_path)

    def test_a_folder_that_cannot_be_written(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BadInput, match=r"cannot be written: (Not a directory|File exists)$"):
            make(folder=tmp_path / "file" / "kept", save_every=2).fit()


class TestRun:
    def test_what_comes_back(self, make: Make, tmp_path: Path) -> None:
        run = fitted(make(name="own"))
        assert (run.clock, run.iterations, run.bytes_sent) == ("wall", (8,), (0,))
        assert len(run.samples.loss) == 8
        assert run.samples.time == sorted(run.samples.time)
        assert run.pace.iteration == [1, 2, 3, 4, 5, 6, 7, 8]
        cost = run.scenario.cost
        assert (cost.parameters, cost.batch) == (111, 1)
        assert cost == run.profile().cost()
        run.save(tmp_path / "run")
        again = Run.load(tmp_path / "run")
        assert again.summary() == run.summary()
        assert again.profile() == run.profile()
        with pytest.raises(
            ValueError, match=r"^the training script of Sequential has ended; only running it"
        ):
            _ = again.scenario.objective

    def test_other_types_of_elements(self, make: Make) -> None:
        for dtype, elements in ((torch.float64, 222), (torch.bfloat16, 56)):
            model = network().to(dtype)

            def plain(model: nn.Module, batch: Batch, dtype: torch.dtype = dtype) -> Tensor:
                return nn.functional.cross_entropy(model(batch[0].to(dtype)).float(), batch[1])

            run = fitted(make(model, loss=plain, iterations=40))
            assert model[0].weight.dtype == dtype
            assert run.scenario.cost.parameters == elements
            assert sum(run.samples.loss[-10:]) < sum(run.samples.loss[:10])


class TestRefusals:
    def test_of_models(self, make: Make) -> None:
        mixed = network()
        mixed[4].to(torch.bfloat16)
        frozen = network().requires_grad_(False)
        apart = network()
        apart[4].to("meta")
        for model, problem in (
            (
                mixed,
                "the trainable parameters are of torch.bfloat16 and torch.float32, but one vector of one "
                "type is sent; give all the same, and use autocast in the loss for mixed precision",
            ),
            (frozen, "Sequential has no trainable parameter"),
            (apart, "the trainable parameters are on cpu and meta; put them on one device"),
            (
                nn.Linear(2, 2, dtype=torch.complex64),
                "the trainable parameters are of torch.complex64, which is no real number",
            ),
        ):
            with pytest.raises(BadInput) as caught:
                make(model)
            assert str(caught.value) == f"model: {problem}"

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"iterations": 0}, "iterations: must be at least 1, got 0"),
            ({"accumulate": 0}, "accumulate: must be at least 1, got 0"),
            ({"save_every": 3}, "folder: this key is missing; save_every has no effect alone"),
            ({"evaluate": print}, "evaluate_every: this key is missing; evaluate has no effect alone"),
            (
                {"evaluate": print, "evaluate_every": 0},
                "evaluate_every: must be at least 1, got 0",
            ),
            (
                {"algorithm": {"name": "a-psgd", "dedicated": True}},
                "algorithm.dedicated: every rank of a training has data; servers are tasks of workers",
            ),
            (
                {"algorithm": "cocod"},
                "algorithm.name: unknown algorithm 'cocod'; the nearest is 'cocod-sgd'",
            ),
            (
                {"algorithm": "svrg"},
                "algorithm: svrg needs an objective over samples or other summands, with numerics, which "
                "Sequential is not",
            ),
        ],
    )
    def test_of_settings(self, make: Make, settings: dict[str, Any], sentence: str) -> None:
        with pytest.raises(BadInput) as caught:
            make(**settings)
        assert str(caught.value) == sentence

    def test_of_losses_and_loaders(self, make: Make) -> None:
        with pytest.raises(BadInput) as caught:
            make(loss=lambda model, batch: model(batch[0])).fit()
        assert str(caught.value) == (
            "loss: must return a tensor of one element with a gradient, got shape (4, 3)"
        )
        with pytest.raises(BadInput) as caught:
            make(loader=[]).fit()
        assert str(caught.value) == "loader: rank 0 gets no batch from it; it has too few samples"

    def test_an_error_of_the_loss(self, make: Make) -> None:
        def broken(model: nn.Module, batch: Batch) -> Tensor:
            raise KeyError("labels")

        with pytest.raises(WorkerFailed, match=r"^worker 0 failed in iteration 1: KeyError: 'labels'"):
            make(loss=broken).fit()

    def test_an_error_of_the_evaluation(self, make: Make) -> None:
        def broken(model: nn.Module) -> None:
            raise RuntimeError("no test data")

        for every in (2, 8):
            with pytest.raises(
                WorkerFailed, match=r"^worker 0 failed in iteration \d: RuntimeError: no test"
            ):
                make(evaluate=broken, evaluate_every=every).fit()


class TestSharing:
    def test_a_plain_loader_is_divided(self) -> None:
        numbers = TensorDataset(torch.arange(12))
        for shuffle in (False, True):
            loader = DataLoader(numbers, batch_size=2, shuffle=shuffle)
            parts = [shared_out(loader, rank, 3, 7) for rank in range(3)]
            seen = [[int(x) for batch in part for x in batch[0]] for part in parts]
            assert [len(part) for part in seen] == [4, 4, 4]
            assert sorted(number for part in seen for number in part) == list(range(12))
            assert (seen[0] == [0, 3, 6, 9]) is not shuffle

    def test_others_are_taken_as_they_are(self) -> None:
        numbers = TensorDataset(torch.arange(12))

        class Stream(IterableDataset[int]):
            def __iter__(self) -> Iterator[int]:
                return iter(range(3))

        own = DataLoader(numbers, sampler=DistributedSampler(numbers, 3, 1))
        for loader in ([1, 2], own, DataLoader(Stream())):
            assert shared_out(loader, 0, 3, 0) is loader
        plain = DataLoader(numbers)
        assert shared_out(plain, 0, 1, 0) is plain


def test_what_resumes_exactly() -> None:
    """The others keep more than a model between rounds, and begin anew at the average."""
    found = {name for name, entry in ALGORITHMS.items() if entry.load()().resumes_exactly}
    assert found == {"allreduce-sgd", "local-sgd", "cocod-sgd", "d-psgd"}


def test_a_copy_of_the_module_is_not_trained(make: Make) -> None:
    """The module itself holds the result: whoever has it, has the trained one."""
    model = network()
    place, other = model[0].weight, copy.deepcopy(model)
    fitted(make(model))
    assert model[0].weight is place
    assert values(model) != values(other)


class FakeEvent:
    """Stands for an event of CUDA."""

    recorded: ClassVar[list[str]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str | None = None) -> None:
        self.recorded.append(str(stream))

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return 250.0


class TestGpuOfTheModule:
    """A script's ``batch.cuda()`` and the clocks of its loss are on the module's GPU in every thread."""

    def test_threads_are_set_to_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        ModuleSide(torch.device("cpu")).prepare()
        assert chosen == []
        ModuleSide(torch.device("cuda", 1)).prepare()
        assert chosen == [torch.device("cuda", 1)]

    def test_all_threads_are(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        prepared: set[str] = set()
        monkeypatch.setattr(ModuleSide, "prepare", lambda _: prepared.add(threading.current_thread().name))
        make(evaluate=lambda _: None, evaluate_every=4).fit()
        assert prepared == {"MainThread", "task", "compute", "world", "averages"}

    def test_its_stream_is_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
        watch = _Watch(torch.device("cuda", 1))
        watch.goes_to("forward")
        watch.goes_to("backward")
        seconds = watch.stop()
        assert FakeEvent.recorded == ["stream of cuda:1"] * 3
        assert seconds == {"load": 0.0, "forward": 0.25, "backward": 0.25}
