"""Validation of a run's checkpoints in parallel with training: Ray Train starts one task per checkpoint."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.weights.checkpoint import IMAGENET_MEAN as MEAN
from pipeline import storage
from pipeline.checkpoints.predictor import PredictorSpec
from pipeline.cluster.sizing import Reservation
from pipeline.config.jobs import TrainConfig
from pipeline.config.training import ProtocolConfig, ValidationConfig
from pipeline.console import duration
from pipeline.datasets import Pair
from pipeline.errors import raise_user_error, user_error
from pipeline.evaluate.evaluation import evaluate
from pipeline.evaluate.stages import EvalOptions
from pipeline.train.history import epochs_of
from pipeline.train.run_folder import num_steps

NUM_WORST = 6  # images that the report shows


def predictor_spec(uri: str, config: TrainConfig, protocol: ProtocolConfig) -> PredictorSpec:
    """Return the predictor that validates a run's checkpoint."""
    return PredictorSpec(
        checkpoint=uri,
        protocol=protocol,
        gpu=config.validation.gpu,
        precision=config.optimization.prediction_precision,
        threads=config.validation.predictor_cpus,
        fill=MEAN,
    )


def predictors_of(settings: ValidationConfig) -> Reservation:
    """Return the resources of the predictors that validate."""
    return Reservation("validation predictors", settings.predictors, settings.predictor_cpus, settings.gpu)


@dataclass(frozen=True)
class Validator:
    """Validator of a run's checkpoint folders. It uses the same predictor as labeling."""

    config: TrainConfig
    pairs: Sequence[Pair]
    num_train: int  # images
    output: str
    progress_actor: Any

    def __call__(self, checkpoint: Any, **_: Any) -> dict[str, Any]:
        """Return the metrics of a `ray.train.Checkpoint`; Ray Train selects the best checkpoint by 'miou'.

        Errors are also sent to the progress actor, where the workers find them and stop at the next checkpoint.
        """
        try:
            return self.validate(posixpath.basename(checkpoint.path.rstrip("/")))
        except Exception as error:
            known = user_error(error)
            self.progress_actor.report_error.remote(str(known or f"validation of {checkpoint.path} failed: {error!r}"))
            raise_user_error(error)

    def validate(self, name: str) -> dict[str, Any]:
        """Return the metrics of the run's checkpoint folder `name`. Raises UserError."""
        config, settings = self.config, self.config.validation
        uri = storage.join(self.output, name)
        spec = predictor_spec(uri, config, settings.protocol)
        options = EvalOptions(panel=config.tracking.panel, worst=NUM_WORST)
        result = evaluate(spec, self.pairs, config.data, predictors_of(settings), options)
        metrics = result.as_dict([entry.name for entry in config.data.classes])
        steps, steps_per_epoch = num_steps(name), self.num_train // config.optimization.batch_size
        epoch = epochs_of(steps, steps_per_epoch)
        num_epochs = epochs_of(config.optimization.total_steps(self.num_train), steps_per_epoch)
        log = f"Epoch {epoch}/{num_epochs} · validation mIoU {result.metrics.miou:.4f} · "
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
