"""A training that nothing happened to: what it printed and left, for tests that look at it or compare with it."""

import itertools
import posixpath
from dataclasses import dataclass

from tests.conftest import RunJob, make_bucket
from tests.scene_data import TRAIN_OPTIONS, write_training_set

EPOCHS, STEPS = 2, 8
# With everything that a resumed run has to restore: a moving average, warm-up, clipping, unfinished epochs.
OPTIONS = [
    *TRAIN_OPTIONS,
    *("--optimization.epochs", str(EPOCHS), "--optimization.log-every", "1", "--checkpoint-every", "3"),
    *("--optimization.ema-decay", "0.9", "--optimization.warmup-steps", "2", "--optimization.clip-norm", "5"),
    *("--optimization.micro-batch", "1", "--tracking.panel", "1"),
]


def with_changes(changes: dict[str, str]) -> list[str]:
    """Return OPTIONS with other values for some of them."""
    options = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True))
    return list(itertools.chain(*(options | changes).items()))


@dataclass(frozen=True)
class FinishedTraining:
    """A run of OPTIONS on two workers, and its dataset."""

    root: str  # URI of the dataset
    output: str
    printed: str

    def beside(self, name: str) -> str:
        """Return the URI of another run's output, beside this one's."""
        return posixpath.join(posixpath.dirname(self.output), name)


def finish_training(run_job: RunJob) -> FinishedTraining:
    bucket = make_bucket()
    write_training_set(f"{bucket}/scenes", num_train=16, num_val=2)
    done = run_job("jobs/train.py", "--data.root", f"{bucket}/scenes", "--output", f"{bucket}/run", *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    return FinishedTraining(f"{bucket}/scenes", f"{bucket}/run", done.stdout)
