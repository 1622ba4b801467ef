"""The verdict on a run: each problem is found, and runs without it are left alone."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.train.history import History
from pipeline.train.verdict import MIN_STEPS, NUM_NAMED, Finding, RunFacts, judge, verdict_lines
from tests.conftest import REPOSITORY
from tests.pipeline.run_records import run_config, step_record, validation_record

SCRATCH = RunFacts(
    epochs=10, steps=None, learning_rate=0.02, num_train=40, has_weights=False, favors_rare_classes=False
)
FALLING = tuple(2.0 - 0.15 * epoch for epoch in range(10))
FEW_STEPS = "more epochs, such as --epochs 125, with another --output, since 40 steps are few"
HEALTHY = (0.20, 0.32, 0.40, 0.38, 0.46, 0.47, 0.50, 0.49, 0.51, 0.52)


def history_of(
    mious: tuple[float, ...], losses: tuple[float, ...] = FALLING, ious: dict[str, float] | None = None
) -> History:
    """Return a run with one validation and four step records in each epoch."""
    history = History()
    for index, (miou, loss) in enumerate(zip(mious, losses, strict=True)):
        for quarter in range(4):
            step = 4 * index + quarter + 1
            history.add(step_record(step, loss=loss, epoch=step / 4))
        record = validation_record(step, miou, epoch=index + 1, pictures=0)
        record["metrics"]["iou"] = ious or {"sky": 0.9, "car": 0.1}
        history.add(record)
    return history


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_healthy_run_has_no_findings() -> None:
    assert judge(history_of(HEALTHY), SCRATCH) == []


def test_a_run_that_is_not_finished_has_no_findings() -> None:
    short = history_of((0.05, 0.2), FALLING[:2], {"car": 0.0})
    assert judge(short, SCRATCH) == []
    assert judge(History(), SCRATCH) == []
    assert judge(short, replace(SCRATCH, epochs=2))


def test_classes_without_a_right_pixel_are_named() -> None:
    ious = {"sky": 0.9, "car": 0.0, "boat": 0.009, "road": 0.01}
    finding = only(judge(history_of(HEALTHY, ious=ious), SCRATCH))
    assert finding.problem == "2 of 4 classes have an IoU below 0.01: car, boat"
    assert ["--weights" in remedy for remedy in finding.remedies] == [False, True, False, False]


def test_only_a_few_of_many_unlearned_classes_are_named() -> None:
    ious = {f"class {index}": 0.0 for index in range(150)}
    finding = only(judge(history_of(HEALTHY, ious=ious), SCRATCH))
    assert finding.problem.endswith(f"class {NUM_NAMED - 1}, and {150 - NUM_NAMED} more")


def test_what_the_run_has_already_is_not_proposed_again() -> None:
    facts = replace(SCRATCH, has_weights=True, favors_rare_classes=True)
    finding = only(judge(history_of(HEALTHY, ious={"sky": 0.9, "car": 0.0}), facts))
    assert finding.remedies == (FEW_STEPS, "more training images of these classes")


def test_a_run_of_few_steps_that_has_not_learned_a_class_needs_more_before_anything_else() -> None:
    history = history_of(HEALTHY, ious={"sky": 0.9, "car": 0.0})
    assert only(judge(history, SCRATCH)).remedies[0] == FEW_STEPS
    in_steps = only(judge(history, replace(SCRATCH, steps=40)))
    assert in_steps.remedies[0] == "more steps, such as --steps 500, with another --output, since 40 steps are few"
    history.validations[-1]["step"] = MIN_STEPS
    assert not [remedy for remedy in only(judge(history, SCRATCH)).remedies if "few" in remedy]


def test_the_classes_are_judged_by_the_best_checkpoint() -> None:
    history = history_of(HEALTHY)
    history.validations[0]["metrics"]["iou"] = {"sky": 0.5, "car": 0.0}
    assert judge(history, SCRATCH) == []


def test_a_run_whose_miou_still_rises_needs_more_epochs() -> None:
    rising = tuple(0.03 * epoch for epoch in range(1, 11))
    finding = only(judge(history_of(rising), SCRATCH))
    assert finding.problem == "mIoU was still rising: 0.2100 in epoch 7, 0.3000 in epoch 10"
    assert finding.remedies == ("more epochs, such as --epochs 20 with another --output",)


def test_a_run_whose_length_is_in_steps_is_advised_in_steps() -> None:
    in_steps = replace(SCRATCH, steps=1000)
    rising = tuple(0.03 * epoch for epoch in range(1, 11))
    assert only(judge(history_of(rising), in_steps)).remedies == (
        "more steps, such as --steps 2000 with another --output",
    )
    falling = (0.2, 0.35, 0.45, 0.5, 0.48, 0.46, 0.44, 0.42, 0.41, 0.4)
    best = history_of(falling).best()
    assert best is not None
    assert only(judge(history_of(falling), in_steps)).remedies[2] == f"fewer steps (--steps {best['step']})"


def test_two_epochs_are_enough_to_see_a_rise_and_one_is_not() -> None:
    facts = replace(SCRATCH, epochs=2)
    assert "still rising" in only(judge(history_of((0.11, 0.29), (2.0, 1.5)), facts)).problem
    assert judge(history_of((0.29,), (2.0,)), replace(SCRATCH, epochs=1)) == []


def test_the_published_run_that_was_stopped_early_was_still_improving() -> None:
    measured = json.loads(Path(REPOSITORY, "benchmarks/results/camvid-cpu.json").read_text())["history"]
    history = History()
    for before, after in pairwise([{"steps": 0, "epochs": 0.0}, *measured]):
        middle = (before["epochs"] + after["epochs"]) / 2
        history.add(step_record(after["steps"] - 1, epoch=middle, loss=after["loss"]))
        record = validation_record(after["steps"], after["miou"], after["epochs"], pictures=0)
        record["metrics"]["iou"] = {"sky": 0.9}
        history.add(record)
    facts = replace(SCRATCH, epochs=history.validations[-1]["epoch"])
    assert "still rising" in only(judge(history, facts)).problem


def test_a_falling_loss_with_a_falling_miou_is_overfitting() -> None:
    mious = (0.2, 0.35, 0.45, 0.5, 0.48, 0.46, 0.44, 0.42, 0.41, 0.4)
    finding = only(judge(history_of(mious), SCRATCH))
    assert finding.problem.startswith("Overfitting: mIoU fell from 0.5000 in epoch 4, which best/ keeps, to 0.4000")
    assert finding.remedies[0] == "more training images (40 now)"
    assert "--weights" in finding.remedies[1]
    assert finding.remedies[2] == "fewer epochs (--epochs 4)"
    pretrained = only(judge(history_of(mious), replace(SCRATCH, has_weights=True)))
    assert "lower learning rate" in pretrained.remedies[1]


@pytest.mark.parametrize(
    ("mious", "losses"),
    [
        pytest.param((0.2, 0.35, 0.45, 0.5, 0.48, 0.47, 0.48, 0.46, 0.47, 0.47), FALLING, id="a small decline"),
        pytest.param((0.2, 0.35, 0.6, 0.4, 0.48, 0.47, 0.48, 0.5, 0.47, 0.48), FALLING, id="one outlier"),
        pytest.param(
            (0.2, 0.35, 0.45, 0.5, 0.48, 0.46, 0.44, 0.42, 0.41, 0.4),
            (2.0, 1.5, 1.0, *[1.0] * 7),
            id="a loss that does not fall",
        ),
    ],
)
def test_a_decline_that_may_be_noise_is_not_overfitting(mious: tuple[float, ...], losses: tuple[float, ...]) -> None:
    assert judge(history_of(mious, losses), SCRATCH) == []


def test_a_loss_that_does_not_fall_is_the_only_finding() -> None:
    history = history_of((0.01,) * 9 + (0.03,), (2.4, *[2.35] * 9), {"sky": 0.3, "car": 0.0})
    finding = only(judge(history, SCRATCH))
    assert finding.problem.startswith("The training loss did not fall: ")
    assert finding.remedies[0] == "a lower learning rate, such as --learning-rate 0.002"


def test_a_run_that_continues_another_may_keep_its_loss() -> None:
    assert judge(history_of((0.5,) * 10, (0.3,) * 10), replace(SCRATCH, has_weights=True)) == []


def test_a_loss_that_was_never_finite_is_no_finding() -> None:
    history = history_of(HEALTHY)
    for record in history.steps:
        record["loss"] = None
    assert judge(history, SCRATCH) == []


def test_the_facts_are_those_of_the_resolved_configuration() -> None:
    resolved = {**run_config("x").model_dump(mode="json"), "num_images": {"train": 40, "val": 8}}
    assert RunFacts.of(resolved) == replace(SCRATCH, epochs=100, learning_rate=0.01)
    resolved["optimization"] |= {"epochs": None, "steps": 5}
    in_steps = RunFacts.of(resolved)  # 40 images are two batches and a half
    assert (in_steps.epochs, in_steps.steps) == (2.5, 5)
    resolved |= {"weights": "file:///w", "loss": {"class_weights": [], "ohem_threshold": 0.7}}
    facts = RunFacts.of(resolved)
    assert facts.has_weights
    assert facts.favors_rare_classes
    resolved["loss"]["ohem_threshold"] = None
    assert not RunFacts.of(resolved).favors_rare_classes
    resolved["data"]["sampling_factors"] = {"car": 2}
    assert RunFacts.of(resolved).favors_rare_classes


def test_the_terminal_shows_two_lines_for_each_finding() -> None:
    assert verdict_lines([Finding("mIoU fell", ("more images", "fewer epochs"))]) == [
        "Verdict          mIoU fell",
        "  Try            more images; fewer epochs",
    ]
    assert verdict_lines([]) == ["Verdict          no problems found"]
