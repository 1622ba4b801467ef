"""Names of hidden files, which operating systems and other programs leave beside images."""

import re

HIDDEN = r"(?i)(?:^|/)(?:\.|(?:__MACOSX|@eaDir)/|(?:Thumbs\.db|desktop\.ini)$)"
"""Expression, for Python and Arrow, that finds hidden files by their path below a folder.

Hidden are files and folders that begin with a dot (on macOS also the resource forks `._*`), the folders of archives and
thumbnails, Thumbs.db and desktop.ini.
"""


def is_hidden(path: str) -> bool:
    """Return True for the path of a hidden file, relative to a folder that may itself be hidden."""
    return re.search(HIDDEN, path) is not None
