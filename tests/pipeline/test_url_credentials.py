"""Credentials in URLs: refused as settings and rows, masked in what others say."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.config.jobs import SegmentConfig
from pipeline.config.loading import load_settings
from pipeline.errors import UserError
from pipeline.inputs.uris import Names, Resolver
from pipeline.train.provenance import describe_run
from pipeline.url_credentials import has_credentials, masked
from tests.pipeline.input_samples import errors, listed, uris

WITH = {
    "https://me:hush@host/a.jpg": "https://***@host/a.jpg",
    "HTTPS://me:hush@host/a.jpg": "HTTPS://***@host/a.jpg",
    "http://hush@host/a.jpg": "http://***@host/a.jpg",
    "s3://KEY:hush@bucket/a.jpg": "s3://***@bucket/a.jpg",
    "https://host/a.jpg?X-Amz-Date=1&X-Amz-Signature=hush": "https://host/a.jpg?X-Amz-Date=1&X-Amz-Signature=***",
    "https://host/a.jpg?x-amz-security-token=hush&b=1": "https://host/a.jpg?x-amz-security-token=***&b=1",
    "https://host/a.jpg?X-Amz-Credential=hush%2Fb#c": "https://host/a.jpg?X-Amz-Credential=***#c",
    "https://host/a.jpg?AWSAccessKeyId=hush&Signature=hush": "https://host/a.jpg?AWSAccessKeyId=***&Signature=***",
    "https://x.blob.core.windows.net/c/a.jpg?sv=2&sig=hush%2B": "https://x.blob.core.windows.net/c/a.jpg?sv=2&sig=***",
    "https://host/a.jpg?X-Goog-Signature=hush": "https://host/a.jpg?X-Goog-Signature=***",
    "https://host/a.jpg?access_token=hush": "https://host/a.jpg?access_token=***",
    "https://host/a.jpg?v=1;api-key=hush": "https://host/a.jpg?v=1;api-key=***",
}
WITHOUT = [
    "https://host/a@b.jpg",
    "https://host:8080/a.jpg?size=1&page=2",
    "https://host/a.jpg?design=x&key=",
    "abfs://container@account.dfs.core.windows.net/a.jpg",
    "s3://bucket/a.jpg?X-Amz-Signature=part-of-the-key",
    "s3://bucket/https://me:word@host/a.jpg",
    "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/photos/a@b.jpg",
    "file:///data/me:word@host/a.jpg?sig=1",
    "/data/a.jpg?token=1",
]


@pytest.mark.parametrize("uri", WITH)
def test_they_are_found_and_masked(uri: str) -> None:
    assert has_credentials(uri)
    assert masked(uri) == WITH[uri]
    assert masked(f"403, message='Forbidden', url='{uri}' (twice: {uri})").count("hush") == 0


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_is_no_credential_is_left_alone(uri: str) -> None:
    assert not has_credentials(uri)


@pytest.mark.parametrize(
    "piece", ["a", "?", "a:", "://", "http://", "https://a?", "x://a:", "&token", "?sig", "@", "a://b"]
)
def test_megabytes_of_a_hostile_list_take_no_longer_than_they_are(piece: str) -> None:
    """Whose time grew with the square of their length would take hours."""
    for beginning in ("", "https://host/?", "a://"):
        text = beginning + piece * (2_000_000 // len(piece))
        assert len(masked(text)) > 0
        has_credentials(text)


@pytest.mark.parametrize("option", ["input", "list-file", "manifest", "inventory", "allow", "checkpoint", "output"])
def test_no_setting_takes_them(option: str) -> None:
    argv = ["--input", "s3://b/", "--output", "s3://c/", "--checkpoint", "/c"]
    for uri in WITH:
        with pytest.raises(UserError, match=r"contains credentials; remove them from the URL") as caught:
            load_settings(SegmentConfig, [*argv, f"--{option}", uri], prog="jobs/segment_bucket.py")
        assert "hush" not in str(caught.value)
        assert WITH[uri] in str(caught.value)


def test_an_error_about_another_setting_shows_none(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("predictors: https://me:hush@host/a\nshard: https://host/?sig=hush\n")
    argv = ["--config", str(file), "--input", "a", "--output", "b", "--checkpoint", "c"]
    with pytest.raises(UserError, match="2 invalid setting") as caught:
        load_settings(SegmentConfig, argv, prog="jobs/segment_bucket.py")
    assert "hush" not in str(caught.value)


def test_rows_with_them_are_bad_uris_that_do_not_show_them(tmp_path: Path) -> None:
    lines = [*WITH, "https://host/plain.jpg", "s3://bucket/a.jpg?sig=1"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found = listed(list_file=str(tmp_path / "list.txt"), allow=["s3://", "https://host", "http://host"])
    assert uris(found)[-2:] == lines[-2:]
    assert errors(found) == {f"file://{tmp_path}/list.txt#line={n + 1}": "BadURI" for n in range(len(WITH))}
    assert "hush" not in json.dumps(found.drop_columns(["image_id"]).to_pylist())


def test_a_long_row_that_is_cut_in_a_message_shows_none() -> None:
    names = Names(pa.array(["https://me:" + "hush" * 60 + "@host/a.jpg"]), pa.array([1]), "f#row=", "s3://b", {})
    (row,) = Resolver(["https://host"], "s3://out").resolve(names).to_pylist()
    assert row["error_type"] == "BadURI"
    assert "hush" not in str(row)


def test_storage_opens_none() -> None:
    for uri in WITH:
        for use in (storage.exists, storage.read_bytes, storage.open_file, lambda uri: storage.write_bytes(uri, b"")):
            with pytest.raises(UserError, match="contains credentials") as caught:
                use(uri)
            assert "hush" not in str(caught.value)


def test_an_endpoint_with_a_password_is_not_shown_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.storage import s3_client

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hush@127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://me:hush@127.0.0.1:9")
    for name, value in {"FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 0.02, "DEADLINE": 2.0}.items():
        monkeypatch.setattr(s3_client, name, value)
    s3_client.forget()
    with pytest.raises(UserError) as caught:
        storage.read_bytes("s3://bucket/a.jpg")
    assert "hush" not in str(caught.value)
    s3_client.forget()


def test_the_command_of_a_run_is_saved_without_them(tmp_path: Path) -> None:
    describe_run(str(tmp_path), ["jobs/train.py", *WITH], "sha256:1")
    assert "hush" not in (tmp_path / "environment.json").read_text()
