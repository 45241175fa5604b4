"""Requests in line: order, merging, and neighbours that are left alone."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import modules

from procserver.errors import BadTensor, PredictFailed, ProcserverError
from procserver.model.batching import Request, Turns
from procserver.model.runner import Batching, ModelRunner

# Longer than any test: who waits that long, waits for nothing.
FOREVER = 60.0


class Together:
    """Runs functions at the same time, each as a request under way."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.answers: list[object] = []

    def run(self, *works: Callable[[], object]) -> list[object]:
        barrier = threading.Barrier(len(works))
        self.answers = [None] * len(works)

        def work(index: int) -> None:
            with self.runner.coming():
                barrier.wait(FOREVER)
                try:
                    self.answers[index] = works[index]()
                except ProcserverError as error:
                    self.answers[index] = error

        threads = [
            threading.Thread(target=work, args=(index,)) for index in range(len(works))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(FOREVER)
            assert not thread.is_alive()
        return self.answers


def merging(model: object, most_requests: int = 16, most_rows: int = 5000):
    return ModelRunner(
        model,  # type: ignore[arg-type]
        batching=Batching(
            most_requests=most_requests, patience=FOREVER, most_rows=most_rows
        ),
    )


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory):
    """The contract model, unmerged, and merging after it has proved itself."""
    model = modules.loaded(tmp_path_factory.mktemp("m"), modules.Contract().eval())
    apart = ModelRunner(model)
    runner = merging(model)
    generator = np.random.default_rng(0)
    for _ in range(3):
        both = [modules.tensors(generator, 3) for _ in range(2)]
        Together(runner).run(*(partial(runner.run, b) for b in both))
    return model.module, apart, runner


def same(ours: object, theirs: dict[str, np.ndarray]) -> None:
    assert isinstance(ours, dict), ours
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert ours[name].shape == array.shape
        assert ours[name].dtype == array.dtype
        assert np.allclose(ours[name], array, rtol=0, atol=1e-6)


@given(
    seed=st.integers(0, 2**32),
    requests=st.lists(
        st.tuples(st.integers(1, 5), st.booleans()), min_size=2, max_size=8
    ),
    named=st.booleans(),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_merged_requests_score_as_they_do_alone(contract, seed, requests, named):
    module, apart, runner = contract
    generator = np.random.default_rng(seed)
    batches = [modules.tensors(generator, rows, marked=bad) for rows, bad in requests]

    def call(batch):
        if not named:
            return runner.run(batch)
        return runner.run_map({name: (0, array) for name, array in batch.items()})

    before = module.calls
    answers = Together(runner).run(*(lambda b=b: call(b) for b in batches))
    passes = module.calls - before
    any_bad = any(bad for _, bad in requests)
    assert passes == (1 + len(requests) if any_bad else 1)
    for batch, (_, bad), answer in zip(batches, requests, answers, strict=True):
        if bad:
            assert isinstance(answer, BadTensor if named else PredictFailed)
        else:
            same(answer, apart.run(batch))


def test_requests_of_other_kinds_stay_apart(contract) -> None:
    module, apart, runner = contract
    generator = np.random.default_rng(1)
    plain = [modules.tensors(generator, 2) for _ in range(2)]
    wide = [
        {**modules.tensors(generator, 2), "more": np.ones((2, n), np.float32)}
        for n in (1, 2)
    ]
    uneven = {**modules.tensors(generator, 2), "more": np.ones(7, np.float32)}
    single = {**modules.tensors(generator, 2), "batch_size": np.array(2)}
    batches = [*plain, *wide, uneven, single]
    before = module.calls
    answers = Together(runner).run(*(partial(runner.run, b) for b in batches))
    assert module.calls - before == 5
    for batch, answer in zip(batches, answers, strict=True):
        same(answer, apart.run(batch))


def test_the_size_of_a_pass_is_bounded(tmp_path: Path) -> None:
    model = modules.loaded(tmp_path, modules.Contract().eval())
    generator = np.random.default_rng(2)
    for most_requests, most_rows, passes in ((4, 5000, 2), (16, 10, 3), (16, 2, 8)):
        runner = merging(model, most_requests, most_rows)
        batches = [modules.tensors(generator, 3) for _ in range(8)]
        for _ in range(6):
            before = model.module.calls
            Together(runner).run(*(partial(runner.run, b) for b in batches))
        assert model.module.calls - before == passes


def test_a_lone_request_waits_for_nobody(contract) -> None:
    _, _, runner = contract
    started = time.monotonic()
    with runner.coming():
        runner.run(modules.tensors(np.random.default_rng(3), 2))
    runner.run(modules.tensors(np.random.default_rng(3), 2))
    assert time.monotonic() - started < FOREVER / 2


def test_nobody_waits_for_a_request_that_is_refused(contract) -> None:
    _, _, runner = contract

    def refused() -> object:
        time.sleep(0.1)
        raise BadTensor("before it got in line")

    good, bad = Together(runner).run(
        lambda: runner.run(modules.tensors(np.random.default_rng(3), 2)), refused
    )
    assert isinstance(good, dict)
    assert isinstance(bad, BadTensor)


def test_patience_ends(contract, tmp_path: Path) -> None:
    model = modules.loaded(tmp_path, modules.Contract().eval())
    runner = ModelRunner(
        model, batching=Batching(most_requests=4, patience=0.05, most_rows=100)
    )
    release = threading.Event()

    def late() -> None:
        with runner.coming():
            release.wait(FOREVER)

    thread = threading.Thread(target=late)
    thread.start()
    runner.run(modules.tensors(np.random.default_rng(4), 2))
    release.set()
    thread.join(FOREVER)


class Mixing(torch.nn.Module):
    """Outputs that depend on the other rows, in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = data["x"]
        if self.how == "softmax":
            return {"p": torch.softmax(x, 0)}
        if self.how == "rank":
            return {"good": x, "rank": x.argsort()}
        if self.how == "scalar":
            return {"p": x.sum()}
        if self.how == "once":
            return {"p": x[None, :1]}
        return {"p": torch.repeat_interleave(x, 2)}


@pytest.mark.parametrize("how", ["softmax", "rank", "scalar", "once", "flat"])
def test_models_that_mix_rows_are_found_out(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = modules.loaded(tmp_path, Mixing(how))
    apart = ModelRunner(model)
    runner = merging(model)
    generator = np.random.default_rng(5)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            batches = [{"x": generator.random(n)} for n in (3, 2, 4)]
            answers = Together(runner).run(*(partial(runner.run, b) for b in batches))
            for batch, answer in zip(batches, answers, strict=True):
                same(answer, apart.run(batch))
    assert caplog.text.count("requests are not merged") == 1


class Added(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(
        self, a: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return a.sum(1) + b, b * 2


def test_positional_models_are_merged_along_the_first_axis(tmp_path: Path) -> None:
    model = modules.loaded(tmp_path, Added())
    runner = merging(model)
    generator = np.random.default_rng(6)
    for _ in range(4):
        batches = [
            [
                (1, generator.random((n, 2), dtype=np.float32)),
                (1, generator.random(n, dtype=np.float32)),
            ]
            for n in (1, 2, 3)
        ]
        before = model.module.calls
        answers = Together(runner).run(
            *(lambda b=b: runner.run_positional(b, [1, 0]) for b in batches)
        )
        for ((_, a), (_, b)), answer in zip(batches, answers, strict=True):
            assert isinstance(answer, list)
            assert np.array_equal(answer[0], b * 2)
            assert np.allclose(answer[1], a.sum(1) + b, atol=1e-6)
    assert model.module.calls - before == 1


def test_an_input_tile_export_is_not_merged_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = modules.loaded(tmp_path, modules.Contract().eval(), input_tile=2)
    with caplog.at_level(logging.INFO):
        runner = merging(model)
    assert "INPUT_TILE" in caplog.text
    batches = [modules.tensors(np.random.default_rng(n), 2) for n in range(4)]
    for _ in range(2):
        before = model.module.calls
        Together(runner).run(*(partial(runner.run, b) for b in batches))
        assert model.module.calls - before == 4


def request_of(number: int) -> Request:
    return Request({"x": torch.full((1,), number)}, mergeable=True)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + FOREVER
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Stage:
    """A line whose passes a test holds up and lets go."""

    def __init__(self, most_requests: int, overtaken: float = FOREVER) -> None:
        self.order: list[list[int]] = []
        self.gate = threading.Event()
        self.turns = Turns(
            self._compute, most_requests=most_requests, overtaken=overtaken
        )
        self.broken: set[int] = set()
        self.results: dict[int, object] = {}
        self.threads: dict[int, threading.Thread] = {}

    def _compute(self, requests: Sequence[Request]) -> None:
        numbers = [int(request.tensors["x"][0]) for request in requests]
        self.order.append(numbers)
        assert self.gate.wait(FOREVER)
        if self.broken & set(numbers):
            raise MemoryError("out of the blue")
        for request, number in zip(requests, numbers, strict=True):
            request.outputs = {"x": np.array([number])}

    def start(self, number: int) -> None:
        """Brings a request into line behind those that wait already."""

        def work() -> None:
            try:
                self.results[number] = self.turns.run(request_of(number))["x"][0]
            except BaseException as error:
                self.results[number] = error

        in_line = len(self.turns._waiting)
        self.threads[number] = threading.Thread(target=work)
        self.threads[number].start()
        if number == 0:
            wait_until(lambda: self.order == [[0]])
        else:
            wait_until(lambda: len(self.turns._waiting) > in_line)

    def finish(self) -> None:
        self.gate.set()
        for thread in self.threads.values():
            thread.join(FOREVER)
            assert not thread.is_alive()


@pytest.mark.parametrize("overtaken", [0.0, FOREVER])
def test_requests_are_served_in_the_order_of_their_arrival(overtaken: float) -> None:
    stage = Stage(most_requests=1, overtaken=overtaken)
    for number in range(6):
        stage.start(number)
    stage.finish()
    assert stage.order == [[0], [1], [2], [3], [4], [5]]
    assert stage.results == {number: number for number in range(6)}


@pytest.mark.parametrize("overtaken", [0.0, FOREVER])
def test_what_waits_behind_a_pass_is_taken_together(overtaken: float) -> None:
    stage = Stage(most_requests=3, overtaken=overtaken)
    for number in range(6):
        stage.start(number)
    stage.finish()
    assert stage.order == [[0], [1, 2, 3], [4, 5]]
    assert stage.results == {number: number for number in range(6)}


@pytest.mark.parametrize("overtaken", [0.0, FOREVER])
def test_a_pass_that_breaks_off_leaves_the_line_going(overtaken: float) -> None:
    stage = Stage(most_requests=2, overtaken=overtaken)
    stage.broken = {1}
    for number in range(5):
        stage.start(number)
    stage.finish()
    assert stage.order == [[0], [1, 2], [3, 4]]
    assert isinstance(stage.results.pop(1), MemoryError)
    assert isinstance(stage.results.pop(2), PredictFailed)
    assert stage.results == {0: 0, 3: 3, 4: 4}


class Interrupt(BaseException):
    """What a watchdog may raise in a thread."""


@pytest.mark.parametrize("overtaken", [0.0, FOREVER])
@pytest.mark.parametrize("most_requests", [1, 2])
@pytest.mark.parametrize("victim", [1, 2, 3])
def test_an_interrupted_thread_leaves_the_line_going(
    overtaken: float, most_requests: int, victim: int
) -> None:
    stage = Stage(most_requests, overtaken)
    for number in range(4):
        stage.start(number)
    ident = stage.threads[victim].ident
    assert ident is not None
    raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), ctypes.py_object(Interrupt)
    )
    assert raised == 1
    stage.finish()
    assert isinstance(stage.results.pop(victim), Interrupt)
    assert stage.results.keys() == {0, 1, 2, 3} - {victim}
    # A later request finds the line free.
    assert stage.turns.run(request_of(7))["x"][0] == 7


def test_nobody_starves() -> None:
    """Greedy threads come back at once; one that comes late still gets its turn."""
    turns = Turns(finish, overtaken=0.005)
    stop = threading.Event()

    def greedy() -> None:
        while not stop.is_set():
            turns.run(request_of(1))

    threads = [threading.Thread(target=greedy) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        turns.run(request_of(2))
    stop.set()
    for thread in threads:
        thread.join(FOREVER)
        assert not thread.is_alive()


def finish(requests: Sequence[Request]) -> None:
    for request in requests:
        request.outputs = {}


@pytest.mark.parametrize("overtaken", [0.0, 0.001, FOREVER])
def test_the_line_never_stands_still(overtaken: float) -> None:
    """Many short requests at once, some of which break off."""

    def compute(requests: Sequence[Request]) -> None:
        assert 1 <= len(requests) <= 3
        if any(int(request.tensors["x"][0]) % 17 == 16 for request in requests):
            raise MemoryError("out of the blue")
        finish(requests)

    turns = Turns(compute, most_requests=3, patience=0.001, overtaken=overtaken)
    done = []

    def work(base: int) -> None:
        for number in range(base, base + 150):
            try:
                with turns.coming():
                    turns.run(request_of(number))
            except (MemoryError, PredictFailed):
                pass
            done.append(number)

    threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FOREVER)
        assert not thread.is_alive()
    assert len(done) == 8 * 150
