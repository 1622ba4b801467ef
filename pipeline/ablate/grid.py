"""The paper's ablations as a list of trainings: settings, seeds, and the paper's published results.

A setting that several experiments share is trained once per seed.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config.jobs import AblateConfig, TrainConfig
from pipeline.config.training import ProtocolConfig

PYRAMID = (1, 2, 3, 6)
SINGLE, MULTI = "single-scale", "multi-scale"


class Percent(NamedTuple):
    """Published result, in percent."""

    miou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class Setting:
    """Part of a recipe that the experiments vary."""

    backbone: str
    bins: tuple[int, ...]
    pooling: str
    reduce: bool
    auxiliary_weight: float  # 0: no auxiliary head

    @property
    def name(self) -> str:
        """Folder name, for example `resnet18-b1236-average-dr-aux0.4`."""
        parts = [self.backbone, "none"]
        if self.bins:
            parts = [self.backbone, f"b{''.join(map(str, self.bins))}", self.pooling] + (["dr"] if self.reduce else [])
        return "-".join([*parts, f"aux{self.auxiliary_weight:g}" if self.auxiliary_weight else "noaux"])


@dataclass(frozen=True)
class Case:
    """Row of one of the paper's tables, with the paper's result on ADE20K if there is one."""

    label: str
    setting: Setting
    protocol: str = SINGLE
    paper: Percent | None = None


@dataclass(frozen=True)
class Trial:
    """One training, and the protocols with which its model is tested."""

    setting: Setting
    seed: int
    experiments: tuple[str, ...]
    protocols: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.setting.name}-seed{self.seed}"


# ADE20K validation set, in percent: table 1 (ResNet50), table 2 (its baseline) and table 3 of the paper.
PAPER_BASELINE = Percent(37.23, 78.01)
PAPER_POOLING = {
    ((1,), "max", False): Percent(39.94, 79.46),
    ((1,), "average", False): Percent(40.07, 79.52),
    (PYRAMID, "max", False): Percent(40.18, 79.45),
    (PYRAMID, "average", False): Percent(41.07, 79.97),
    (PYRAMID, "max", True): Percent(40.87, 79.61),
    (PYRAMID, "average", True): Percent(41.68, 80.04),
}
PAPER_AUXILIARY = {
    0.0: Percent(35.82, 77.07),
    0.3: Percent(37.01, 77.87),
    0.4: PAPER_BASELINE,
    0.6: Percent(37.09, 77.84),
    0.9: Percent(36.99, 77.87),
}
PAPER_DEPTH = {
    (SINGLE, "resnet50"): Percent(41.68, 80.04),
    (SINGLE, "resnet101"): Percent(41.96, 80.64),
    (SINGLE, "resnet152"): Percent(42.62, 80.80),
    (SINGLE, "resnet269"): Percent(43.81, 80.88),
    (MULTI, "resnet50"): Percent(42.78, 80.76),
    (MULTI, "resnet101"): Percent(43.29, 81.39),
    (MULTI, "resnet152"): Percent(43.51, 81.38),
    (MULTI, "resnet269"): Percent(44.94, 81.69),
}


def cases_of(experiment: str, config: AblateConfig) -> list[Case]:
    """Return the rows of an experiment's table, in the paper's order."""
    return {"pooling": _pooling, "auxiliary": _auxiliary, "depth": _depth, "scales": _scales}[experiment](config)


def trials_of(config: AblateConfig) -> list[Trial]:
    """Return every training that the experiments need, once each; all settings of a seed come before the next seed."""
    experiments: dict[Setting, list[str]] = {}
    protocols: dict[Setting, list[str]] = {}
    for experiment in config.experiments:
        for case in cases_of(experiment, config):
            _add(experiments.setdefault(case.setting, []), experiment)
            _add(protocols.setdefault(case.setting, [SINGLE]), case.protocol)
    return [
        Trial(setting, seed, tuple(experiments[setting]), tuple(protocols[setting]))
        for seed in config.seeds
        for setting in experiments
    ]


def training_of(trial: Trial, config: AblateConfig, output: str) -> TrainConfig:
    """Return the configuration of a trial's training, which writes to `output`."""
    setting = trial.setting
    model = {
        "backbone": setting.backbone,
        "bins": setting.bins,
        "pooling": setting.pooling,
        "reduce": setting.reduce,
        "auxiliary": setting.auxiliary_weight > 0,
    }
    changed = {
        "output": output,
        "weights": config.weights and config.weights.replace("{backbone}", setting.backbone),
        "model": config.model.model_copy(update=model),
        "loss": config.loss.model_copy(update={"auxiliary_weight": setting.auxiliary_weight}),
        "optimization": config.optimization.model_copy(update={"seed": trial.seed}),
        "validation": config.validation.model_copy(update={"protocol": protocol_of(SINGLE, config)}),
    }
    base = {name: getattr(config, name) for name in TrainConfig.model_fields}
    # As in `load_settings`: the values are validated, and environment variables must not be read again.
    return TrainConfig.model_construct(**(base | changed))


def protocol_of(name: str, config: AblateConfig) -> ProtocolConfig:
    """Return the recipe's validation protocol at one scale or at several, with mirroring.

    The paper's results average the mirror image at one scale too: so does the authors' evaluation code.
    """
    scales = config.scales if name == MULTI else (1.0,)
    return config.validation.protocol.model_copy(update={"scales": scales, "mirror": True})


def _pooling(config: AblateConfig) -> list[Case]:
    # The paper has no row for B1 with dimension reduction. It is added here so that B1 and B1236 are comparable.
    cases = [Case(f"{_title(config.model.backbone)}-Baseline", _baseline(config), paper=PAPER_BASELINE)]
    for reduce in config.reductions:
        for bins in ((1,), PYRAMID):
            for pooling in config.poolings:
                short = "MAX" if pooling == "max" else "AVE"
                setting = Setting(config.model.backbone, bins, pooling, reduce, _weight(config))
                label = f"+ B{''.join(map(str, bins))} + {short}{' + DR' if reduce else ''}"
                cases.append(Case(label, setting, paper=PAPER_POOLING.get((bins, pooling, reduce))))
    return cases


def _auxiliary(config: AblateConfig) -> list[Case]:
    return [
        Case(
            f"with AL (α = {weight:g})" if weight else f"{_title(config.model.backbone)} without AL",
            _baseline(config, weight),
            paper=PAPER_AUXILIARY.get(weight),
        )
        for weight in config.auxiliary_weights
    ]


def _depth(config: AblateConfig) -> list[Case]:
    return [
        Case(
            f"PSPNet({backbone.removeprefix('resnet')})",
            Setting(backbone, PYRAMID, "average", True, _weight(config)),
            paper=PAPER_DEPTH.get((SINGLE, backbone)),
        )
        for backbone in config.backbones
    ]


def _scales(config: AblateConfig) -> list[Case]:
    """Return the networks of the depth experiment, each tested with both protocols."""
    return [
        Case(f"{case.label} {short}", case.setting, protocol, PAPER_DEPTH.get((protocol, case.setting.backbone)))
        for case in _depth(config)
        for protocol, short in ((SINGLE, "SS"), (MULTI, "MS"))
    ]


def _baseline(config: AblateConfig, weight: float | None = None) -> Setting:
    """Return the dilated FCN. Pooling and reduction have no effect without bins; fixed values avoid duplicates."""
    return Setting(config.model.backbone, (), "average", True, _weight(config) if weight is None else weight)


def _weight(config: AblateConfig) -> float:
    return config.loss.auxiliary_weight if config.model.auxiliary else 0.0


def _title(backbone: str) -> str:
    return backbone.replace("resnet", "ResNet")


def _add(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)
