"""Markdown tables of benchmark results: one function for each table in the documentation."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

Report = dict[str, Any]


def markdown(titles: str, rules: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table; `titles` and `rules` are its first two lines without the outer bars."""
    lines = [f"| {titles} |", f"|{rules}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines).replace("|  |", "| |")


def inference(report: Report) -> str:
    rows = (
        (
            f"{row['task']}, {row['variant']}",
            f"{row['ms_per_image']:.0f}",
            f"{row['speedup']:.2f}",
            f"{row['share_of_rate']:.0%}",
            f"{row['agreement']:.2%}" if row.get("agreement") is not None else "-",
        )
        for row in report["rows"]
    )
    table = markdown("473 x 473 | ms an image | speed-up | of the matrix rate | same labels", "-|-|-|-|-", rows)
    rates = ", ".join(f"{rate:.0f} in {precision}" for precision, rate in report["matrix_gflop_per_s"].items())
    return f"{table}\n\n*Matrix rates of the same run, GFLOP/s: {rates}.*"


def training(report: Report) -> str:
    rows = (
        (row["variant"], f"{row['ms_per_image']:.0f}", f"{row['speedup']:.2f}", f"{row['mib'] / 1024:.1f} GiB")
        for row in report["rows"]
    )
    titles = "a training step, 2 crops of 473 x 473 | ms an image | speed-up | peak memory"
    return markdown(titles, "-|-|-|-", rows)


def pipeline_beside_loop(report: Report) -> str:
    both = _Rounds(report, "loop")
    rows = [
        *both.rates(),
        both.row("first images after, s", lambda run: f"{run['to_first']:.0f}"),
        both.row("processor time for an image, s", lambda run: f"{sum(run['cpu_seconds_per_image'].values()):.3f}"),
    ]
    return markdown("| loop | ours | ours over loop", "-|-|-|-", rows)


def pipeline_beside_textbook(report: Report) -> str:
    both = _Rounds(report, "textbook")
    rows = [*both.rates(), both.row("memory of all processes, GiB", lambda run: f"{run['peak_gib']:.1f}")]
    return markdown("| textbook | ours | ours over textbook", "-|-|-|-", rows)


class _Rounds:
    """Alternating runs of variant `other` and of ours."""

    def __init__(self, report: Report, other: str) -> None:
        self._runs = [[run for run in report["runs"] if run["variant"] == variant] for variant in (other, "ours")]

    def rates(self) -> list[list[str]]:
        return [
            [*self.row("images/s, from the first tenth to the last", _rate("steady"))[:3], self._ratio("steady")],
            [*self.row("images/s, with start and end", _rate("images_per_s"))[:3], self._ratio("images_per_s")],
        ]

    def row(self, title: str, figure: Callable[[Report], str]) -> list[str]:
        return [title, *(", ".join(map(figure, runs)) for runs in self._runs), ""]

    def _ratio(self, name: str) -> str:
        ratios = [ours[name] / other[name] for other, ours in zip(*self._runs, strict=True)]
        middle, low, high = (f"{x:#.3g}" for x in (statistics.median(ratios), min(ratios), max(ratios)))
        return f"{middle} ({low} to {high})"


def _rate(name: str) -> Callable[[Report], str]:
    return lambda run: f"{run[name]:.2f}"


def memory(report: Report) -> str:
    names = ("driver", "predictor", "tasks that decode and write", "Ray itself", "object store")
    rows = ((f"{row['images']:,}", *(f"{row[name]:.2f}" for name in names)) for row in report["highest_gib"])
    titles = "images | driver | predictor | tasks that decode and write | Ray's own processes | object store"
    return markdown(titles, "-:|-:|-:|-:|-:|-:", rows)


def ingest_rates(report: Report) -> str:
    found = {(*_case(row), row["decode"], row["variant"]): row for row in report["rows"]}

    def rates(case: tuple[str, str], decode: bool, variants: tuple[str, ...]) -> Iterable[str]:
        yield from (_crops(found[*case, decode, name]["crops_per_s"]) for name in variants)
        warp = found[*case, decode, "one warp"]
        yield from (f"**{_crops(warp['crops_per_s'])}**", f"{warp['speedup']:.1f}")

    rows = (
        (*case, *rates(case, False, ("chain, uint8", "chain, float32")), *rates(case, True, ("chain, uint8",)))
        for case in _cases(report["rows"])
    )
    titles = (
        "images | crop | chain uint8 | chain float32 | one warp | speed-up | with decoding: chain | one warp | speed-up"
    )
    return markdown(titles, "-|-|-|-|-|-|-|-|-", rows)


def _cases(rows: list[Report]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(map(_case, rows)))


def _case(row: Report) -> tuple[str, str]:
    height, width = row["crop"]
    return row["images"].replace("camvid", "CamVid"), f"{width} x {height}"


def _crops(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 9.95 else f"{rate:.1f}"


def listing(report: Report) -> str:
    formats = {"parquet": "Parquet", "csv": "CSV"}
    rows = (
        (
            title,
            _millions(row["rows"]),
            f"{row['seconds']:.1f}",
            _thousands(row["rows_per_s"]),
            f"{row['memory_peak_mib']} MiB",
            f"{row['memory_before_mib']} MiB",
        )
        for name, title in formats.items()
        for row in report["listing"]
        if row["format"] == name
    )
    titles = "manifest | rows | seconds | images per second | peak memory of the process | before listing"
    return markdown(titles, "-|-:|-:|-:|-:|-:", rows)


def nothing_new(report: Report) -> str:
    rows = (
        (
            _millions(row["rows"]),
            str(row["parts"]),
            f"{row['seconds_reading_parts']:.1f}",
            f"{row['seconds_in_all']:.1f}",
            f"{row['memory_peak_mib'] / 1024:.1f} GiB",
        )
        for row in report["runs"]
    )
    titles = "finished rows | parts | reading them, s | the whole run, s | memory of the process at most"
    return markdown(titles, "-:|-:|-:|-:|-:", rows)


def _millions(count: int) -> str:
    return f"{count // 1_000_000} million"


def _thousands(count: int) -> str:
    return f"{round(count, -3):,}"


def fetch(report: Report) -> str:
    rows = (
        (row["way"], f"{row['cpu_ms']:.2f}", f"{row['wall_ms']:.1f}", f"{row['cpu_ratio']:.1f}")
        for row in report["rows"]
    )
    return markdown("by | processor ms | wall ms | processor time of s3fs over this", "-|-|-|-", rows)


def scale(report: Report) -> str:
    def others(run: Report) -> float:
        held = run["highest_gib"]
        return sum(gib for role, gib in held.items() if role not in ("driver", "object store"))

    rows = (
        (
            f"{run['images']:,}",
            f"{run['images_per_s']:,}",
            f"{run['seconds_to_first']:.1f} s",
            f"{run['parts']:,}",
            f"{run['driver_mib'] / 1024:.2f} GiB",
            f"{others(run):.2f} GiB",
            f"{run['nothing_new_seconds']:.1f} s",
            f"{run['nothing_new_driver_mib'] / 1024:.2f} GiB",
        )
        for run in report["runs"]
    )
    titles = (
        "images | images/s | first after | parts | driver, peak | all other processes | the run after it: nothing new"
        " | its driver"
    )
    return markdown(titles, "-:|-:|-:|-:|-:|-:|-:|-:", rows)


def messages(report: Report) -> str:
    networks = report["networks"]
    rows = (
        [title, *(figure(sent) for sent in networks.values())]
        for title, figure in {
            "gradients of all parameters, all-reduced beside the backward pass": lambda sent: _mb(
                sent["gradient_bytes"]
            ),
            "BatchNorm layers, each with a gathering forward and a reduction backward that the step waits for": (
                lambda sent: str(len(sent["channels"]))
            ),
            "what a worker sends for them, forward": lambda sent: f"{sent['gathered_bytes'] / 1e3:.0f} kB",
        }.items()
    )
    names = [name.replace("resnet", "ResNet-") for name in networks]
    return markdown(f"| {' | '.join(names)}", "-" + "|-:" * len(names), rows)


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def message_times(report: Report) -> str:
    by_gpus = report["networks"]["resnet50"]["seconds_by_gpus"]
    small = next(iter(by_gpus))
    parts = {
        "synchronized BatchNorm, ms a step": lambda n: by_gpus[n]["batch norm"],
        f"the same with `optimization.batch_norm_workers: {small}`, ms a step": lambda n: by_gpus[small]["batch norm"],
        "gradients, ms a step": lambda n: by_gpus[n]["gradients"],
    }
    rows = ([title, *(f"{1000 * seconds(n):.0f}" for n in by_gpus)] for title, seconds in parts.items())
    _, *others = by_gpus
    return markdown(f"PSPNet50 | {small} GPUs | {' | '.join(others)}", "-" + "|-:" * len(by_gpus), rows)
