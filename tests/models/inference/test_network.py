import warnings

import pytest
import torch

import models.inference.fallback
import models.inference.network
from models import Architecture, Predictor, PSPNet
from models.inference.network import InferenceNetwork, compiled, convolution_names
from models.inference.preprocessing import NetworkInputs
from models.kernels import winograd
from models.kernels.convolution import Convolution
from models.kernels.selection import Precision, maker
from tests.requirements import BFLOAT16

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([120.0, 115, 100]), torch.tensor([60.0, 57, 55])
ARCHITECTURES = {
    "plain": Architecture("resnet18", 7),
    "deep": Architecture("resnet50", 7, stem="deep", stem_channels=(16, 16, 32), contract_dilation=True),
    "max": Architecture("resnet18", 7, pooling="max", align_corners=False, bins=(1, 4)),
    "wide levels": Architecture("resnet34", 7, reduce=False, bins=(2,), dilate_second=False),
    "no pyramid": Architecture("resnet18", 7, bins=()),
    "narrow": Architecture("resnet18", 7, width=20),
}


def make_model(architecture: Architecture) -> PSPNet:
    torch.manual_seed(0)
    model = PSPNet(architecture).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model


def make_images(height: int, width: int, batch: int = 1) -> torch.Tensor:
    """RGB minus the mean, (N, 3, H, W)."""
    torch.manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width)) - MEAN.view(3, 1, 1)


def inputs(images: torch.Tensor) -> NetworkInputs:
    """The same images, to be read row by row."""
    return NetworkInputs(images.permute(0, 2, 3, 1), images.shape[2:], torch.zeros(3))


def expected_logits(model: PSPNet, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images / STD.view(3, 1, 1)).permute(0, 2, 3, 1)


def network(model: PSPNet, precision: Precision = "float32") -> InferenceNetwork:
    return InferenceNetwork(model, STD, maker(precision, CPU), CPU)


def difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    assert result.dtype == torch.float32
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 2e-5), pytest.param("bfloat16", 3e-2, marks=BFLOAT16.mark)]
)
def test_it_is_the_networks_function(name: str, precision: Precision, tolerance: float) -> None:
    model, images = make_model(ARCHITECTURES[name]), make_images(97, 121, batch=2)
    expected = expected_logits(model, images)
    with torch.inference_mode():
        assert difference(network(model, precision)(images), expected) < tolerance


@pytest.mark.parametrize(
    ("name", "height"),
    [
        *((name, height) for name in ("plain", "max") for height in (64, 65, 121, 200)),
        *((name, height) for name in ("deep", "wide levels", "no pyramid") for height in (64, 65)),
        # Of many layers and of many strips: seconds each.
        *(
            pytest.param(name, height, marks=pytest.mark.exhaustive)
            for name in ("deep", "wide levels", "no pyramid")
            for height in (121, 200)
        ),
    ],
)
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=BFLOAT16.mark)])
def test_strips_of_rows_make_the_whole(
    precision: Precision, name: str, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.inference.network, "STRIP_BYTES", 1)  # eight rows of the image at a time
    model, images = make_model(ARCHITECTURES[name]), make_images(height, 73, batch=2)
    made = network(model, precision)
    with torch.inference_mode():
        assert difference(made.streamed(inputs(images)), made(images)) < 2e-5


def test_without_a_compiler_it_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "library", lambda: None)
    model, images = make_model(ARCHITECTURES["plain"]), make_images(65, 65)
    with torch.inference_mode():
        assert difference(network(model)(images), expected_logits(model, images)) < 5e-6


def test_without_onednn_it_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model, images = make_model(ARCHITECTURES["deep"]), make_images(65, 81)
    expected = expected_logits(model, images)
    made = network(model)
    with torch.inference_mode():
        assert difference(made(images), expected) < 5e-6
        assert difference(made.streamed(inputs(images)), expected) < 5e-6


@pytest.mark.slow
def test_torchs_compiler_takes_the_network_of_a_gpu_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a GPU convolutions are torch's own, as here without oneDNN; the rest of the graph is the same.
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for name in ("plain", "max"):
        model, images = make_model(ARCHITECTURES[name]), make_images(65, 81)
        call = compiled(network(model), backend="aot_eager")
        with torch.inference_mode():
            assert difference(call(images), expected_logits(model, images)) < 5e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_names_of_its_convolutions_are_known_without_making_it(name: str) -> None:
    model = make_model(ARCHITECTURES[name])
    made: dict[int, str] = {}

    def make(name: str, conv: torch.nn.Conv2d, relu: bool) -> Convolution:
        convolution = Convolution(conv, relu, torch.float32, CPU)
        made[id(convolution)] = name
        return convolution

    network_ = InferenceNetwork(model, STD, make, CPU)
    adding = {made[id(block.convolutions[-1])] for block in network_.blocks}
    assert convolution_names(model) == {name: name in adding for name in made.values()}


def small_network() -> InferenceNetwork:
    return InferenceNetwork(
        make_model(ARCHITECTURES["no pyramid"]),
        STD,
        lambda _, conv, relu: Convolution(conv, relu, torch.float32, CPU),
        CPU,
    )


def test_batches_of_up_to_twice_as_many_images_share_a_graph() -> None:
    network_ = small_network()
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        seen.append([tensor.shape[0] for tensor in inputs if tensor.dim() == 4 and tensor.shape[1] == 3])
        return graph.forward

    call = compiled(network_, backend=backend)
    with torch.inference_mode():
        for count in (3, 4, 1, 3):
            images_N3HW = (
                make_images(65, 65)[:1].repeat(count, 1, 1, 1) * torch.arange(1, count + 1)[:, None, None, None]
            )
            images_N3HW = images_N3HW.contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(call(images_N3HW), network_(images_N3HW))
    assert [counts[0] for counts in seen] == [4, 1]


def test_the_model_is_left_alone() -> None:
    model = make_model(ARCHITECTURES["plain"]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        network(model)(make_images(65, 65))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_large_image_gets_the_labels_of_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(ARCHITECTURES["plain"])
    images = torch.randint(0, 256, (2, 150, 130, 3), dtype=torch.uint8)
    made = Predictor(model, MEAN.tolist(), STD.tolist())
    whole = made.predict(images)
    monkeypatch.setattr(models.inference.network, "STRIP_BYTES", 1)
    made.max_feature_bytes = 1
    strips = made.predict(images)
    assert (whole.class_ids_NHW == strips.class_ids_NHW).mean() > 0.9999


def test_sizes_beyond_those_that_torch_compiles_run_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.inference.network, "COMPILED_SIZES", 1)
    network_ = small_network()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    call = compiled(network_, backend=backend)
    with torch.inference_mode():
        for side in (65, 73, 65):
            images_N3HW = make_images(side, 65)
            torch.testing.assert_close(call(images_N3HW), network_(images_N3HW))
    assert len(graphs) == 1


def test_each_network_of_a_process_has_graphs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.inference.network, "COMPILED_SIZES", 2)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    made = small_network()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for network_ in [made] * 8 + [small_network()]:  # 9 of 8 that torch keeps for one function
            compiled(network_, backend=backend)(make_images(65, 65))
        assert len(graphs) == 9
        call = compiled(made, backend=backend)
        for side in (65, 73, 81):
            call(make_images(side, 65))
    assert len(graphs) == 11


def test_a_result_is_not_overwritten_by_the_next() -> None:
    def like_a_cuda_graph(graph: torch.fx.GraphModule, _: object) -> object:
        output: list[torch.Tensor] = []

        def replay(*inputs: torch.Tensor) -> tuple[torch.Tensor]:
            (result,) = graph.forward(*inputs)
            if not output:
                output.append(result.clone())
            return (output[0].copy_(result),)

        return replay

    call = compiled(small_network(), backend=like_a_cuda_graph)
    images_N3HW = make_images(65, 65, batch=2)
    with torch.inference_mode():
        first = call(images_N3HW[:1])
        before = first.clone()
        second = call(images_N3HW[1:])
    assert torch.equal(first, before)
    assert not torch.equal(first, second)


def test_where_torch_cannot_compile_the_network_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.inference.fallback, "_can_compile", True)

    def backend(_: torch.fx.GraphModule, __: object) -> object:
        raise RuntimeError("Python.h: no such file")

    network_, images_N3HW = small_network(), make_images(65, 65)
    call = compiled(network_, backend=backend)
    with torch.inference_mode():
        with pytest.warns(RuntimeWarning, match=r"torch.compile failed.*RuntimeError: Python\.h"):
            first = call(images_N3HW)
        torch.testing.assert_close(first, network_(images_N3HW))
