"""A run labels the images of all sources, each image once, and can select a stable subset."""

import random
import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.inputs import list_images
from pipeline.inputs.selection import chosen, image_ids
from pipeline.output.schema import image_id
from pipeline.storage.patterns import expression, matches
from tests.pipeline.input_samples import config, errors, listed, uris
from tests.pipeline.samples import write_file


@pytest.fixture
def photos(tmp_path: Path) -> str:
    for name in ("a.jpg", "b.png", "sub/c.jpg", "sub/deep/d.jpg", "thumbs/a.jpg", "odd[1].jpg"):
        write_file(tmp_path / "photos" / name, name.encode())
    return f"file://{tmp_path}/photos"


def names(table: pa.Table, base: str) -> list[str]:
    return [uri.removeprefix(f"{base}/") for uri in uris(table)]


# Several sources


def test_sources_of_all_kinds_come_one_after_the_other_and_each_image_once(tmp_path: Path, bucket: str) -> None:
    storage.write_bytes(f"{bucket}/photos/a.jpg", b"a")
    storage.write_bytes(f"{bucket}/photos/b.jpg", b"bb")
    write_file(tmp_path / "list.txt", f"{bucket}/photos/b.jpg\n{bucket}/photos/c.jpg\n{bucket}/photos/c.jpg\n".encode())
    table = {"image_uri": [f"{bucket}/photos/{name}.jpg" for name in "acdd"], "label": list("1234")}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    found = listed(
        input=[f"{bucket}/photos", f"{bucket}/photos/a*"],
        list_file=str(tmp_path / "list.txt"),
        manifest=str(tmp_path / "m.parquet"),
        carry="label",
        allow="s3://",
    )
    assert names(found, bucket) == [f"photos/{name}.jpg" for name in "abcd"]
    assert found["size_bytes"].to_pylist() == [1, 2, None, None]
    assert found["carried"].to_pylist() == [None, None, None, [{"key": "label", "value": "3"}]]
    assert errors(found) == {}


def test_an_image_named_again_in_a_later_table_comes_once(tmp_path: Path) -> None:
    given = [f"{n % 12_000}.jpg" for n in range(25_000)]
    write_file(tmp_path / "list.txt", "\n".join(given).encode())
    assert names(listed(list_file=str(tmp_path / "list.txt")), f"file://{tmp_path}") == given[:12_000]


@pytest.mark.parametrize("second", ["photos", "photos/", "photos/sub", "photos/*.jpg"])
def test_inputs_that_overlap_name_each_image_once(photos: str, second: str) -> None:
    found = listed(input=[photos, photos.removesuffix("photos") + second])
    assert sorted(uris(found)) == sorted(uris(listed(input=photos)))


def test_one_empty_source_among_others_is_named(photos: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input .*/nothing: no files found"):
        listed(input=[photos, f"{tmp_path}/nothing"])
    with pytest.raises(UserError, match=r"input .*/\*\.gif: no files found"):
        listed(input=[f"{photos}/*.gif", photos])


def test_an_output_inside_any_input_is_refused(photos: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is inside input"):
        list_images(config(input=[f"{tmp_path}/other", photos], output=f"{photos}/labels"))


# Patterns


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "*.png"}, ["b.png"]),
        ({"include": "*.jpg"}, ["a.jpg", "odd[1].jpg", "sub/c.jpg", "sub/deep/d.jpg", "thumbs/a.jpg"]),
        ({"include": "sub/*.jpg"}, ["sub/c.jpg"]),
        ({"include": "sub/**"}, ["sub/c.jpg", "sub/deep/d.jpg"]),
        ({"include": "sub/**/d.jpg"}, ["sub/deep/d.jpg"]),
        ({"include": ["b.*", "?.jpg"], "exclude": "thumbs/**"}, ["a.jpg", "b.png", "sub/c.jpg", "sub/deep/d.jpg"]),
        ({"exclude": ["*.jpg", "nothing"]}, ["b.png"]),
        ({"include": "{base}/*"}, ["a.jpg", "b.png", "odd[1].jpg"]),
        ({"include": "{path}/sub/*"}, ["sub/c.jpg"]),
        ({"include": "[!a-b].jpg"}, ["sub/c.jpg", "sub/deep/d.jpg"]),
        ({"include": "odd[[]1].jpg"}, ["odd[1].jpg"]),
    ],
)
def test_patterns_choose_by_the_whole_name(photos: str, options: dict[str, Any], expected: list[str]) -> None:
    def filled(value: str) -> str:
        return value.format(base=photos, path=photos.removeprefix("file://"))

    given = {k: [filled(one) for one in ([v] if isinstance(v, str) else v)] for k, v in options.items()}
    assert names(listed(input=photos, **given), photos) == expected


def test_patterns_that_leave_nothing_are_an_error(photos: str) -> None:
    for options in ({"include": "*.JPG"}, {"exclude": "**"}):
        with pytest.raises(UserError, match="include, exclude: none of the 6 images matches"):
            listed(input=photos, **options)


def test_a_row_without_a_name_is_seen_whatever_the_patterns(tmp_path: Path) -> None:
    write_file(tmp_path / "m.csv", b"image_uri,x\na.jpg,1\n,2\n/else/b.jpg,3\n/else/b.png,3\n")
    found = listed(manifest=str(tmp_path / "m.csv"), include="*.jpg")
    assert list(errors(found).values()) == ["BadURI", "NotAllowed"]
    assert len(found) == 3


@pytest.mark.parametrize("pattern", ["a**", "x/**.jpg", "[z-a]"])
def test_a_pattern_that_means_nothing_is_refused(photos: str, pattern: str) -> None:
    for option in ("include", "exclude"):
        with pytest.raises(UserError, match=rf"--{option} {re.escape(pattern)}: "):
            list_images(config(input=photos, **{option: pattern}))


@pytest.mark.parametrize("seed", range(20))
def test_a_name_taken_literally_matches_itself_alone(seed: int) -> None:
    choose = random.Random(seed)
    characters = "aZ0 .+-(){}|^$\\&~#'\"!,;=%@\n\tü猫\u0308"
    drawn = ["".join(choose.choices(characters, k=choose.randrange(1, 9))) for _ in range(30)]
    for name in drawn:
        expected = [other == name for other in drawn]
        given = pa.array([f"s3://store/{other}" for other in drawn])
        assert matches(given, [expression(name, "--include")]).to_pylist() == expected
        assert matches(given, [expression(f"s3://store/{name}", "--include")]).to_pylist() == expected
        assert (
            matches(given, [expression("[" + name[0] + "]" + name[1:], "x")]).to_pylist() == expected or name[0] in "!^"
        )


# Stable parts


def ids(seed: int, count: int) -> pa.Array:
    content = np.random.default_rng(seed).bytes(16 * count)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(content)])


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_has_its_share_and_a_larger_one_contains_it(seed: int) -> None:
    some = ids(seed, 20_000)
    earlier = np.zeros(len(some), bool)
    for fraction in (0.001, 0.1, 0.3, 0.9, 1.0):
        kept = chosen(some, fraction, None).to_numpy(zero_copy_only=False)
        assert abs(kept.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(some)) + 1e-9
        assert (kept | ~earlier).all()
        earlier = kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_every_image_is_in_exactly_one_shard_also_of_a_sample(seed: int, count: int) -> None:
    some = ids(seed, 20_000)
    shards = range(1, count + 1) if count < 100 else [1, 2, 500, 1000]
    in_shard = [chosen(some, None, f"{k}/{count}").to_numpy(zero_copy_only=False) for k in shards]
    if count < 100:
        assert (np.sum(in_shard, axis=0) == 1).all()
    for kept, k in zip(in_shard, shards, strict=True):
        assert abs(kept.sum() - len(some) / count) <= 5 * np.sqrt(len(some) / count)
        both = chosen(some, 0.5, f"{k}/{count}").to_numpy(zero_copy_only=False)
        assert abs(both.sum() - kept.sum() / 2) <= 5 * np.sqrt(kept.sum()) + 1, (
            "the halves of an id depend on each other"
        )
        assert (both == (kept & chosen(some, 0.5, None).to_numpy(zero_copy_only=False))).all()


def test_a_sample_is_the_same_whatever_else_is_listed(tmp_path: Path) -> None:
    given = [f"{n}.jpg" for n in range(3000)]
    write_file(tmp_path / "list.txt", "\n".join(given).encode())
    write_file(tmp_path / "shuffled.txt", "\n".join(["more.jpg", *random.Random(0).sample(given, 3000)]).encode())
    write_file(tmp_path / "half.txt", "\n".join(given[::2]).encode())
    found = {
        name: set(uris(listed(list_file=f"{tmp_path}/{name}.txt", sample=0.2))) - {f"file://{tmp_path}/more.jpg"}
        for name in ("list", "shuffled", "half")
    }
    assert 500 < len(found["list"]) < 700
    assert found["shuffled"] == found["list"]
    assert found["half"] == {uri for uri in found["list"] if int(uri.split("/")[-1][:-4]) % 2 == 0}


def test_shards_of_a_listing_add_up_to_it(photos: str) -> None:
    shards = [uris(listed(input=photos, shard=f"{k}/3")) for k in (1, 2, 3)]
    assert sorted(chain.from_iterable(shards)) == sorted(uris(listed(input=photos)))


def test_a_shard_may_be_empty(tmp_path: Path) -> None:
    photo = write_file(tmp_path / "photos" / "a.jpg", b"a")
    found = [len(listed(input=str(photo.parent), shard=f"{k}/9")) for k in range(1, 10)]
    assert sorted(found) == [0] * 8 + [1]


def test_a_limit_takes_the_first_and_reads_no_further(tmp_path: Path) -> None:
    write_file(tmp_path / "list.txt", "\n".join(f"{n}.jpg" for n in [0, 0, *range(25_000)]).encode())
    given = {"list_file": str(tmp_path / "list.txt")}
    for limit in (1, 9_999, 10_000, 12_345):
        assert names(listed(**given, limit=limit), f"file://{tmp_path}") == [f"{n}.jpg" for n in range(limit)]
    for limit in (100_000, 10**30):
        assert len(listed(**given, limit=limit)) == 25_000


def test_the_listing_streams(tmp_path: Path) -> None:
    """The first images are there before the last ones are read: what comes after is missing by then."""
    for n in range(3):
        pq.write_table(pa.table({"image_uri": [f"{n}.jpg"]}), tmp_path / f"{n}.parquet")
    tables = list_images(config(manifest=str(tmp_path)))
    (tmp_path / "2.parquet").unlink()
    assert names(next(tables), f"file://{tmp_path}") == ["0.jpg"]
    assert names(next(tables), f"file://{tmp_path}") == ["1.jpg"]
    with pytest.raises(UserError, match=r"2\.parquet: not found"):
        next(tables)


def test_ids_of_many_names_are_those_of_each() -> None:
    given = ["s3://store/a.jpg", "file:///ü 猫.jpg", ""]
    assert image_ids(pa.chunked_array([given[:1], given[1:]])).to_pylist() == [image_id(uri) for uri in given]


# Options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, r"input: no source of images; give at least one of --input, --list-file, --manifest, --inventory"),
        ({"input": ""}, "input: one of its values is empty"),
        ({"input": "a", "carry": "x"}, "carry: only a --manifest has columns to copy"),
        ({"input": "a", "sample": 0}, "sample: '0' is not allowed"),
        ({"input": "a", "sample": 1.5}, "sample: '1.5' is not allowed"),
        ({"input": "a", "limit": 0}, "limit: '0' is not allowed"),
        *(
            ({"input": "a", "shard": shard}, f"shard '{shard}' is not K/N")
            for shard in ("0/2", "3/2", "1", "a/b", "1/0")
        ),
        ({"input": "a", "allow": "http://"}, "allow 'http://' names no host"),
        ({"input": "a", "allow": "HTTPS:///x"}, "allow 'HTTPS:///x' names no host"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        config(**options)


def test_options_given_twice_add_up_and_names_keep_their_commas_and_brackets() -> None:
    odd = ["s3://b/a, b.jpg", "[ab]*.jpg", '"quoted"', "{x}", "back\\slash\\", "null", "1.50", " a "]
    assert config(input=odd).input == tuple(odd)
    assert config(input="a", exclude=odd).exclude == tuple(odd)


def test_a_file_and_the_environment_give_one_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yaml").write_text("input: s3://b/a,b\nmanifest: [x.csv, 'y,z.csv']\n")
    found = config(config=str(tmp_path / "job.yaml"))
    assert (found.input, found.manifest) == (("s3://b/a,b",), ("x.csv", "y,z.csv"))
    monkeypatch.setenv("SCENEPARSE_INPUT", "s3://c/[x],y")
    assert config().input == ("s3://c/[x],y",)
