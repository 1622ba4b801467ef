"""cluster.yaml and deploy/aws in an account that moto makes: Ray's own launcher starts what is promised."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest

from pipeline.cluster.aws_node_provider import SpotFirst
from tests.aws_account import REGION, TEMPLATE, Account, aws_account, cluster_file
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    # The template's own types, which moto would take for one text.
    (types,) = re.findall(r"Default: (\S+,\S+)", TEMPLATE)
    with aws_account(tmp_path_factory.mktemp("home"), WorkerTypes=types) as account:
        yield account


@pytest.fixture(scope="module")
def config(account: Account) -> dict[str, Any]:
    """cluster.yaml as `ray up` hands it to the head."""
    config = cluster_file()
    for node_type in config["available_node_types"].values():
        node_type["node_config"]["SecurityGroupIds"] = [account.outputs["SecurityGroup"]]
    return SpotFirst.bootstrap_config(SpotFirst.fillout_available_node_types_resources(config))


def launch(config: dict[str, Any], node_type: str, refusal: str | None = None) -> list[dict[str, Any]]:
    """Launch a node as Ray's autoscaler does; what EC2 then says of it. `refusal` is EC2's answer to spot."""
    from ray.autoscaler._private.aws import utils

    for cache in (utils.resource_cache, utils.client_cache):
        cache.cache_clear()
    provider = SpotFirst(config["provider"], config["cluster_name"])

    def refuse(params: dict[str, Any], **_: Any) -> None:
        if refusal and "InstanceMarketOptions" in params:
            error = {"Error": {"Code": refusal, "Message": "none of this type in this zone"}}
            raise botocore.exceptions.ClientError(error, "RunInstances")

    provider.ec2_fail_fast.meta.client.meta.events.register("provide-client-params.ec2.RunInstances", refuse)
    tags = {"ray-node-kind": "worker", "ray-node-name": "ray-sceneparse-worker", "ray-user-node-type": node_type}
    nodes = provider.create_node(config["available_node_types"][node_type]["node_config"], tags, 1)
    return [instance for instance in instances() if instance["InstanceId"] in nodes]


def instances() -> list[dict[str, Any]]:
    """Every instance of the account, as EC2 describes it."""
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    return [instance for reservation in reservations for instance in reservation["Instances"]]


@pytest.mark.parametrize("node_type", ["gpu", "cpu"])
def test_workers_are_spot(config: dict[str, Any], node_type: str) -> None:
    (instance,) = launch(config, node_type)
    assert instance["InstanceLifecycle"] == "spot"


@pytest.mark.parametrize("node_type", ["gpu", "cpu"])
def test_without_spot_capacity_workers_are_on_demand(config: dict[str, Any], node_type: str) -> None:
    (instance,) = launch(config, node_type, refusal="InsufficientInstanceCapacity")
    assert instance.get("InstanceLifecycle") != "spot"
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags["ray-cluster-name"] == "sceneparse"
    assert tags["Name"] == "ray-sceneparse-worker"
    assert instance["InstanceType"] == config["available_node_types"][node_type]["node_config"]["InstanceType"]


def test_other_refusals_are_not_answered_with_an_on_demand_machine(config: dict[str, Any]) -> None:
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    before = len(instances())
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        launch(config, "gpu", refusal="UnauthorizedOperation")
    assert len(instances()) == before


def test_ray_alone_never_turns_to_another_type_after_a_refusal() -> None:
    """The reason for pipeline/cluster/aws_node_provider.py: once this fails, two node types with priorities do."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    monitor = CloudResourceMonitor()
    # What becomes of an instance whose launch raised (reconciler.py, _try_resolve_pending_allocation).
    failed = InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_FAILED, instance_type="gpu")
    monitor.notify([failed])
    assert monitor.get_recoverable_resource_availabilities() == {}


def test_the_head_has_its_role_and_workers_theirs(config: dict[str, Any]) -> None:
    iam = boto3.client("iam")
    for node_type, role in (("head", "sceneparse-head"), ("gpu", "sceneparse-worker"), ("cpu", "sceneparse-worker")):
        name = config["available_node_types"][node_type]["node_config"]["IamInstanceProfile"]["Name"]
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        assert [one["RoleName"] for one in profile["Roles"]] == [role]


def test_the_head_launches_the_workers_of_the_cluster_file_and_nothing_else(
    config: dict[str, Any], account: Account
) -> None:
    statements = account.policy(f"sceneparse-autoscaler-{REGION}")["Statement"]
    launches = [one for one in statements if one["Action"] == "ec2:RunInstances"]

    def condition_of(resource: str) -> dict[str, Any]:
        (found,) = [one for one in launches if f"{resource}/*" in str(one["Resource"])]
        return found["Condition"]["StringEquals"]

    workers = [one for name, one in config["available_node_types"].items() if name != config["head_node_type"]]
    types = {one["node_config"]["InstanceType"] for one in workers}
    assert set(condition_of("instance")["ec2:InstanceType"]) == types
    # Of Ubuntu's maker, which Amazon lists under its own name, too; of Amazon; and what an administrator made.
    assert set(condition_of("image")["ec2:Owner"]) == {"099720109477", "amazon", "123456789012"}


def test_ray_uses_the_security_group_and_makes_none(config: dict[str, Any], account: Account) -> None:
    groups = {
        group for one in config["available_node_types"].values() for group in one["node_config"]["SecurityGroupIds"]
    }
    assert groups == {account.outputs["SecurityGroup"]}
    names = {group["GroupName"] for group in boto3.client("ec2").describe_security_groups()["SecurityGroups"]}
    assert not {name for name in names if name.startswith("ray-")}


def test_ssh_comes_from_one_place_and_all_else_from_the_nodes(account: Account) -> None:
    group_id = account.outputs["SecurityGroup"]
    (group,) = boto3.client("ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    rules = {
        (rule["IpProtocol"], rule.get("FromPort"), source)
        for rule in group["IpPermissions"]
        for source in [one["CidrIp"] for one in rule["IpRanges"]] + [one["GroupId"] for one in rule["UserIdGroupPairs"]]
    }
    assert rules == {("tcp", 22, "203.0.113.7/32"), ("-1", None, group_id)}


def test_template_passes_cloudformation_lint() -> None:
    lint = str(Path(sys.executable).parent / "cfn-lint")
    found = subprocess.run(
        [lint, "--regions", REGION, "--", "deploy/aws/account.yaml"], cwd=REPOSITORY, text=True, capture_output=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_lifecycle_rule_ends_unfinished_uploads(account: Account) -> None:
    s3 = boto3.client("s3")
    rule = json.loads((REPOSITORY / "deploy/aws/lifecycle.json").read_text())
    s3.put_bucket_lifecycle_configuration(Bucket="bucket", LifecycleConfiguration=rule)
    (kept,) = s3.get_bucket_lifecycle_configuration(Bucket="bucket")["Rules"]
    assert kept["Status"] == "Enabled"
    assert kept["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert not {"Expiration", "Transitions", "NoncurrentVersionExpiration"} & set(kept), "objects would be deleted"
