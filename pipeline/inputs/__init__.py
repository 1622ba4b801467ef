"""Which images there are to label: all sources, one after the other, as streams."""

from collections.abc import Iterator
from itertools import chain, pairwise

import pyarrow as pa

from pipeline import storage
from pipeline.config.inputs import InputConfig
from pipeline.errors import UserError
from pipeline.inputs import inventory, list_files, manifests, prefixes
from pipeline.inputs.patterns import folder_of, is_glob
from pipeline.inputs.selection import ImageSelection
from pipeline.inputs.uris import Names, Resolver, folder_above
from pipeline.storage.places import home_of, place_prefix

__all__ = ["check_no_output_inside_input", "list_images"]


def list_images(config: InputConfig) -> Iterator[pa.Table]:
    """LISTED tables of at most 10,000 images: inputs, lists, manifests, inventories; each image once.

    The call itself looks at the beginning of every source, so that what is missing or unreadable is known at once;
    the rest is read as it is asked for. A row that names no image or one out of bounds has an error.

    Raises: UserError, in the call or while it goes on.
    """
    check_no_output_inside_input(config, config.output)
    selection = ImageSelection(config, _may_repeat(config))
    sources = [
        *(_prefix(uri) for uri in config.input),
        *(_list(uri, config) for uri in config.list_file),
        *(_manifest(uri, config) for uri in config.manifest),
        *(_inventory(uri, config) for uri in config.inventory),
    ]
    return _selected(chain.from_iterable(sources), selection)


def check_no_output_inside_input(config: InputConfig, output: str) -> None:
    """Raise UserError where the next run would take this run's output for images."""
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


def _prefix(uri: str) -> Iterator[pa.Table]:
    prefixes.check_no_bare_scheme(uri)
    message = f"input {uri}: no files there; check the prefix or pattern"
    # The first match of a glob may be a long way off.
    return _not_empty(prefixes.read(uri), message, at_once=not is_glob(uri))


def _list(uri: str, config: InputConfig) -> Iterator[pa.Table]:
    resolver = _resolver(config, home_of(folder_above(uri)))
    return _not_empty(_resolved(list_files.read(uri), resolver), f"list_file {uri}: names no images")


def _manifest(uri: str, config: InputConfig) -> Iterator[pa.Table]:
    files = manifests.files_of(uri)
    folder = folder_above(uri) if manifests.is_one_file(uri, files) else storage.absolute(folder_of(uri))
    names = manifests.read(files, config.uri_column, config.carry)
    return _not_empty(_resolved(names, _resolver(config, home_of(folder))), f"manifest {uri}: has no rows")


def _inventory(uri: str, config: InputConfig) -> Iterator[pa.Table]:
    loaded = inventory.load(uri)
    home = f"s3://{loaded.bucket}"
    # Whoever writes the manifest names the bucket, too.
    trusted = [folder_above(uri), *(storage.absolute(folder_of(one)) for one in config.input)]
    if not config.allow and home not in map(home_of, trusted):
        raise UserError(
            f"inventory {uri}: lists the bucket {loaded.bucket!r}, which is neither the inventory's own nor one of "
            f"--input; if that bucket is meant, add --allow {home}/"
        )
    return _not_empty(_resolved(inventory.read(loaded), _resolver(config, home)), f"inventory {uri}: lists no objects")


def _resolver(config: InputConfig, home: str) -> Resolver:
    # What is labelled anyway may be named, too.
    inputs = [uri for uri in config.input if not is_glob(uri)]
    return Resolver([*(config.allow or [home]), *inputs], config.output)


def _resolved(rows: Iterator[Names], resolver: Resolver) -> Iterator[pa.Table]:
    for names in rows:
        yield resolver.resolve(names)


def _not_empty(tables: Iterator[pa.Table], message: str, at_once: bool = True) -> Iterator[pa.Table]:
    """The same tables; raises UserError if they have no row, at once or when they are asked for."""
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
    """Whether an image may come twice: not from prefixes apart from each other, nor from one inventory."""
    if config.list_file or config.manifest or len(config.inventory) > 1 or (config.inventory and config.input):
        return True
    folders = sorted(place_prefix(folder_of(uri)) for uri in config.input)
    return any(later.startswith(earlier) for earlier, later in pairwise(folders))
