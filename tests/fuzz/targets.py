"""Fuzz targets: the first cases of each, its mutations, and the properties that every case must have."""

import random
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

NAMES = ("decoder", "manifest", "inventory", "configuration", "checkpoint")


class Target(NamedTuple):
    """The parts of tests/fuzz/NAME.py. `check` names the outcome, and raises what the target must never raise."""

    seeds: Callable[[], list[bytes]]
    mutated: Callable[[bytes, random.Random, Sequence[bytes]], bytes]
    check: Callable[[bytes], str]


def target(name: str) -> Target:
    module = import_module(f"tests.fuzz.{name}")
    return Target(module.seeds, module.mutated, module.check)
