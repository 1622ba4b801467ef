"""Validation of a run's checkpoints, beside training: Ray Train runs it as a task for each of them."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.config.jobs import TrainConfig
from pipeline.console import duration
from pipeline.datasets import Pair
from pipeline.errors import user_error
from pipeline.evaluate.evaluation import evaluate

NUM_WORST = 6  # images that the report shows


@dataclass(frozen=True)
class Validator:
    """Validates a checkpoint folder of a run with the predictor that labels buckets."""

    config: TrainConfig
    pairs: Sequence[Pair]
    num_train: int  # images
    output: str
    progress_actor: Any

    def __call__(self, checkpoint: Any, **_: Any) -> dict[str, Any]:
        """Metrics of a `ray.train.Checkpoint`, for Ray Train to choose the best by 'miou'.

        What the user has to mend goes to the board, where the workers find it: training stops at its next checkpoint.
        """
        try:
            return self.validate(posixpath.basename(checkpoint.path.rstrip("/")))
        except Exception as error:
            known = user_error(error)
            self.progress_actor.report_error.remote(str(known or f"validation of {checkpoint.path} failed: {error!r}"))
            raise known or error from None

    def validate(self, name: str) -> dict[str, Any]:
        """Metrics of the checkpoint folder `name` of the run. Raises UserError."""
        config, settings = self.config, self.config.validation
        uri = storage.join(self.output, name)
        result = evaluate(
            uri,
            self.pairs,
            config.data,
            settings.protocol,
            gpu=settings.gpu,
            predictors=settings.predictors,
            predictor_cpus=settings.predictor_cpus,
            precision=config.optimization.prediction_precision,
            panel=config.tracking.panel,
            worst=NUM_WORST,
        )
        metrics = result.as_dict([entry.name for entry in config.data.classes])
        steps = int(name.rsplit("_", 1)[1])
        epoch = steps // (self.num_train // config.optimization.batch_size)
        log = f"Epoch {epoch}/{config.optimization.epochs} · validation mIoU {result.metrics.miou:.4f} · "
        self.progress_actor.log.remote(
            f"{log}pixel accuracy {result.metrics.pixel_accuracy:.4f} · {duration(result.seconds)}"
        )
        self.progress_actor.record.remote(
            kind="validation",
            step=steps,
            epoch=epoch,
            checkpoint=uri,
            seconds=result.seconds,
            metrics=metrics,
            panel=result.panel,
            worst=result.worst,
        )
        return metrics
