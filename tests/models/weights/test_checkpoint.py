"""Checkpoint folders: what comes back, and what is said when something is wrong with one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import Architecture, Metadata, PSPNet, load, model_id, save
from models.inference.activation_ranges import activation_ranges

SMALL = Architecture("resnet18", 3, bins=(1, 2))
NAMES = ["road", "sky", "boat"]


def make_metadata(**changes) -> Metadata:
    return Metadata(**{"classes": NAMES, "colors": [[0, 0, 0], [1, 2, 3], [255, 0, 9]]} | changes)


@pytest.fixture(scope="module")
def model() -> PSPNet:
    torch.manual_seed(0)
    return PSPNet(SMALL)


@pytest.fixture(scope="module")
def saved(model: PSPNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save(folder, model, make_metadata(preprocessing={"long_side": 512}, metrics={"miou": 0.5}))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return shutil.copytree(saved, tmp_path / "best")


def edit_weights(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_checkpoint_comes_back_as_it_was_saved(model: PSPNet, folder: Path) -> None:
    loaded, metadata = load(folder, classes=NAMES)
    assert not loaded.training
    assert loaded.architecture == SMALL
    assert metadata == make_metadata(preprocessing={"long_side": 512}, metrics={"miou": 0.5})
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    loaded.train()(torch.randn(2, 3, 64, 64)).main.sum().backward()


def test_config_is_strict_json_and_no_temporary_file_stays(model: PSPNet, tmp_path: Path) -> None:
    save(tmp_path, model, make_metadata(metrics={"iou": [0.5, float("nan")]}))
    config = json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)
    assert config["id2label"] == {"0": "road", "1": "sky", "2": "boat"}
    assert config["metrics"] == {"iou": [0.5, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_channels_last_weights_can_be_saved(tmp_path: Path) -> None:
    model = PSPNet(SMALL).to(memory_format=torch.channels_last)
    save(tmp_path, model, make_metadata())
    assert model_id(tmp_path) == model_id(model, make_metadata())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"not a tensor file at all", b"\xff" * 64])
def test_foreign_weights_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        load(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xfa"])
def test_unreadable_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"architecture": {"backbone": "resnet18"}}, "num_classes missing"),
        ({"architecture": None}, "config.json: architecture is None; it must be an object"),
        ({"architecture": "resnet18"}, "architecture is 'resnet18'; it must be an object"),
        ({"id2label": NAMES}, r"id2label is \['road', .* it must be an object"),
        ({"id2label": {"0": "a", "1": "b", "2": None}}, "classes is .* it must be a list of names"),
        ({"id2label": {"0": "sky", "1": "road", "2": "sky"}}, "names must differ; given more than once: sky"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "entry '1' is missing"),
        ({"id2label": {"0": "a"}, "colors": [[0, 0, 0]]}, "1 class names"),
        ({"colors": []}, "3 classes but 0 colors"),
        ({"colors": None}, "colors is None; it must be a list"),
        ({"colors": [[0, 0, 0], [0, 0, 256], [1, 1, 1]]}, r"colors is .* from 0 to 255"),
        ({"colors": [[0, 0, 0], "red", [1, 1, 1]]}, r"colors is .* from 0 to 255"),
        ({"std": [1, 0, 1]}, r"std is \[1.0, 0.0, 1.0\]; it must be above zero"),
        ({"std": [1, float("nan"), 1]}, r"std is \[1, nan, 1\]; it must be three finite numbers"),
        ({"mean": [float("inf"), 0, 0]}, r"mean is \[inf, 0, 0\]; it must be three finite numbers"),
        ({"mean": ["120", 0, 0]}, r"mean is \['120', 0, 0\]; it must be three finite numbers"),
        ({"mean": [10**400, 0, 0]}, "it must be three finite numbers"),
        ({"mean": 120}, "mean is 120; it must be three finite numbers"),
        ({"temperature": 0}, "temperature is 0; it must be a finite number above zero"),
        ({"temperature": "warm"}, "temperature is 'warm'; it must be a finite number above zero"),
        ({"ignore_index": "255"}, "ignore_index is '255'; it must be an integer"),
        ({"ignore_index": None}, "ignore_index is None; it must be an integer"),
        ({"preprocessing": None}, "preprocessing is None; it must be an object"),
        ({"preprocessing": {"long_side": 0}}, r"long_side is 0; it must be a positive number of pixels, or null"),
        ({"preprocessing": {"long_side": 512.5}}, r"long_side is 512.5; it must be"),
        ({"preprocessing": {"long_side": True}}, r"long_side is True; it must be"),
        ({"metrics": [0.5]}, r"metrics is \[0.5\]; it must be an object"),
        ({"id2label": {"0": "a", "1": "\ud800", "2": "c"}}, r"config\.json is not valid JSON .*surrogates not allowed"),
        ({"preprocessing": {"\udfff": 1}}, r"config\.json is not valid JSON .*surrogates not allowed"),
    ],
)
def test_a_config_that_contradicts_itself_is_explained(folder: Path, changes: dict, message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_deeply_nested_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load(folder)


def test_json_that_only_its_reader_is_deep_enough_for_is_refused(folder: Path) -> None:
    """Writing it again, as for the model's id, takes more of the stack than reading it."""
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]
    edit_config(folder, preprocessing={"steps": nested})
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON \(it is nested more than 50 levels deep\)"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": [1] * 3000}, "at most 64 integers"),  # of which each would get no channel
        ({"bins": [100_000]}, "integers from 1 to 256"),
        ({"stem": "deep", "stem_channels": [2**31] * 3}, "three numbers of channels, 1 to 4096"),
    ],
)
def test_an_architecture_beyond_all_measure_is_refused(folder: Path, changes: dict, message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, architecture=config["architecture"] | changes)
    with pytest.raises(ValueError, match=rf"config\.json: Architecture: .* {message}"):
        load(folder)


def test_the_config_of_another_tool_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["UperNet"], "id2label": {"0": "road"}}))
    with pytest.raises(ValueError, match=r"format_version None, .* use a checkpoint written by Sceneparse"):
        load(folder)


def test_a_config_with_more_classes_than_the_weights_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    names = {str(index): f"class {index}" for index in range(5)}
    edit_config(folder, architecture=config["architecture"] | {"num_classes": 5}, id2label=names, colors=[[0] * 3] * 5)
    with pytest.raises(ValueError, match=r"2 of another shape|of another shape: .*head\.classifier\.weight \[3, "):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn])
def test_weights_of_another_number_type_are_refused(folder: Path, dtype: torch.dtype) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"head.bn.bias": torch.zeros(512).to(dtype)}))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"1 of another type: head\.bn\.bias {name} instead of float32"):
        load(folder)


def test_a_half_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is bfloat16; call model\.float\(\) before saving"):
        save(tmp_path, PSPNet(SMALL).bfloat16(), make_metadata())


def test_missing_left_over_and_misshapen_tensors_are_named(folder: Path) -> None:
    def edit(tensors) -> None:
        tensors["stranger"] = tensors.pop("backbone.conv1.weight")
        tensors["head.classifier.bias"] = torch.zeros(9)

    edit_weights(folder, edit)
    with pytest.raises(ValueError, match="do") as error:
        load(folder)
    assert "1 missing: backbone.conv1.weight" in str(error.value)
    assert "1 left over: stranger" in str(error.value)
    assert "head.classifier.bias [9] instead of [3]" in str(error.value)


def test_at_most_five_names_are_listed(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({f"extra{i}": torch.zeros(1) for i in range(9)}))
    with pytest.raises(ValueError, match=r"9 left over: extra0, extra1, extra2, extra3, extra4, \.\.\."):
        load(folder)


def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["head.conv.weight"].view(-1)[5:6].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"head\.conv\.weight has values that are NaN"):
        load(folder)
    model = PSPNet(SMALL)
    torch.nn.init.constant_(model.head.bn.bias, float("inf"))
    with pytest.raises(ValueError, match=r"head\.bn\.bias"):
        save(tmp_path / "bad", model, make_metadata())
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("classes", [["road", "sky"], ["road", "sea", "boat"], ["sky", "road", "boat"]])
def test_other_classes_are_refused(folder: Path, classes: list[str]) -> None:
    with pytest.raises(ValueError, match="was trained on other classes"):
        load(folder, classes=classes)


def test_metadata_of_other_classes_cannot_be_saved(model: PSPNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 class names"):
        save(tmp_path, model, Metadata(["a", "b"], [[0, 0, 0]] * 2))


def test_model_id_depends_on_what_the_model_computes_and_on_nothing_else(model: PSPNet, folder: Path) -> None:
    base = make_metadata(preprocessing={"long_side": 512})
    identity = model_id(model, base)
    assert len(identity) == 32
    assert identity == model_id(folder) == model_id(*load(folder))
    assert identity == model_id(model, replace(base, metrics={"miou": 1}, code_version="2"))
    assert identity != model_id(model, replace(base, mean=[0, 0, 0]))
    assert identity != model_id(model, replace(base, std=[1, 1, 1]))
    assert identity != model_id(model, replace(base, preprocessing={"long_side": 513}))
    other = PSPNet(replace(SMALL, align_corners=False))
    other.load_state_dict(model.state_dict())
    assert identity != model_id(other, base)
    edit_weights(folder, lambda tensors: tensors["head.conv.weight"].view(-1)[5:6].add_(1e-3))
    assert identity != model_id(folder)


def test_the_id_of_a_model_stays_what_it_was_in_earlier_versions() -> None:
    with torch.device("meta"):
        model = PSPNet(Architecture("resnet18", 3, bins=(1, 2), auxiliary=False))
    state = {
        name: (torch.arange(tensor.numel()) % 7 / 7).to(tensor.dtype).view(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    metadata = make_metadata(preprocessing={"long_side": 512})
    assert model_id(model, metadata) == "0a682774097c42d057041e3bcf8c6781"
    # Counts where it is not what all models were before it could be chosen.
    other = PSPNet(Architecture("resnet18", 3, bins=(1, 2), auxiliary=False, dilate_second=False))
    other.load_state_dict(state, assign=True)
    assert model_id(other, metadata) != "0a682774097c42d057041e3bcf8c6781"


@pytest.fixture(scope="module")
def calibration(model: PSPNet) -> dict[str, Any]:
    images = torch.randint(0, 256, (1, 65, 65, 3), dtype=torch.uint8)
    ranges = activation_ranges(model.eval(), [120.0] * 3, [60.0] * 3, [images])
    return {"ranges": ranges, "images": 1, "agreement": 0.99, "miou": {"float32": 0.51, "int8": 0.5}}


def test_a_calibration_comes_back_and_is_no_part_of_the_id(
    model: PSPNet, calibration: dict[str, Any], tmp_path: Path
) -> None:
    save(tmp_path, model, make_metadata(int8=calibration))
    loaded, metadata = load(tmp_path)
    assert metadata.int8 == calibration
    assert model_id(tmp_path) == model_id(loaded, metadata) == model_id(model, make_metadata())


def test_a_checkpoint_from_before_calibration_and_temperature_loads(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["int8"], config["temperature"]
    path.write_text(json.dumps(config))
    metadata = load(folder)[1]
    assert (metadata.int8, metadata.temperature) == ({}, 1.0)


def test_a_damaged_calibration_is_explained(folder: Path, calibration: dict[str, Any]) -> None:
    ranges = calibration["ranges"]
    block = ranges["layer1.0.conv2"]
    cases: list[tuple[Any, str]] = [
        ([], r"int8 is \[\]; it must be an object"),
        ({"ranges": {}}, r"int8 is damaged \('images'\); calibrate the checkpoint again"),
        (calibration | {"miou": 0.5}, "int8 is damaged"),
        (calibration | {"agreement": None}, r"int8\.agreement is None; it must be a finite number"),
        (calibration | {"ranges": ranges | {"head.conv": 3}}, "int8 is damaged"),
        (calibration | {"ranges": ranges | {"head.conv": {"input": [0]}}}, "int8 is damaged"),
        (calibration | {"ranges": ranges | {"head.conv": {"input": [0, "1"]}}}, r"head\.conv\.input\[1\] is '1'"),
        (
            calibration | {"ranges": {}},
            r"has no entry for head\.conv\.input, .*, \.\.\.; calibrate the checkpoint again",
        ),
        (
            calibration | {"ranges": ranges | {"layer1.0.conv2": {"input": [0, 1], "output": block["output"]}}},
            r"config\.json: int8\.ranges has no entry for layer1\.0\.conv2\.shortcut; calibrate",
        ),
    ]
    for int8, message in cases:
        edit_config(folder, int8=int8)
        with pytest.raises(ValueError, match=message):
            load(folder)
