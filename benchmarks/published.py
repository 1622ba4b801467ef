"""Tables of measurements in the documentation, generated from benchmark results: `python -m benchmarks.published`.

Each table is between two marks of its page, with a line below it that names the result, the machine and the date.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import published_tables as tables
from benchmarks.published_tables import Report
from scripts.generate_docs import filled_in

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class Published(NamedTuple):
    """Table on a page of the documentation."""

    page: str  # in docs/
    mark: str
    result: str  # in benchmarks/results/, without .json
    table: Callable[[Report], str]


PUBLISHED = (
    Published("performance.md", "forward and labels", "model-cpu-inference", tables.inference),
    Published("performance.md", "training", "model-cpu-training", tables.training),
    Published("throughput.md", "beside a loop", "pipeline-cpu", tables.pipeline_beside_loop),
    Published("throughput.md", "beside the textbook", "pipeline-resnet50-cpu", tables.pipeline_beside_textbook),
    Published("throughput.md", "memory", "memory-cpu", tables.memory),
    Published("ingest.md", "rates", "ingest-cpu", tables.ingest_rates),
    Published("inputs.md", "listing", "listing-cpu", tables.listing),
    Published("segmentation.md", "nothing new", "nothing-new-cpu", tables.nothing_new),
    Published("scale.md", "images", "scale-cpu", tables.scale),
    Published("scale.md", "messages", "traffic-cpu", tables.messages),
    Published("scale.md", "time of messages", "traffic-cpu", tables.message_times),
    Published("storage.md", "small objects", "fetch-cpu", tables.fetch),
)


def documents() -> dict[Path, str]:
    """Return the pages with up-to-date tables."""
    pages = {ROOT / "docs" / name: (ROOT / "docs" / name).read_text() for name in {one.page for one in PUBLISHED}}
    for one in PUBLISHED:
        report = json.loads((RESULTS / f"{one.result}.json").read_text())
        content = f"{one.table(report)}\n\n{_source(one.result, report)}"
        path = ROOT / "docs" / one.page
        pages[path] = filled_in(pages[path], f"benchmark: {one.mark}", content)
    return pages


def _source(result: str, report: Report) -> str:
    """Return the line below a table."""
    return f"*[{result}.json](../benchmarks/results/{result}.json): {report['machine']}, {report['date'][:10]}*"


def main() -> None:
    for path, text in documents().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
