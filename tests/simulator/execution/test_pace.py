"""Emulated compute, injected stragglers and padded messages: the same times and bytes on both clocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from simulator.engine.simulate import simulate
from simulator.execution import execute
from simulator.execution.device import Cpu
from simulator.execution.pace import Charge, Course, Pacer
from simulator.execution.padding import PaddedCommunicator
from simulator.execution.placed import CopyingOracle
from simulator.execution.worker import WallWorker
from simulator.parts import BadInput
from simulator.scenario import Scenario
from simulator.workload.delivery import Deliver
from simulator.workload.objective import Bounds
from traces import COMPUTE

QUADRATIC: dict[str, Any] = {"kind": "quadratic", "dimension": 6}
STRAGGLERS = [
    {"kind": "persistent", "workers": [1], "slowdown": 2.0},
    {"kind": "lognormal", "sigma": 0.5},
    {"kind": "gamma", "variation": 0.3, "workers": [1]},
    {"kind": "bursts", "fast": "40 ms", "slow": "25 ms", "slowdown": 3.0},
    {"kind": "bursts", "fast": "30 ms", "slow": "5 ms", "slowdown": 1.5, "workers": [1]},
]


SETTINGS = {"compute": "emulated", "stragglers": "injected"}


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


class Noting(Cpu):
    """Notes when it was waited for."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.finished: list[float] = []

    def finish(self) -> None:
        self.finished.append(self.clock())


class InAnotherThread(CopyingOracle):
    """Hands each bucket over from a thread of its own, as autograd does for parameters on a GPU."""

    def gradient_in_buckets(self, x: torch.Tensor, bounds: Bounds, deliver: Deliver) -> None:
        def elsewhere(index: int, part: torch.Tensor) -> None:
            thread = threading.Thread(target=deliver, args=(index, part))
            thread.start()
            thread.join()

        super().gradient_in_buckets(x, bounds, elsewhere)


def cluster(stragglers: list[dict[str, Any]], workers: int = 2) -> dict[str, Any]:
    topology = {"builder": "switch", "gpus": workers}
    return {"topology": topology, "device": "gtx-1080-ti", "stragglers": stragglers, "transport": "ideal"}


def computed(course: Course, work: Callable[[], None] = lambda: None) -> None:
    """Let a computation begin now, really take as long as ``work``, and end."""
    turn = course.begin()
    work()
    course.hold(turn)
    course.end(turn)


def paced(make: Any, algorithm: str = "local-sgd", **execution: str) -> Scenario:
    settings = {"compute": "emulated", "stragglers": "injected", **execution}
    scenario: Scenario = make(
        algorithm, 2, QUADRATIC, cluster=cluster(STRAGGLERS), execution=settings, iterations=60
    )
    return scenario


class TestSameTimes:
    @pytest.mark.parametrize("seed", [None, 7])
    @pytest.mark.parametrize("rank", [0, 1])
    def test_gradients_one_after_another(self, own: Any, rank: int, seed: int | None) -> None:
        """Nothing but gradients: each worker's begins when its last one ended, on both clocks."""
        body = """
            x = worker.initial_model()
            while worker.running:
                gradient = await worker.gradient(x)
            worker.report(x)
        """
        machines = {**cluster(STRAGGLERS), **({} if seed is None else {"seed": seed})}
        scenario = own(body, 2, cluster=machines, iterations=60, execution=SETTINGS)
        spans = [span for span in simulate(scenario).timeline if span.worker == rank]
        assert len(spans) == 60
        clock = Clock()
        pacer = Pacer(scenario, rank, clock, clock.sleep)
        for span in spans:
            begin = clock()
            assert begin - pacer.start == pytest.approx(span.start, rel=1e-9, abs=1e-12)
            computed(pacer.gradient())
            assert clock() - pacer.start == pytest.approx(span.end, rel=1e-9)
        assert pacer.overrun == 0

    def test_factors_of_measured_compute(self, make: Any) -> None:
        """What really took two seconds takes two seconds times the factor of the simulation."""
        scenario = make(
            "local-sgd",
            2,
            QUADRATIC,
            cluster=cluster(STRAGGLERS[:3]),
            execution={"stragglers": "injected"},
        )
        emulated = Pacer(paced(make).vary({"cluster.stragglers": STRAGGLERS[:3]}), 1)
        clock = Clock()
        pacer = Pacer(scenario, 1, clock, clock.sleep)
        for _ in range(40):
            course = pacer.gradient()
            assert course.factor == emulated.gradient().factor
            begin = clock()
            computed(course, lambda: clock.sleep(2.0))
            expected = max(2.0, 2.0 * course.factor)
            assert clock() - begin == pytest.approx(expected)

    def test_buckets(self, make: Any) -> None:
        scenario = paced(make)
        clock = Clock()
        pacer = Pacer(scenario, 0, clock, clock.sleep)
        pacer._bursts = []
        courses = pacer.buckets()
        step = scenario.cost.gradient_seconds(scenario.cluster.devices[0], scenario.batches[0])
        assert len(courses) == 2
        begin, waited, reached = clock(), 0.0, step.forward
        turn = courses[0].begin()
        for course, part in zip(courses, step.backward, strict=True):
            # Some of it is really computed, the rest is waited for.
            clock.sleep(1e-5)
            waited = course.hold(turn, waited)
            reached += part
            assert clock() - begin == pytest.approx(reached * course.factor)
        assert waited == pytest.approx(reached * courses[0].factor - 2e-5)

    def test_buckets_that_another_thread_hands_over(self, own: Any) -> None:
        """As on a GPU: the gradient has one turn of the device, which is waited for before the time is."""
        body = """
            x = worker.initial_model()
            buckets = worker.gradient_buckets(x)
            after = worker.combine((1, x))
            for bucket in buckets:
                await bucket
            worker.report(await after)
        """
        scenario = own(body, 2, cluster=cluster([]), execution={"compute": "emulated"})
        clock = Clock()
        side = Noting(clock)
        worker = WallWorker(scenario, 0, None, side=side)
        worker._pacer = pacer = Pacer(scenario, 0, clock, clock.sleep)
        worker._oracle = InAnotherThread(worker._oracle, side.device)
        record = worker.run(scenario.algorithm, time.monotonic())
        worker.close()
        step = scenario.cost.gradient_seconds(scenario.cluster.devices[0], scenario.batches[0])
        assert side.finished == pytest.approx(
            [100.0, 100.0 + step.forward + step.backward[0], 100.0 + step.total]
        )
        assert pacer.device._turns == []
        gradient, combine = record.computations
        assert combine.start - gradient.start == pytest.approx(step.total)

    def test_a_computation_that_takes_longer_than_emulated(self, make: Any) -> None:
        clock = Clock()
        pacer = Pacer(paced(make, stragglers="none"), 0, clock, clock.sleep)
        begin = clock()
        computed(pacer.gradient(), lambda: clock.sleep(0.25))
        assert clock() - begin == pytest.approx(0.25)
        assert pacer.overrun == pytest.approx(0.25 - 1e-3)

    def test_passes(self, make: Any) -> None:
        scenario = paced(make).vary({"workload.cost.update": "3 ms"})
        pacer = Pacer(scenario, 0)
        x = torch.zeros(6, dtype=torch.float64)
        assert pacer.passing(3 * x.nbytes, x)._seconds == pytest.approx(3e-3)
        assert pacer.charged(3 * x.nbytes)._seconds == pytest.approx(3e-3)
        assert pacer.passing(0.0, x[:0])._seconds == 0

    def test_for_real(self, make: Any) -> None:
        """Emulated gradients of 30 ms, of 60 ms on the slow worker, really take that."""
        stragglers = [{"kind": "persistent", "workers": [1], "slowdown": 2.0}]
        scenario = make("local-sgd", 2, QUADRATIC, cluster=cluster(stragglers), execution=SETTINGS).vary(
            {"workload.cost.gradient": "30 ms"}
        )
        run = execute(scenario)
        assert run is not None
        for worker, seconds in ((0, 0.03), (1, 0.06)):
            spans = [s for s in run.timeline if s.worker == worker and s.operation == "gradient"]
            durations = [span.end - span.start for span in spans if span.kind == COMPUTE]
            assert len(durations) == 4
            assert min(durations) >= seconds
            assert sorted(durations)[1] < seconds + 0.03
        simulated = simulate(scenario)
        assert (run.models == simulated.models).all()


class Echo:
    """A communicator of one rank that gives back what it is given, and notes the bytes."""

    one_order = False

    def __init__(self) -> None:
        self.nbytes: list[int] = []
        self.box: list[torch.Tensor] = []

    def all_reduce(self, x: torch.Tensor, op: str, group: str) -> None:
        self.nbytes.append(x.nbytes)
        x.mul_(2)

    def exchange(self, x: torch.Tensor, sources: Any, destinations: Any) -> dict[int, torch.Tensor]:
        self.nbytes.append(x.nbytes)
        return {source: x + source for source in sources}

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        self.nbytes.append(x.nbytes)
        return tuple(x + member for member in range(members))

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        self.nbytes.append(parts.nbytes)
        return parts.flip(0)

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        self.nbytes.append(x.nbytes)
        self.box.append(x)

    def recv(self, source: int, channel: int) -> torch.Tensor:
        return self.box.pop(0)


class TestPadding:
    def test_every_message_is_as_long_as_charged(self) -> None:
        echo = Echo()
        padded = PaddedCommunicator(echo, lambda x: 10.0 * x.nbytes)
        x = torch.arange(6, dtype=torch.float64)
        y = x.clone()
        padded.all_reduce(y, "sum", "world")
        assert torch.equal(y, 2 * x)
        arrivals = padded.exchange(x, [1, 2], [1])
        assert all(torch.equal(arrivals[k], x + k) for k in (1, 2))
        gathered = padded.all_gather(x, "world", 3)
        assert all(torch.equal(gathered[k], x + k) for k in range(3))
        rows = torch.arange(6.0).view(2, 3)
        assert torch.equal(padded.all_to_all(rows, "world"), rows.flip(0))
        assert echo.nbytes == [480, 480, 480, 240]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8, torch.bool])
    @pytest.mark.parametrize("elements", [0, 1, 7])
    def test_channels(self, dtype: torch.dtype, elements: int) -> None:
        echo = Echo()
        padded = PaddedCommunicator(echo, lambda x: 3.5 * x.nbytes)
        x = torch.arange(elements).to(dtype)
        padded.send(x, 1, 0)
        received = padded.recv(0, 0)
        assert received.dtype == dtype
        assert torch.equal(received, x)
        assert echo.nbytes == [-(-7 * x.nbytes // 2) + 16]

    def test_what_is_charged_is_what_the_simulation_charges(self, make: Any) -> None:
        scenario = paced(make)
        charge = Charge(scenario)
        from simulator.engine.simulate import Simulation

        worker = Simulation(scenario, None, False).workers[0]
        for x in (torch.zeros(6, dtype=torch.float64), torch.zeros(3, dtype=torch.uint8)):
            assert charge(x) == worker.charged_bytes(x)
        assert charge.byte_factor == worker._byte_factor

    @pytest.mark.parametrize("algorithm", ["allreduce-sgd", "d-psgd", "easgd"])
    def test_for_real(self, make: Any, algorithm: str) -> None:
        scenario = make(algorithm, 2, QUADRATIC, execution={"payload": "cost"})
        run, simulated = execute(scenario), simulate(scenario)
        assert run is not None
        assert run.bytes_sent == pytest.approx(simulated.bytes_sent)
        # The sum of two is the same in any order.
        assert (run.models == simulated.models).all()


class TestRefusals:
    def refusal(self, scenario: Scenario) -> str:
        with pytest.raises(BadInput) as caught:
            execute(scenario)
        return str(caught.value)

    def test_a_cost_model_smaller_than_the_objective(self, make: Any) -> None:
        scenario = make("local-sgd", 2, {**QUADRATIC, "dimension": 51}, execution={"payload": "cost"})
        assert self.refusal(scenario) == (
            "execution.payload: 'cost' has nothing to add: the cost model's 100 parameters are fewer bytes "
            "than the objective's"
        )

    def test_workers_that_share_a_device(self, make: Any) -> None:
        shared = {**cluster([]), "workers": 2, "placement": [0, 0]}
        scenario = make("local-sgd", 2, QUADRATIC, cluster=shared, execution={"compute": "emulated"})
        assert self.refusal(scenario) == (
            "execution.compute: 'emulated' needs a device for each worker; some of these share one"
        )

    def test_the_digest_of_scenarios_without_the_section_stays(self, make: Any) -> None:
        assert "execution" not in make("local-sgd", 2, QUADRATIC).resolved()
