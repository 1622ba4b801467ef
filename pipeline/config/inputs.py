"""What a run is to label: the sources of image names, and which of their images."""

import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pipeline.config.loading import JobSettings, Texts

SOURCES = ("input", "list_file", "manifest", "inventory")


class InputConfig(JobSettings):
    """Options of every job that goes through images; those that take several values are given several times."""

    input: Texts = Field(
        (), description="Prefix or glob of images, a path or URI: s3://bucket/photos/ or .../*.jpg. Several: repeat it."
    )
    list_file: Texts = Field((), description="Text file with one image's URI on each line. Several: repeat it.")
    manifest: Texts = Field(
        (),
        description="Table that names images: a Parquet or CSV file, or a folder or glob of such. Several: repeat it.",
    )
    uri_column: str = Field("image_uri", min_length=1, description="The column of manifests that names the image.")
    carry: Texts = Field((), description="Column of manifests to carry into the output. Several: repeat it.")
    inventory: Texts = Field(
        (), description="manifest.json of an S3 Inventory; its current objects are the images. Several: repeat it."
    )
    include: Texts = Field((), description="Only images that match this glob, or another one: repeat it.")
    exclude: Texts = Field((), description="No images that match this glob, or another one: repeat it.")
    allow: Texts = Field(
        (),
        description="Prefix that lists, manifests and inventories may name, as in s3://bucket/ or /data; none: the "
        "bucket or folder of each. Several: repeat it.",
    )
    sample: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Only this share of the images, always the same ones; none: all of them."
    )
    shard: str | None = Field(None, description="K/N: only the K-th of N equal shares of the images, from 1/N to N/N.")
    limit: int | None = Field(None, ge=1, description="Only so many images, the first; none: all of them.")
    output: str = Field(description="Folder or URI of the tables.")

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
                # Any host would be the cloud's metadata service, too.
                raise ValueError(f"allow {place!r} names no host; name each, as in https://images.example.com/")
        return allow

    @field_validator("input", "list_file", "manifest", "inventory", "allow", "include", "exclude", "carry")
    @classmethod
    def _are_not_empty(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not all(values):
            raise ValueError("one of its values is empty; leave the option out, or name something")
        return values

    @model_validator(mode="after")
    def _sources(self) -> "InputConfig":
        if not any(getattr(self, source) for source in SOURCES):
            options = ", ".join(f"--{source.replace('_', '-')}" for source in SOURCES)
            raise ValueError(f"input: nothing to go through; give at least one of {options}")
        if self.carry and not self.manifest:
            raise ValueError("carry: only a --manifest has columns to carry; give one or leave out --carry")
        return self
