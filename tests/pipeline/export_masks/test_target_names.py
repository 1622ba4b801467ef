"""Names of exported files: like the keys where these are names, and never a way out of the target."""

import ntpath
import posixpath
import random
from urllib.parse import unquote

import pyarrow as pa
import pytest

from pipeline.export_masks.target_names import MAX_NAME_BYTES, clean, cleaned, common_folder, split_ending


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("2024/05/photo 1.jpg", "2024/05/photo 1"),
        ("Straße/köln.jpeg", "Straße/köln"),
        ("a.b.tif", "a.b"),
        ("v.1/scan.2024", "v.1/scan_2024"),  # a year is no ending
        ("../../etc/passwd.png", "__/__/etc/passwd"),
        ("a/../b.png", "a/__/b"),
        ("/etc/passwd", "_/etc/passwd"),
        ("a//b.png", "a/_/b"),
        ("%2e%2e/%2e%2e%2fb.png", "_2e_2e/_2e_2e_2fb"),
        ("..\\..\\b.png", "_._.._b"),
        ("C:\\Windows\\b.png", "C__Windows_b"),
        ("C:b.png", "C_b"),
        ("nul\0.png", "nul_"),
        ("a.png\0.jpg", "a.png_"),
        ("NUL.jpg", "_NUL"),
        ("com1/aux.tar.gz", "_com1/_aux.tar"),
        ("dots.../spaces  /c.png", "dots___/spaces__/c"),
        (".hidden/.export/x.png", "_hidden/_export/x"),
        ("a/.jpg", "a/_"),
        (".jpg", "_"),
        ("line\nbreak\x85.png", "line_break_"),
        ('what?*"<>|.png', "what______"),
    ],
)
def test_a_key_becomes_a_name(key: str, name: str) -> None:
    assert clean(key) == name
    assert cleaned(pa.array([f"s3://b/{key}"]), "s3://b/").to_pylist() == [name]


def test_a_long_name_is_cut_where_it_stays_distinct() -> None:
    first, second = (clean(f"folder/{'ü' * 300}{end}.jpg") for end in "ab")
    assert first != second
    for name in (first, second):
        assert len(name.removeprefix("folder/").encode()) <= MAX_NAME_BYTES


def test_no_key_leads_out_of_the_target_on_any_system() -> None:
    pieces = ["..", ".", "/", "\\", "%2e", "%2F", "\0", "C:", " ", "a", "b.", "nul", ".png", "é", "~", "\n", "…"]
    rng = random.Random(0)
    keys = ["".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(20_000)]
    names = cleaned(pa.array([f"s3://b/{key}" for key in keys]), "s3://b/").to_pylist()
    assert names == [clean(key) for key in keys], "the fast look and the slow one differ"
    for name in names:
        for module in (posixpath, ntpath):
            assert not module.isabs(name), name
            assert not module.splitdrive(name)[0], name
            for text in (name, unquote(name), unquote(unquote(name))):
                parts = module.normpath(module.join("target", text)).replace("\\", "/").split("/")
                assert parts[0] == "target", name
                assert len(parts) == 2 + name.count("/"), name
        assert not any(part.startswith(".") or part.endswith((".", " ")) for part in name.split("/")), name
        assert "\0" not in name


@pytest.mark.parametrize(
    ("first", "last", "folder"),
    [
        ("s3://b/photos/2023/a.jpg", "s3://b/photos/2024/b.jpg", "s3://b/photos/"),
        ("s3://b/photos/a.jpg", "s3://b/photos/a.jpg", "s3://b/photos/"),
        ("s3://b/photos/2023.jpg", "s3://b/photos/2024.jpg", "s3://b/photos/"),
        ("s3://a/x.jpg", "s3://b/x.jpg", "s3://"),
        ("file:///a/x.jpg", "s3://b/x.jpg", ""),
    ],
)
def test_the_folder_that_all_images_lie_in(first: str, last: str, folder: str) -> None:
    assert common_folder(first, last) == folder


def test_an_ending_is_a_dot_and_a_word() -> None:
    assert split_ending("a/b.c.JPG") == ("a/b.c", ".JPG")
    assert split_ending("a.b/c") == ("a.b/c", "")
    assert split_ending("scan.001") == ("scan.001", "")
