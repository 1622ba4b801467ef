"""Listing functions for each dataset layout. docs/datasets.md shows the folder trees."""

import posixpath
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import dataclass
from functools import cached_property

from pipeline import storage
from pipeline.config.data import DataFolder
from pipeline.datasets.names import (
    common_suffix,
    folded,
    is_sidecar,
    listed_names,
    match_bare,
    normalized,
    split_line,
)
from pipeline.datasets.pairs import DatasetFinding, Listing, Pair, places_of
from pipeline.errors import UserError
from pipeline.storage.hidden_files import is_hidden


@dataclass(frozen=True)
class File:
    """File found by a listing."""

    uri: str
    stamp: str  # size, and the ETag if the storage has one
    coding: str | None  # annotation encoding, see dataset_formats.coding


@dataclass(frozen=True)
class Folder:
    """Files of a folder by name without suffix and extension, and the sidecar files by name without extension."""

    files: dict[str, File]
    sidecars: dict[str, str]  # path below the folder
    findings: list[DatasetFinding]

    def near(self, name: str) -> str:
        """Return what a message adds about a name that is missing: a file that may be meant."""
        if name in self.sidecars:
            return f", but {self.sidecars[name]}, which is no image"
        if other := self._folded_names.get(folded(name)):
            return f", but {other}, which differs in case or blanks"
        return ""

    @cached_property
    def _folded_names(self) -> dict[str, str]:
        return {folded(name): name for name in self.files}


Codings = tuple[tuple[str, str | None], ...]  # (file name suffix without extension, coding), in order of preference
IMAGES: Codings = (("", None),)


def list_folder(data: DataFolder, split: str) -> Listing:
    """List ROOT/images/SPLIT and ROOT/annotations/SPLIT, matched by path without extension and label_suffix."""
    suffix = normalized(data.label_suffix)
    return _two_folders(data, f"images/{split}", f"annotations/{split}", ((suffix, None),))


def list_ade20k(data: DataFolder, split: str) -> Listing:
    """List a split of ADEChallengeData2016."""
    return _two_folders(data, f"images/{split}", f"annotations/{split}", (("", "ade20k"),))


def list_cityscapes(data: DataFolder, split: str) -> Listing:
    """List a split of Cityscapes: leftImg8bit and gtFine, by city. Prefers labelTrainIds to labelIds."""
    codings = (("_gtFine_labelTrainIds", "cityscapes_train_ids"), ("_gtFine_labelIds", "cityscapes"))
    return _two_folders(data, f"leftImg8bit/{split}", f"gtFine/{split}", codings, image_suffix="_leftImg8bit")


def list_coco_stuff(data: DataFolder, split: str) -> Listing:
    """List a split of COCO-Stuff 164k. Prefers labelTrainIds."""
    codings = (("_labelTrainIds", "coco_stuff_train_ids"), ("", "coco_stuff"))
    return _two_folders(data, f"images/{split}", f"annotations/{split}", codings)


def list_camvid(data: DataFolder, split: str) -> Listing:
    """List a split of CamVid.

    Supports the original layout, SPLIT/ next to SPLIT_labels/ or SPLITannot/, and images/ and annotations/ as in the
    `folder` layout.
    """
    codings = (("_L", "camvid"), ("", "camvid"))
    if storage.exists(storage.join(data.root, "701_StillsRaw_full")):
        return _named(data, f"{split}.txt", "701_StillsRaw_full", "LabeledApproved_full", codings)
    for annotations in (f"{split}_labels", f"{split}annot"):
        if storage.exists(storage.join(data.root, annotations)):
            return _two_folders(data, split, annotations, codings)
    return _two_folders(data, f"images/{split}", f"annotations/{split}", codings)


def list_voc(data: DataFolder, split: str) -> Listing:
    """List a split of VOCdevkit/VOC2012. Splits whose name ends in `aug` use the SegmentationClassAug annotations."""
    annotations = "SegmentationClassAug" if split.endswith("aug") else "SegmentationClass"
    return _named(data, f"ImageSets/Segmentation/{split}.txt", "JPEGImages", annotations, (("", "voc"),))


def list_lines(data: DataFolder, split: str) -> Listing:
    """List a file of lines `image annotation`, each a path below ROOT or a URI.

    Does not check that the files exist; reading them does.
    """
    listing = Listing()
    file = split if posixpath.splitext(split)[1] else f"{split}.txt"
    places = places_of(data, storage.absolute(under(data.root, file)))
    for where, line in _lines(data, file):
        uris = [storage.absolute(under(data.root, path)) for path in split_line(line)]
        if not listing.check_places(places, where, *uris):
            continue
        if len(uris) == 2:
            listing.pairs.append(Pair(uris[0], uris[1]))
        elif len(uris) == 1:
            listing.add("missing annotation", uris[0], f"{where} has no annotation")
        else:
            listing.add("unreadable list", where, f"expected an image and an annotation, separated by a tab: {line!r}")
    return listing


def under(root: str, path: str) -> str:
    """Return `path` joined to `root`, or `path` unchanged if it is a URI or an absolute path."""
    return path if storage.SCHEME.match(path) or path.startswith("/") else storage.join(root, path)


def stamp(details: dict) -> str:
    """Return a file's size and ETag (if any) as listed, as one string."""
    etag = details.get("ETag") or details.get("etag") or ""
    return f"{details.get('size')} {etag}".replace('"', "").strip()


def _two_folders(data: DataFolder, images_at: str, labels_at: str, codings: Codings, image_suffix: str = "") -> Listing:
    """Pair the images of one folder with the annotations of the same name in another, sorted by image URI."""
    images = _files(data, images_at, ((image_suffix, None),))
    labels = _files(data, labels_at, codings)
    listing = Listing(findings=[*images.findings, *labels.findings])
    label_names = {name: name for name in images.files if name in labels.files}
    label_names |= match_bare(images.files.keys() - label_names.keys(), labels.files.keys() - label_names.keys())
    listing.pairs += [
        _pair(image, labels.files[label_names[name]]) for name, image in images.files.items() if name in label_names
    ]
    met = set(label_names.values())
    lone_images = [name for name in images.files if name not in label_names]
    lone_labels = [name for name in labels.files if name not in met]
    if data.format == "folder" and not data.label_suffix and (suffix := common_suffix(lone_images, lone_labels)):
        names = set(lone_labels)
        suffixed = {f"{name}{suffix}": name for name in lone_images if f"{name}{suffix}" in names}
        listing.findings.append(_suffix_finding(labels, suffix, suffixed))
        with_suffix = set(suffixed.values())
        lone_images = [name for name in lone_images if name not in with_suffix]
        lone_labels = [name for name in lone_labels if name not in suffixed]
    for name in lone_images:
        wanted = " or ".join(f"{labels_at}/{name}{suffix}.*" for suffix, _ in codings)
        listing.add("missing annotation", images.files[name].uri, f"found no {wanted}{labels.near(name)}")
    for name in lone_labels:
        message = f"found no {images_at}/{name}{image_suffix}.*{images.near(name)}"
        listing.add("annotation without image", labels.files[name].uri, message)
    if not images.files:
        listing.add("no images", data.root, f"found no images in {images_at}")
    return listing


def _suffix_finding(labels: Folder, suffix: str, suffixed: dict[str, str]) -> DatasetFinding:
    """Return one finding for all annotations that a suffix separates from their images.

    Args:
        suffixed: name of the annotation -> name of the image.
    """
    label_name, name = next(iter(suffixed.items()))
    message = f"{len(suffixed):,} annotation(s) are named like {label_name} for image {name}"
    uri = labels.files[label_name].uri
    return DatasetFinding("suffix of annotations", uri, f"{message}: data.label_suffix: {suffix}")


def _named(data: DataFolder, list_at: str, images_at: str, labels_at: str, codings: Codings) -> Listing:
    """Pair the images that a list file names with their annotations.

    Each line begins with an image's name, or with its path, as in lists of `image annotation` paths.
    """
    images = _files(data, images_at, IMAGES)
    labels = _files(data, labels_at, codings)
    listing = Listing(findings=[*images.findings, *labels.findings])
    label_names = match_bare(images.files, labels.files) | {name: name for name in images.files if name in labels.files}
    for where, line in _lines(data, list_at):
        names = listed_names(line)
        name = next((name for name in names if name in images.files), names[0])
        image, label = images.files.get(name), labels.files.get(label_names.get(name, name))
        if image and label:
            listing.pairs.append(_pair(image, label))
            continue
        if not image:
            listing.add("missing image", where, f"found no {images_at}/{name}.*{images.near(name)}")
        if not label:
            uri = image.uri if image else where
            listing.add("missing annotation", uri, f"found no {labels_at}/{name}.*{labels.near(name)}")
    if not listing.pairs and not listing.findings:
        listing.add("no images", data.root, f"{list_at} lists no images")
    return listing


def _pair(image: File, label: File) -> Pair:
    return Pair(image.uri, label.uri, label.coding, stamp=f"{image.stamp}, {label.stamp}")


def _files(data: DataFolder, folder: str, codings: Codings) -> Folder:
    """Return the files below a folder by name without suffix and extension, sorted by URI.

    Skips hidden files, sidecar files, and files that match no suffix of `codings`. If several suffixes match one name,
    the first of `codings` wins.
    """
    base = storage.join(data.root, folder).rstrip("/") + "/"
    found: dict[tuple[str, str], File] = {}
    sidecars: dict[str, str] = {}
    findings = []
    for uri, details in storage.find(base).items():
        path = uri.removeprefix(base)
        if path.endswith("/") or is_hidden(path):
            continue
        stem = normalized(posixpath.splitext(path)[0])
        if is_sidecar(path):
            sidecars[stem] = path
            continue
        match = next(((suffix, coding) for suffix, coding in codings if stem.endswith(suffix)), None)
        if match is None:
            continue
        suffix, coding = match
        key = stem.removesuffix(suffix), suffix
        if key in found:
            other = found[key].uri
            is_extension = posixpath.splitext(uri)[0] == posixpath.splitext(other)[0]
            what = "their extension" if is_extension else "the Unicode form of their names (NFC or NFD)"
            findings.append(DatasetFinding("two files for one name", uri, f"{uri} and {other} differ only in {what}"))
            continue
        found[key] = File(uri, stamp(details), coding)
    best: dict[str, File] = {}
    for suffix, _ in reversed(codings):
        best |= {name: file for (name, end), file in found.items() if end == suffix}
    return Folder(dict(sorted(best.items(), key=lambda item: item[1].uri)), sidecars, findings)


def _lines(data: DataFolder, path: str) -> list[tuple[str, str]]:
    """Return (location, line) of each line of a list file that is not empty.

    Raises: UserError if the file cannot be read, or is not UTF-8 text.
    """
    uri = storage.absolute(under(data.root, path))
    try:
        content = storage.read_bytes(uri)
        text = content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{uri}: expected a UTF-8 text file that lists the images of a split") from None
    return [(f"{uri} line {number}", line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
