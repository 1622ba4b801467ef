"""Input options of a run: the sources of image names, and filters on them."""

import re
from typing import Annotated, ClassVar

from pydantic import Field, field_validator, model_validator

from pipeline.config.fields import JobSettings, Texts, Uri

SOURCES = ("input", "list_file", "manifest", "inventory")


class InputConfig(JobSettings):
    """Options of all jobs that process images. To pass several values, repeat the option."""

    option_group: ClassVar[str | None] = "input options"

    input: Texts = Field(
        (),
        description="Path or URI of images, a prefix or a glob: s3://bucket/photos/ or .../*.jpg. Repeat the option "
        "for several.",
    )
    list_file: Texts = Field((), description="Text file with one image URI per line. Repeat the option for several.")
    manifest: Texts = Field(
        (),
        description="Table of image URIs: a Parquet or CSV file, or a folder or glob of them. Repeat the option for "
        "several.",
    )
    uri_column: str = Field("image_uri", min_length=1, description="Column of the manifests that holds the image URI.")
    carry: Texts = Field(
        (), description="Column of the manifests to copy to the output. Repeat the option for several."
    )
    inventory: Texts = Field(
        (),
        description="manifest.json of an S3 Inventory; its current objects are the images. Repeat the option for "
        "several.",
    )
    include: Texts = Field(
        (), description="Keep only images that match this glob. Repeat the option to allow several globs."
    )
    exclude: Texts = Field((), description="Skip images that match this glob. Repeat the option for several.")
    hidden: bool = Field(
        False,
        description="Include the hidden files of inputs and inventories, such as .DS_Store, ._a.jpg and Thumbs.db.",
    )
    allow: Texts = Field(
        (),
        description="Prefix, such as s3://bucket/ or /data, from which lists, manifests and inventories may read "
        "images. If not set, each may read only from its own bucket or folder. Repeat the option for several.",
    )
    sample: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Process only this share of the images; the selection is deterministic. If none, all images."
    )
    shard: str | None = Field(
        None, description="Process only the K-th of N equal shares of the images, written as K/N, from 1/N to N/N."
    )
    limit: int | None = Field(
        None, ge=1, description="Process only the first images, up to this number. If none, all images."
    )
    output: Uri = Field(description="Folder or URI of the output tables.")

    @field_validator("shard")
    @classmethod
    def _is_shard(cls, shard: str | None) -> str | None:
        if shard is not None:
            match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
            if not match or not 1 <= int(match[1]) <= int(match[2]):
                raise ValueError(f"shard {shard!r} is not K/N with K from 1 to N, as in 3/8")
        return shard

    @field_validator("allow")
    @classmethod
    def _are_places(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        for place in allow:
            if re.match("https?:///*($|/)", place, re.IGNORECASE):
                # A prefix that allows every host would also allow the cloud's metadata service.
                raise ValueError(f"allow {place!r} names no host; add it, as in https://images.example.com/")
        return allow

    @field_validator("input", "list_file", "manifest", "inventory", "allow", "include", "exclude", "carry")
    @classmethod
    def _are_not_empty(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not all(values):
            raise ValueError("one of its values is empty; remove it or give it a value")
        return values

    @model_validator(mode="after")
    def _sources(self) -> "InputConfig":
        if not any(getattr(self, source) for source in SOURCES):
            options = ", ".join(f"--{source.replace('_', '-')}" for source in SOURCES)
            raise ValueError(f"input: no source of images; give at least one of {options}")
        if self.carry and not self.manifest:
            raise ValueError("carry: only a --manifest has columns to copy; add a manifest or remove --carry")
        return self
