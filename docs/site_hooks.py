"""The site is made of README.md and docs/: the front page is README's, and links to other files become their names."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# Weight of pages in the search: of pages that match, readers want the task's before a page on its background.
BOOSTS = {"storage.md": 2.0, "training.md": 2.0, "decisions/": 0.5}
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite relative links, outside of code, and weight the page in the search."""
    for start, boost in BOOSTS.items():
        if page.file.src_uri.startswith(start):
            page.meta["search"] = {"boost": boost}
    folder = "" if page.file.src_uri == "index.md" else posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def rewritten(link: re.Match[str]) -> str:
        mark, text, target, section = link[1], link[2], link[3], link[4] or ""
        if "://" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path == "README.md":
            path = "docs/index.md"
        if path.startswith("docs/") and posixpath.splitext(path)[1]:
            here = posixpath.join("docs", posixpath.dirname(page.file.src_uri))
            return f"{mark}[{text}]({posixpath.relpath(path, here)}{section})"
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    pieces = re.split(r"(```.*?```|`[^`\n]*`(?!\]))", markdown, flags=re.DOTALL)
    return "".join(piece if piece.startswith("`") else LINK.sub(rewritten, piece) for piece in pieces)
