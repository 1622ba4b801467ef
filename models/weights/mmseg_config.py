"""Metadata of MMSegmentation checkpoints: class names, colors, and the training configuration.

The configuration is Python source. It is parsed but never executed; only literals and `dict(...)` are supported.
"""

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple

# Options of the backbone that no tensor shows: (MMSegmentation's default, the value that PSPNet here supports).
_BACKBONE = {
    "strides": ((1, 2, 2, 2), (1, 2, 1, 1)),
    "dilations": ((1, 1, 1, 1), (1, 1, 2, 4)),
    "style": ("pytorch", "pytorch"),
    "multi_grid": (None, None),
}


class Description(NamedTuple):
    """Contents of a checkpoint's "meta"; None or empty for missing entries.

    `function` has fields of Architecture, `normalisation` the fields mean and std of Metadata.
    """

    classes: list[str] | None
    colors: list[list[int]] | None
    function: dict[str, Any]
    normalisation: dict[str, Any]


def describe(meta: Mapping[str, Any]) -> Description:
    """Read the "meta" of MMSegmentation 0.x or 1.x.

    Raises ValueError for a configuration that PSPNet here does not support, such as output stride 32.
    """
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    classes = dataset.get("classes", meta.get("CLASSES"))
    colors = dataset.get("palette", meta.get("PALETTE"))
    settings = _assignments(meta.get("cfg", meta.get("config")))
    model = _section(settings, "model")
    backbone, head = _section(model, "backbone"), _section(model, "decode_head")
    preprocessor = _section(settings, "img_norm_cfg") or _section(model, "data_preprocessor")
    _require_same_function(backbone, preprocessor)

    function: dict[str, Any] = {}
    if backbone and head:
        function["contract_dilation"] = bool(backbone.get("contract_dilation", False))
        function["align_corners"] = bool(head.get("align_corners", False))
        scales = head.get("pool_scales", (1, 2, 3, 6))
        function["bins"] = tuple(scales) if isinstance(scales, (list, tuple)) else None
    return Description(
        classes=[str(name) for name in classes] if isinstance(classes, (list, tuple)) else None,
        colors=[list(color) for color in colors] if _are_colors(colors) else None,
        function=function,
        normalisation={name: preprocessor[name] for name in ("mean", "std") if _are_numbers(preprocessor.get(name))},
    )


def _require_same_function(backbone: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
    unfit = []
    for name, (default, supported) in _BACKBONE.items() if backbone else ():
        value = backbone.get(name, default)
        if (tuple(value) if isinstance(value, list) else value) != supported:
            unfit.append(f"backbone {name} {value!r} instead of {supported!r}")
    unfit += [
        f"{name} {preprocessor[name]!r} instead of True"
        for name in ("to_rgb", "bgr_to_rgb")
        if preprocessor.get(name, True) is not True
    ]
    if unfit:
        raise ValueError(
            f"the configuration of the model differs from PSPNet here: {'; '.join(unfit)}. "
            "Use one of MMSegmentation's D8 checkpoints with style 'pytorch'."
        )


def _assignments(text: Any) -> dict[str, Any]:
    """Return the literal values that a configuration assigns, by name; empty if it is not Python source."""
    if not isinstance(text, str):
        return {}
    try:
        statements = ast.parse(text).body
        return {
            statement.targets[0].id: _literal(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, which may contain calls like `dict(a=1)`; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def _are_numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)


def _are_colors(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(_are_numbers(color) for color in values)
