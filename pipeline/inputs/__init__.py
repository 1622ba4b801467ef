"""Listing of the images to label, streamed from all sources one after the other."""

from collections.abc import Iterator
from itertools import chain, islice, pairwise

import pyarrow as pa

from pipeline import storage
from pipeline.config.inputs import SOURCES, InputConfig
from pipeline.errors import UserError
from pipeline.inputs import inventory, list_files, manifests, prefixes
from pipeline.inputs.hidden import HiddenFiles
from pipeline.inputs.selection import ImageSelection
from pipeline.inputs.uris import Names, Resolver, folder_above
from pipeline.storage.patterns import folder_of, is_glob
from pipeline.storage.places import home_of, place_prefix

__all__ = ["ImageListing", "check_inputs_exist", "check_no_output_inside_input", "list_images"]


class ImageListing(Iterator[pa.Table]):
    """Iterator over the LISTED tables of a listing, which is read lazily."""

    def __init__(self, tables: Iterator[pa.Table], hidden: HiddenFiles) -> None:
        self._tables, self._hidden = tables, hidden

    def __next__(self) -> pa.Table:
        return next(self._tables)

    @property
    def num_hidden(self) -> int:
        """Number of hidden files skipped so far."""
        return self._hidden.num_skipped

    def has_images(self) -> bool:
        """Return True if there is a next table; reads it. Raises UserError."""
        first = list(islice(self._tables, 1))
        self._tables = chain(first, self._tables)
        return bool(first)


def list_images(config: InputConfig) -> ImageListing:
    """List the images of all inputs, lists, manifests and inventories as LISTED tables of at most 10,000 rows.

    Each image occurs once. Hidden files of inputs and inventories are skipped, unless `config.hidden`. The call itself
    reads the beginning of every source, so missing or unreadable sources fail immediately; the rest is read lazily.
    Rows that do not name an image, or name one outside the allowed places, have an error.

    Raises: UserError, from the call or during iteration.
    """
    check_no_output_inside_input(config, config.output)
    selection, hidden = ImageSelection(config, _may_repeat(config)), HiddenFiles(config.hidden)
    sources = [
        *(_prefix(uri, hidden) for uri in config.input),
        *(_list(uri, config) for uri in config.list_file),
        *(_manifest(uri, config) for uri in config.manifest),
        *(_inventory(uri, config, hidden) for uri in config.inventory),
    ]
    return ImageListing(_selected(chain.from_iterable(sources), selection), hidden)


def check_inputs_exist(config: InputConfig) -> None:
    """Raise UserError for an input that does not exist, within seconds. Globs are passed over."""
    for source in SOURCES:
        for uri in getattr(config, source):
            if not is_glob(uri) and not storage.is_there(uri):
                raise UserError(_nothing_found(source, uri))


def check_no_output_inside_input(config: InputConfig, output: str) -> None:
    """Raise UserError if the output is inside an input, where the next run would list it as images."""
    for uri in config.input:
        prefixes.check_no_output_inside_input(uri, output)


def _selected(tables: Iterator[pa.Table], selection: ImageSelection) -> Iterator[pa.Table]:
    for named in tables:
        listed = selection.of(named)
        if len(listed):
            yield listed
        if selection.is_complete:
            return
    selection.check_not_empty()


def _nothing_found(source: str, uri: str) -> str:
    return f"{source} {uri}: no files found; check the prefix or pattern"


def _prefix(uri: str, hidden: HiddenFiles) -> Iterator[pa.Table]:
    prefixes.check_no_bare_scheme(uri)
    message = _nothing_found("input", uri)
    # Finding the first match of a glob may take a long listing.
    files = hidden.skipped(prefixes.read(uri), folder_of(uri), f"input {uri}")
    return _not_empty(files, message, at_once=not is_glob(uri))


def _list(uri: str, config: InputConfig) -> Iterator[pa.Table]:
    resolver = _resolver(config, home_of(folder_above(uri)))
    return _not_empty(_resolved(list_files.read(uri), resolver), f"list_file {uri}: contains no image URIs")


def _manifest(uri: str, config: InputConfig) -> Iterator[pa.Table]:
    files = manifests.files_of(uri)
    folder = folder_above(uri) if manifests.is_one_file(uri, files) else storage.absolute(folder_of(uri))
    names = manifests.read(files, config.uri_column, config.carry)
    return _not_empty(_resolved(names, _resolver(config, home_of(folder))), f"manifest {uri}: has no rows")


def _inventory(uri: str, config: InputConfig, hidden: HiddenFiles) -> Iterator[pa.Table]:
    loaded = inventory.load(uri)
    home = f"s3://{loaded.bucket}"
    # The bucket comes from the manifest.json, so it is only as trustworthy as the author of that file.
    trusted = [folder_above(uri), *(storage.absolute(folder_of(one)) for one in config.input)]
    if not config.allow and home not in map(home_of, trusted):
        raise UserError(
            f"inventory {uri}: lists the bucket {loaded.bucket!r}, which is neither the inventory's own bucket nor "
            f"an --input; to read images from it, add --allow {home}/"
        )
    objects = _resolved(inventory.read(loaded), _resolver(config, home))
    return _not_empty(hidden.skipped(objects, home, f"inventory {uri}"), f"inventory {uri}: lists nothing")


def _resolver(config: InputConfig, home: str) -> Resolver:
    # Images under --input are labeled anyway, so lists may name them too.
    inputs = [uri for uri in config.input if not is_glob(uri)]
    return Resolver([*(config.allow or [home]), *inputs], config.output)


def _resolved(rows: Iterator[Names], resolver: Resolver) -> Iterator[pa.Table]:
    for names in rows:
        yield resolver.resolve(names)


def _not_empty(tables: Iterator[pa.Table], message: str, at_once: bool = True) -> Iterator[pa.Table]:
    """Return the same tables, but raise UserError if they have no rows.

    Args:
        at_once: read the first table in this call, so that it raises; otherwise the iteration raises.
    """
    some = _or_error(tables, message)
    return chain([next(some)], some) if at_once else some


def _or_error(tables: Iterator[pa.Table], message: str) -> Iterator[pa.Table]:
    is_empty = True
    for table in tables:
        if len(table):
            is_empty = False
            yield table
    if is_empty:
        raise UserError(message)


def _may_repeat(config: InputConfig) -> bool:
    """Return True if the sources may repeat an image. Disjoint prefixes and a single inventory cannot."""
    if config.list_file or config.manifest or len(config.inventory) > 1 or (config.inventory and config.input):
        return True
    folders = sorted(place_prefix(folder_of(uri)) for uri in config.input)
    return any(later.startswith(earlier) for earlier, later in pairwise(folders))
