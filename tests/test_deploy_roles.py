"""Permissions of the roles of deploy/aws/account.yaml: those that the jobs need, and no others."""

from pathlib import Path

import boto3
import pytest

from tests.aws_account import REGION, aws_account


@pytest.mark.parametrize(
    ("jobs", "policies"),
    [
        ("all", {"sceneparse-training", "sceneparse-segmentation"}),
        ("training", {"sceneparse-training"}),
        ("segmentation", {"sceneparse-segmentation"}),
    ],
)
def test_a_cluster_for_one_job_has_the_rights_of_that_job(jobs: str, policies: set[str], tmp_path: Path) -> None:
    with aws_account(tmp_path, Jobs=jobs) as account:
        for role, more in (("sceneparse-worker", set()), ("sceneparse-head", {f"sceneparse-autoscaler-{REGION}"})):
            found = boto3.client("iam").list_attached_role_policies(RoleName=role)["AttachedPolicies"]
            assert {one["PolicyName"] for one in found} == policies | more
        writing = [
            one
            for one in account.policy("sceneparse-segmentation")["Statement"]
            if {"s3:PutObject", "s3:DeleteObject"} & {*one["Action"]} or one["Action"] == "s3:PutObject"
        ]
        assert [one["Resource"] for one in writing] == ["arn:aws:s3:::bucket/labels/*"]
