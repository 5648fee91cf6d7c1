"""scripts/benchmark_step.py: what it measures, and what it compares with."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

import benchmark_step
from benchmark_step import main
from franca.train.config import TrainConfig
from franca.train.estimate import work_of_step
from measuring import comparing
from measuring.comparing import OTHERS, compared
from measuring.plan import Plan
from measuring.progress import MARK
from measuring.report import report
from measuring.stepping import Stepping
from measuring.stored import (
    EAGER,
    OBJECTIVES,
    PROJECT,
    answers,
    errors,
    growth,
    made_up,
    peak_gb_of_process,
    run,
    tensors,
)
from measuring.timing import Took, in_turns, ratios, spread
from tests.tiny import write_tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [1, 23])
def test_the_same_answers_give_both_objectives_the_same_gradients(config: TrainConfig, rows: int) -> None:
    stored = made_up(config, rows, CPU, None)
    assert stored.rows == rows
    found = errors(stored, config, None)
    assert found[EAGER].gradient == 0.0
    assert found[PROJECT].loss < 1e-5
    assert found[PROJECT].gradient < 1e-5
    once, again = (run(PROJECT, stored.copies(), config, None) for _ in range(2))
    assert torch.equal(once, again)
    assert all(tensor.grad is None for tensor in tensors(stored.student))


def test_answers_are_those_of_the_networks(config: TrainConfig) -> None:
    """The loss of stored answers is the step's own."""
    stepping = Stepping(config)
    stored = answers(stepping)
    temperature = config.teacher.temperature
    report = stepping.training.objective(stored.batch, temperature)
    assert run(PROJECT, stored.copies(), config, None) == pytest.approx(report.total.item())


def test_every_other_way_can_be_asked_for() -> None:
    assert set(benchmark_step.OTHERS) == OTHERS.keys()


@pytest.mark.parametrize("other", OTHERS)
def test_the_other_way_takes_the_same_step_and_leaves_no_trace(config: TrainConfig, other: str) -> None:
    own, changed = Stepping(config), Stepping(config)
    own.step()
    with OTHERS[other](changed.training):
        changed.step()
    for one, another in zip(own.training.pair.parameters(), changed.training.pair.parameters(), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-3, atol=1e-5)
    assert type(changed.training.objective) is OBJECTIVES[PROJECT]
    assert "_rows" not in vars(changed.training.pair.student.dino_head)


@pytest.mark.slow
def test_memory_of_a_process_is_that_of_whole_matrices_and_more(config: TrainConfig) -> None:
    """The eager objective keeps at least the student's logits and the assignments of every masked row."""
    config.heads.ibot.prototypes = 8192
    rows = 512
    matrix = 4 * rows * sum(8192 * width // 4 for width in (1, 2, 4)) / 1e9
    assert peak_gb_of_process(EAGER, config, rows, None) > 2 * matrix


def test_the_numbers_are_those_of_the_configured_step(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write_tiny(tmp_path / "tiny.yaml", tmp_path), tmp_path / "numbers.json"
    few = ["--steps", "2", "--blocks", "2", "--warmup", "1", "--device", "cpu"]
    assert main(["--config", str(file), *few, "--profile", "--output", str(output), "accumulate=2"]) == 0
    found = json.loads(output.read_text())
    step = found["step"]
    for milliseconds, rate in zip(step["step_ms"], step["images_per_second"], strict=True):
        assert rate == pytest.approx(2 * 4 / milliseconds * 1e3)
    config.accumulate = 2
    work = work_of_step(config, Stepping(config).training.pair.student)
    assert step["tflop_per_image"] == pytest.approx(work.model / 8 / 1e12)
    assert step["executed_tflops"][0] == pytest.approx(work.executed / step["step_ms"][0] * 1e3 / 1e12)
    assert (step["waits"], step["recompilations"]) == ({}, 0)
    assert found["config"]["accumulate"] == 2
    page, said = capsys.readouterr()
    assert "4 images x 2 a step" in page
    assert "backward" in page
    assert re.search(r"about (\d+) steps of 8 images will be taken", said)[1] == str(1 + 1 + 2 * 2 + 1 + 2)  # type: ignore[index]
    assert f"{MARK}the step, block 2 of 2\n" in said
    assert f"{MARK}time by part, step 2 of 2\n" in said


def test_the_objective_alone_needs_no_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On answers of the heads at the configured sizes; memory is tested apart, in processes of its own."""
    monkeypatch.setattr(comparing, "peak_gb_of_process", lambda way, *_: {PROJECT: 1.0, EAGER: 4.0}[way])
    file, output = write_tiny(tmp_path / "tiny.yaml", tmp_path, "device=cpu"), tmp_path / "numbers.json"
    assert main(["--config", str(file), "--objective-only", "7", "--blocks", "2", "--output", str(output)]) == 0
    found = json.loads(output.read_text())["objective"]
    assert (found["rows"], found["prototypes"]) == (7, 4 + 8 + 16)
    assert found["ratio"] == pytest.approx([a / b for a, b in zip(*found["processor_ms"], strict=True)])
    page, said = capsys.readouterr()
    assert "the objectives alone, round 2 of 2" in said
    assert "7 masked rows x 28 prototypes" in page
    assert page.split("its peak memory, GB")[1].split()[:3] == ["1.000", "4.000", "0.25"]
    assert page.split("error of its gradient")[1].split()[1] == "0.0e+00"  # eager's, in fp32


def test_a_page_explains_the_rows_that_it_has(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "peak_gb_of_process", lambda *_: 1.0)
    stepping = Stepping(config)
    _, page = compared(stepping, EAGER, 1, 1)
    assert [line.partition(":")[0] for line in page.splitlines()[-3:]] == [
        "memory of the objective alone", "its gradients", "errors"
    ]  # fmt: skip
    _, page = compared(stepping, "heads-by-level", 1, 1)
    assert len(page.splitlines()) == 3  # a head, a row, and what the row's numbers are
    assert page.splitlines()[-1].startswith("median")


def test_as_many_steps_are_taken_as_are_said(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(Stepping, "take", lambda self, batches: taken.append(len(batches)))
    monkeypatch.setattr(comparing, "_alone", lambda *_: ({}, []))
    monkeypatch.setattr(comparing, "answers", lambda _: None)
    options = benchmark_step.parse_arguments(["--profile", "--against", "eager"])
    report(config, options)
    plan = Plan.of(options, CPU)
    assert len(taken) == 1 + plan.after_the_first(options, CPU)


def test_what_is_not_asked_for_is_less_on_a_cpu() -> None:
    options = benchmark_step.parse_arguments(["--blocks", "7", "--warmup", "0"])
    assert (Plan.of(options, CPU).blocks, Plan.of(options, CPU).warmup) == (7, 0)
    assert Plan.of(options, CPU).steps < Plan.of(options, torch.device("meta")).steps


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="a peak can't be set back here")
def test_memory_of_what_came_before_is_no_growth() -> None:
    size = 64 * 2**20
    earlier = torch.ones(4 * size, dtype=torch.uint8)
    del earlier
    assert growth(lambda: None) < size / 2
    assert size / 2 < growth(lambda: torch.ones(size, dtype=torch.uint8)) < 2 * size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["heads.hidden_dims=3"], "hidden_dims"), (["--files", "data.path=/nowhere"], "/nowhere")],
)
def test_errors_are_lines(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(write_tiny(tmp_path / "tiny.yaml", tmp_path)), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_ways_take_turns_and_are_compared_round_by_round() -> None:
    order: list[str] = []

    def way(name: str, seconds: float) -> Took:
        order.append(name)
        return Took(seconds * len(order), 1.0)

    mine, other = in_turns([lambda: way("a", 1.0), lambda: way("b", 2.0)], rounds=2)
    assert order == ["a", "b", "a", "b"]
    assert ratios([took.clock for took in mine], [took.clock for took in other]) == [1 / 4, 3 / 8]
    assert [took.on(CPU) for took in mine] == [1.0, 1.0]  # other programs don't lengthen the processor's seconds


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([1.0, 2.0, 4.0], "2.00 (1.00-4.00)"),
        ([0.00123], "0.00123 (0.00123-0.00123)"),
        ([1234.5], "1,234 (1,234-1,234)"),
    ],
)
def test_a_spread_has_three_digits(values: list[float], written: str) -> None:
    assert spread(values) == written
