"""Properties of cluster.yaml, checked without AWS; tests/test_deploy_aws.py launches it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.sizing import DECODE_CPUS
from tests.autoscaling import launched_for, segmentation_requests, training_requests
from tests.aws_account import cluster_file
from tests.conftest import REPOSITORY

SCRIPTS = sorted(path for folder in ("deploy", "scripts") for path in (REPOSITORY / folder).rglob("*.sh"))
WORKERS = ("gpu", "cpu")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return cluster_file()


def node_configs(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, node_type in config["available_node_types"].items():
        yield name, node_type["node_config"]


def commands(config: dict[str, Any]) -> list[str]:
    """Every shell command of the file."""
    return [one for key, listed in config.items() if key.endswith("_commands") for one in listed]


def test_every_key_is_explained() -> None:
    """By a comment on its line or above it, or above the keys of an empty list that it stands among."""
    above = ""
    for line in (REPOSITORY / "cluster.yaml").read_text().splitlines():
        if re.match(r"\w+:", line):
            explained = "#" in line or above.startswith("#") or (above.endswith(": []") and line.endswith(": []"))
            assert explained, line
        above = line


def test_workers_start_from_none(config: dict[str, Any]) -> None:
    for name in WORKERS:
        assert config["available_node_types"][name]["min_workers"] == 0
        assert 0 < config["available_node_types"][name]["max_workers"] <= config["max_workers"]


def test_workers_ask_for_spot_and_the_head_does_not(config: dict[str, Any]) -> None:
    markets = {name: node.get("InstanceMarketOptions", {}).get("MarketType") for name, node in node_configs(config)}
    assert markets == {"head": None, "gpu": "spot", "cpu": "spot"}


def test_every_machine_wants_session_tokens_for_its_credentials(config: dict[str, Any]) -> None:
    for name, node in node_configs(config):
        assert node["MetadataOptions"]["HttpTokens"] == "required", name
        assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1, name


def test_every_disk_is_encrypted_and_goes_away_with_its_machine(config: dict[str, Any]) -> None:
    for name, node in node_configs(config):
        assert node["BlockDeviceMappings"], name
        for disk in node["BlockDeviceMappings"]:
            assert disk["Ebs"]["Encrypted"] is True, name
            assert disk["Ebs"]["DeleteOnTermination"] is True, name
    assert config["provider"]["cache_stopped_nodes"] is False, "stopped workers would go on costing their disks"


def test_machines_have_roles_and_the_file_no_keys(config: dict[str, Any]) -> None:
    assert all("IamInstanceProfile" in node for _, node in node_configs(config))
    assert "aws_credentials" not in config["provider"]
    assert not re.search(r"AKIA|aws_secret|AWS_SECRET", (REPOSITORY / "cluster.yaml").read_text())


def test_ray_makes_no_security_group_of_its_own(config: dict[str, Any]) -> None:
    """It would open SSH to the world, and so would a list of rules in the file: Ray adds that rule to them."""
    assert all(node["SecurityGroupIds"] for _, node in node_configs(config))
    assert "security_group" not in config["provider"]
    assert "0.0.0.0/0" not in (REPOSITORY / "cluster.yaml").read_text()


def test_head_has_no_cpu_to_decode_with_and_no_public_dashboard(config: dict[str, Any]) -> None:
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    (start,) = [one for one in config["head_start_ray_commands"] if "--head" in one]
    assert "--dashboard-host=127.0.0.1 " in start


def test_the_environment_is_that_of_the_constraints(config: dict[str, Any]) -> None:
    (setup,) = config["setup_commands"]
    script = (REPOSITORY / setup.split("~/sceneparse/")[1]).read_text()
    assert re.search(r'uv pip install .*?--constraint "\$code/constraints.txt"', script, re.DOTALL)
    assert all((REPOSITORY / local).exists() for local in config["file_mounts"].values() if not local.startswith("~"))


def test_what_is_copied_to_the_nodes_suffices_to_install_the_package(config: dict[str, Any]) -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = {one.rstrip("*") for one in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {Path(local).name for local in config["file_mounts"].values()}
    assert packages | {"pyproject.toml", "constraints.txt", "deploy", project["project"]["readme"]} <= copied
    # `ray up` reads all that it copies, and would read the 7 GB of .venv, too.
    assert "." not in config["file_mounts"].values()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    found = subprocess.run([shellcheck, "--norc", script], text=True, capture_output=True)
    assert found.returncode == 0, found.stdout


def test_commands_are_clean(config: dict[str, Any]) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    for command in commands(config):
        options = ["--norc", "--shell=bash", "--exclude=SC1090", "-"]  # ~ is not followed
        found = subprocess.run([shellcheck, *options], input=command, text=True, capture_output=True)
        assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_start_gets_the_token_mode_and_all_threads(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """Each command as the launcher gives it to SSH, in a home of its own; `ray` and `sudo` write down what they get."""
    from ray.autoscaler._private.command_runner import _with_interactive
    from ray.autoscaler._private.util import with_envs

    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
    (binaries / "ray").write_text('#!/bin/bash\n{ echo "$@"; env; } > ~/"ray $1"\n')
    (binaries / "sudo").write_text('#!/bin/bash\necho "$@" >> ~/sudo\n')
    for program in ("ray", "sudo"):
        (binaries / program).chmod(0o755)
    (tmp_path / "sceneparse").symlink_to(REPOSITORY)
    (tmp_path / ".bashrc").touch()
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for command in with_envs(config[f"{kind}_start_ray_commands"], {"RAY_HEAD_IP": "10.0.0.1"}):
        remote = " ".join(_with_interactive(command))
        subprocess.run(["bash", "-c", remote], env=environment, check=True, stdin=subprocess.DEVNULL, timeout=60)

    for name in ("stop", "start"):
        arguments, *variables = (tmp_path / f"ray {name}").read_text().splitlines()
        assert "RAY_AUTH_MODE=token" in variables, name
        assert not [one for one in variables if one.startswith(("OMP_NUM_THREADS=", "PYTHONWARNINGS="))], name
    assert "--object-spilling-directory=/mnt/scratch/spill" in arguments
    assert ("--head" if kind == "head" else "--address=10.0.0.1:6379") in arguments
    assert "install --directory --mode 700" in (tmp_path / "sudo").read_text().splitlines()[-1]


def test_the_token_reaches_every_node(config: dict[str, Any]) -> None:
    """Ray reads ~/.ray/auth_token; the head hands on to workers what was copied to it."""
    assert config["file_mounts"][f"/home/{config['auth']['ssh_user']}/.ray/auth_token"] == "~/.ray/auth_token"


def test_autoscaler_meets_all_that_a_segmentation_asks_for(config: dict[str, Any]) -> None:
    started = launched_for(config, segmentation_requests(config, predictors=8))
    assert set(started) == {"gpu", "cpu"}
    assert started["gpu"] == 8


def test_autoscaler_meets_all_that_a_training_asks_for(config: dict[str, Any]) -> None:
    assert launched_for(config, training_requests(workers=8))["gpu"] == 8


def test_decoding_alone_starts_no_gpu_node(config: dict[str, Any]) -> None:
    assert set(launched_for(config, [{"CPU": DECODE_CPUS}] * 64)) == {"cpu"}
