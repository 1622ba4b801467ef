"""Training step of a configuration."""

from pipeline.config.training import LossConfig, OptimizationConfig
from pipeline.train.build import step_options


def test_pixels_with_the_ignore_index_of_the_dataset_have_no_loss() -> None:
    options = step_options(OptimizationConfig(), LossConfig(), ignore_index=11)
    assert options.loss.ignore_index == 11
