"""An AWS account in this process, made by moto, as deploy/aws/account.yaml prepares it; and cluster.yaml for it."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest
import yaml

from tests.conftest import REPOSITORY

REGION = "us-east-1"
TEMPLATE = (REPOSITORY / "deploy/aws/account.yaml").read_text()


@dataclass(frozen=True)
class Account:
    """Resources that the stack created."""

    outputs: dict[str, str]

    def policy(self, name: str) -> dict[str, Any]:
        """A managed policy's document, with the bucket, region and account filled in."""
        iam = boto3.client("iam")
        (found,) = [one for one in iam.list_policies(Scope="Local")["Policies"] if one["PolicyName"] == name]
        return iam.get_policy_version(PolicyArn=found["Arn"], VersionId="v1")["PolicyVersion"]["Document"]


@contextlib.contextmanager
def aws_account(home: Path, bucket: str = "bucket", **parameters: str) -> Iterator[Account]:
    """An account with the stack in it, made with these parameters; `home` is where Ray writes the key it makes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("HOME", str(home))
        (home / ".ssh").mkdir()
        with moto.mock_aws():
            boto3.client("s3").create_bucket(Bucket=bucket)
            yield Account(_make_stack(bucket, parameters))


def _make_stack(bucket: str, parameters: dict[str, str]) -> dict[str, str]:
    ec2, formation = boto3.client("ec2"), boto3.client("cloudformation")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    values = {"Bucket": bucket, "SshFrom": "203.0.113.7/32", "Vpc": vpc, **parameters}
    formation.create_stack(
        StackName="sceneparse",
        TemplateBody=TEMPLATE,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    (stack,) = formation.describe_stacks(StackName="sceneparse")["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def cluster_file() -> dict[str, Any]:
    """cluster.yaml with Ray's defaults, as `ray up` has it before it asks AWS."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
    validate_config(config)
    return json.loads(json.dumps(config))  # YAML's anchors make one object of what stands in several places
