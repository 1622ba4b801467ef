"""Tables of an ablation from made-up results: the paper's layout and numbers, means, spreads and what is missing."""

import json

import pyarrow as pa

from pipeline.ablate.grid import trials_of
from pipeline.ablate.tables import RESULTS, Row, Table, tables_of
from pipeline.config.jobs import AblateConfig
from pipeline.config.loading import load_settings
from pipeline.datasets.scenes import CLASSES

RECIPE = ["--model.backbone", "resnet18"]
SCENE_CLASSES = json.dumps([{"name": entry.name, "color": entry.color} for entry in CLASSES])
PLAIN_CLASSES = '[{"name": "sky", "color": [0, 0, 0]}, {"name": "road", "color": [1, 1, 1]}]'
AMBIGUOUS = ("road", "water", "car", "boat", "house", "skyscraper")


def configured(*options: str, classes: str = SCENE_CLASSES) -> AblateConfig:
    argv = ["--output", "out", "--data.root", "scenes", "--data.classes", classes, *RECIPE, *options]
    return load_settings(AblateConfig, argv, prog="jobs/ablate.py")


def row(run: str, seed: int, miou: float, context: float = 0.5, protocol: str = "single-scale") -> Row:
    iou = {entry.name: context if entry.name in AMBIGUOUS else 0.9 for entry in CLASSES}
    return {
        "run": f"{run}-seed{seed}",
        "seed": seed,
        "protocol": protocol,
        "miou": miou,
        "pixel_accuracy": 0.8,
        "class_iou": list(iou.items()),
    }


def line(table: Table, label: str) -> list[str]:
    (found,) = [cells for cells in table.rows if cells[0] == label]
    return found[1:]


def test_a_row_is_mean_and_spread_over_seeds_beside_the_papers_numbers() -> None:
    config = configured("--experiments", "pooling", "--seeds", "0,1")
    rows = [row("resnet18-none-aux0.4", 0, 0.50, 0.30), row("resnet18-none-aux0.4", 1, 0.52, 0.34)]
    table, _ = tables_of(config, rows)
    assert table.header == ["", "mIoU", "pixel acc.", "context mIoU", "paper mIoU", "paper acc."]
    # The standard deviation of 50 and 52 with one degree of freedom is 1.41.
    assert line(table, "ResNet18-Baseline") == ["51.00 ± 1.41", "80.00 ± 0.00", "32.00 ± 2.83", "37.23", "78.01"]
    assert [cells[0] for cells in table.rows] == [
        "ResNet18-Baseline",
        *("+ B1 + MAX", "+ B1 + AVE", "+ B1236 + MAX", "+ B1236 + AVE"),
        *("+ B1 + MAX + DR", "+ B1 + AVE + DR", "+ B1236 + MAX + DR", "+ B1236 + AVE + DR"),
    ]


def test_what_is_not_trained_yet_is_a_dash_or_a_mean_that_says_of_how_many() -> None:
    config = configured("--experiments", "pooling", "--seeds", "0,1,2")
    table, _ = tables_of(config, [row("resnet18-none-aux0.4", seed, 0.5) for seed in (0, 2)])
    assert line(table, "ResNet18-Baseline")[0] == "50.00 ± 0.00 (2 of 3)"
    assert line(table, "+ B1 + MAX") == ["–", "–", "–", "39.94", "79.46"]
    assert line(table, "+ B1 + MAX + DR")[-2:] == ["–", "–"]


def test_one_seed_has_no_spread() -> None:
    config = configured("--experiments", "auxiliary", "--seeds", "4", "--auxiliary-weights", "0,0.4")
    (table,) = tables_of(config, [row("resnet18-none-noaux", 4, 0.4567)])
    assert line(table, "ResNet18 without AL") == ["45.67", "80.00", "50.00", "35.82", "77.07"]


def test_the_claim_compares_networks_of_equal_seeds_that_differ_in_their_bins_alone() -> None:
    config = configured("--experiments", "pooling", "--seeds", "0,1")
    rows = [
        row("resnet18-none-aux0.4", 0, 0.50, 0.30),
        row("resnet18-none-aux0.4", 1, 0.60, 0.50),
        row("resnet18-b1-average-aux0.4", 0, 0.52, 0.34),
        row("resnet18-b1-average-aux0.4", 1, 0.59, 0.52),
        row("resnet18-b1236-average-aux0.4", 1, 0.70, 0.80),
        row("resnet18-b1236-average-dr-aux0.4", 0, 0.90, 0.90),
    ]
    claim = tables_of(config, rows)[1]
    # +2 and -1 points: the mean is +0.5, and the seeds' own spread of 10 points is not in the differences.
    assert line(claim, "+ B1 + AVE − ResNet18-Baseline") == [
        *("+0.50 ± 2.12", "1 of 2", "+3.00 ± 1.41", "2 of 2"),
        "+2.84",
    ]
    assert line(claim, "+ B1236 + AVE − B1 + AVE") == [
        *("+11.00 (1 of 2)", "1 of 1", "+28.00 (1 of 2)", "1 of 1"),
        "+1.00",
    ]
    assert line(claim, "+ B1236 + AVE + DR − B1 + AVE + DR") == ["–", "0 of 0", "–", "0 of 0", "–"]
    assert len(claim.rows) == 8


def test_scales_stand_below_each_other_for_each_depth() -> None:
    config = configured("--experiments", "scales", "--seeds", "0", "--backbones", "resnet18,resnet50")
    run = "resnet50-b1236-average-dr-aux0.4"
    rows = [row(run, 0, 0.41), row(run, 0, 0.43, protocol="multi-scale")]
    (table,) = tables_of(config, rows)
    assert [cells[0] for cells in table.rows] == ["PSPNet(18) SS", "PSPNet(18) MS", "PSPNet(50) SS", "PSPNet(50) MS"]
    assert line(table, "PSPNet(50) SS") == ["41.00", "80.00", "50.00", "41.68", "80.04"]
    assert line(table, "PSPNet(50) MS") == ["43.00", "80.00", "50.00", "42.78", "80.76"]


def test_classes_of_other_data_have_no_column_of_context() -> None:
    config = configured("--experiments", "pooling", classes=PLAIN_CLASSES)
    pooling, claim = tables_of(config, [])
    assert "context mIoU" not in [*pooling.header, *claim.header]
    assert "Context" not in pooling.note


def test_an_ambiguous_class_that_never_occurred_does_not_count() -> None:
    config = configured("--experiments", "auxiliary", "--seeds", "0", "--auxiliary-weights", "0.4")
    without_boats = row("resnet18-none-aux0.4", 0, 0.5, context=0.4)
    without_boats["class_iou"] = [(name, iou) for name, iou in without_boats["class_iou"] if name != "boat"]
    (table,) = tables_of(config, [without_boats])
    assert line(table, "with AL (α = 0.4)")[2] == "40.00"


def test_text_has_aligned_columns_and_markdown_the_same_cells() -> None:
    table = Table("Title", "Note.", ["", "mIoU"], [["a", "1.00 ± 0.10"], ["longer", "–"]])
    assert table.text().splitlines() == [
        *("Title", "Note.", ""),
        "               mIoU",
        "------  -----------",
        "a       1.00 ± 0.10",
        "longer            –",
    ]
    assert table.markdown().splitlines() == [
        *("## Title", "", "Note.", ""),
        *("|  | mIoU |", "| - | -: |", "| a | 1.00 ± 0.10 |", "| longer | – |"),
    ]


def test_every_run_of_a_grid_finds_its_row() -> None:
    """Names of runs and cells of tables come from the same settings: nothing that was trained goes missing."""
    config = configured("--seeds", "0,1", "--backbones", "resnet18,resnet34")
    rows = [
        row(trial.setting.name, trial.seed, 0.5, protocol=protocol)
        for trial in trials_of(config)
        for protocol in trial.protocols
    ]
    for table in tables_of(config, rows):
        assert all(cells[1] != "–" and "of 2)" not in cells[1] for cells in table.rows), table.title


def test_the_schema_takes_what_is_written() -> None:
    full = row("resnet18-b1-max-aux0.4", 0, 0.5) | {
        "experiments": ["pooling"],
        "backbone": "resnet18",
        "bins": [1],
        "pooling": "max",
        "reduce": False,
        "auxiliary_weight": 0.4,
        "steps": 3,
        "seconds": 1.5,
        "config_hash": "00",
    }
    assert pa.Table.from_pylist([full], RESULTS).to_pylist() == [full]
