"""Seeded chaos: segmentation runs that lose workers, nodes, drivers and storage requests, and what must hold after.

A `Scenario` is drawn from its seed alone. `Arena.play` has jobs/segment_bucket.py go through it.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipeline import storage
from pipeline.datasets.scenes import scene
from pipeline.demo.local_s3 import s3_environment
from pipeline.images.codec import encode_image
from pipeline.output.parquet import read_table
from pipeline.verify.verification import Verification
from tests.chaos_cluster import TITLES, ChaosCluster, chaos_cluster
from tests.conftest import REPOSITORY, make_bucket
from tests.faulty_storage import CUT, HANG, REFUSE, TRUNCATE, FaultyStorage, faulty_storage, in_turn
from tests.scene_data import write_photos
from tests.swift import KEY, SECRET

RUN_BOUND = 480  # seconds; a run that takes longer hangs
STORAGE_FAULTS = (REFUSE, CUT, HANG, TRUNCATE)
ROWS_PER_PART = 8

BROKEN = {
    "empty.jpg": (b"", "Empty"),
    "text.jpg": (b"not an image", "NotAnImage"),
    "page.png": (b"<html><body>404</body></html>", "NotAnImage"),
}


@dataclass(frozen=True)
class Strike:
    """SIGKILL for a victim when a request reaches storage, before the request goes on.

    The moment is exact, since whoever sent the request waits for its answer.
    """

    kind: str  # its first word is the victim
    method: str  # of the request; '' is any
    folder: str  # of the bucket, that the request is about; '' is any
    number: int  # the so manyth such request of the run, from 1
    lost: bool = False  # the request does not go on; nor do further tries by workers that outlive their driver

    @property
    def victim(self) -> str:
        return self.kind.split()[0]

    def is_about(self, method: str, path: str) -> bool:
        key = path.removeprefix("/").partition("/")[2]
        return self.method in ("", method) and (not self.folder or key.startswith(self.folder + "/"))

    def __str__(self) -> str:
        about = " ".join(part for part in (self.method, self.folder) if part) or "request"
        return f"{self.kind} ({about} {self.number}{', lost' if self.lost else ''})"


MASKS, STATISTICS, PHOTOS = "labels/masks", "labels/class_stats", "photos"
Runs = tuple[tuple[Strike, ...], ...]
BETWEEN_FILES, MENDING = "driver between the two files", "driver while mending"


def predictor(rng: random.Random) -> Strike:
    """While it loads its model or, more often, while there is something to write already."""
    if rng.random() < 0.3:
        return Strike("predictor", "GET", PHOTOS, rng.randint(1, 50))
    return Strike("predictor", "PUT", STATISTICS, rng.randint(1, 3))


def decoder(rng: random.Random) -> Strike:
    return Strike("decoder", "GET", PHOTOS, rng.randint(1, 50))


def writer(rng: random.Random) -> Strike:
    return Strike("writer between the two files", "PUT", MASKS, rng.randint(1, 3), rng.random() < 0.5)


def node(rng: random.Random) -> Strike:
    about = rng.choice([("GET", PHOTOS, 50), ("PUT", STATISTICS, 3), ("PUT", MASKS, 3)])
    return Strike("node", *about[:2], rng.randint(1, about[2]), about[1] == MASKS and rng.random() < 0.5)


def driver(rng: random.Random, latest: int = 75) -> Strike:
    return Strike("driver", "", "", rng.randint(1, latest))


def driver_between_files(rng: random.Random) -> Strike:
    return Strike(BETWEEN_FILES, "PUT", MASKS, rng.randint(1, 3), rng.random() < 0.5)


def several(rng: random.Random, *kinds: Callable[[random.Random], Strike], most: int = 1) -> tuple[Strike, ...]:
    return tuple(kind(rng) for kind in kinds for _ in range(rng.randint(1, most)))


def driver_twice(rng: random.Random) -> Runs:
    """The first driver leaves statistics without masks, the second one dies as it removes them."""
    first = Strike(BETWEEN_FILES, "PUT", MASKS, rng.randint(1, 3), lost=True)
    return (first,), (Strike(MENDING, "DELETE", STATISTICS, 1, rng.random() < 0.5),)


def replacing(rng: random.Random) -> Runs:
    """After a whole run, drivers die as they put new rows of changed photos in the place of old ones."""
    methods = [("PUT", STATISTICS, 2), ("PUT", MASKS, 2), ("DELETE", MASKS, 1), ("DELETE", STATISTICS, 1)]
    method, folder, least = rng.choice(methods)  # the first PUT is of the new rows
    first = Strike(MENDING, method, folder, least + rng.randint(0, 2), rng.random() < 0.5)
    second = Strike(MENDING, "DELETE", rng.choice([MASKS, STATISTICS]), 1, rng.random() < 0.5)
    return (), (first,), (second,)


def everything(rng: random.Random) -> Runs:
    """Workers, a node and the driver in one run, and the next driver, too."""
    workers = several(rng, decoder, predictor, writer, node)
    return (*workers, Strike(BETWEEN_FILES, "PUT", MASKS, 4, rng.random() < 0.5)), (driver(rng, latest=20),)


COURSES: dict[str, Callable[[random.Random], Runs]] = {
    "predictors": lambda rng: (several(rng, predictor, most=3),),
    "decoders": lambda rng: (several(rng, decoder, most=3),),
    "writers": lambda rng: (several(rng, writer, most=3),),
    "nodes": lambda rng: (several(rng, node, most=2),),
    "driver": lambda rng: ((driver(rng),),),
    "driver in a row": lambda rng: ((driver(rng),), (driver(rng, latest=20),)),
    "driver twice": driver_twice,
    "replacing": replacing,
    "everything": everything,
    "board": lambda rng: ((Strike("board", "PUT", STATISTICS, rng.randint(1, 3)),),),
    "storage": lambda rng: ((),),
}


@dataclass(frozen=True)
class Scenario:
    """Faults of a scenario, and the processes or files that they hit."""

    seed: int
    course: str
    runs: Runs  # what strikes each run; calm runs follow
    storage: tuple[str, ...]  # one request in ten ends in one of these, in turn
    num_photos: int
    num_changed: int  # photos, between the first run and the second
    broken: tuple[str, ...]
    predictors: int

    @property
    def kinds(self) -> set[str]:
        return {strike.kind for run in self.runs for strike in run} | {*self.storage}

    def __str__(self) -> str:
        runs = "; then ".join(", ".join(map(str, run)) or "a calm run" for run in self.runs if run or not self.storage)
        storage = f"storage: {', '.join(self.storage)}" if self.storage else ""
        return f"{self.course}: {'; '.join(part for part in (runs, storage) if part)}"


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    course = list(COURSES)[seed % len(COURSES)]
    runs = COURSES[course](rng)
    some = tuple(rng.sample(STORAGE_FAULTS, rng.randint(1, 2))) if rng.random() < 0.3 else ()
    return Scenario(
        seed,
        course,
        runs,
        storage=tuple(rng.sample(STORAGE_FAULTS, 4)) if course == "storage" else some,
        num_photos=rng.randint(64, 100),
        num_changed=rng.randint(4, 8) if course == "replacing" else 0,
        broken=tuple(rng.sample(sorted(BROKEN), rng.randint(1, len(BROKEN)))),
        predictors=rng.randint(1, 2),
    )


# All kinds of fault in a few runs. Each strike's moment is early enough that there is work left for the next run.
EVERY_KIND = Scenario(
    seed=0,
    course="every kind",
    runs=(
        (
            Strike("decoder", "GET", PHOTOS, 10),
            Strike("predictor", "PUT", STATISTICS, 1),
            Strike("writer between the two files", "PUT", MASKS, 1, lost=True),
            Strike("node", "PUT", STATISTICS, 3),
            Strike(BETWEEN_FILES, "PUT", MASKS, 4, lost=True),
        ),
        (Strike(MENDING, "DELETE", STATISTICS, 1),),
        (Strike("board", "PUT", STATISTICS, 1),),
        (Strike("driver", "", "", 20),),
    ),
    storage=STORAGE_FAULTS,
    num_photos=72,
    num_changed=0,
    broken=tuple(sorted(BROKEN)),
    predictors=2,
)


class Trouble:
    """Decides what happens to each request that the storage proxy gets; the moments of a run's strikes among them."""

    def __init__(self) -> None:
        self.cluster: ChaosCluster | None = None
        self._lost: set[tuple[str, str]] = set()  # methods and paths
        self.begin(random.Random(0), (), ())

    def begin(self, rng: random.Random, strikes: tuple[Strike, ...], faults: tuple[str, ...]) -> None:
        """Before a run; its driver is told as soon as there is one."""
        self._rng = rng
        self._fault_of = in_turn(faults) if faults else lambda method, path, number: None
        self._seen = dict.fromkeys(range(len(strikes)), 0)
        self.waiting = dict(enumerate(strikes))
        self.driver: subprocess.Popen[bytes] | None = None

    def choose(self, method: str, path: str, number: int) -> str | None:
        """For faulty_storage."""
        for place, strike in list(self.waiting.items()):
            self._seen[place] += strike.is_about(method, path)
            # Where there is no victim the next such request is as good.
            if strike.is_about(method, path) and self._seen[place] >= strike.number and self._kill(strike.victim):
                del self.waiting[place]
                if strike.kind == BETWEEN_FILES and strike.lost:
                    self._lost.add((method, path))
                elif strike.lost:
                    return CUT
        if (method, path) in self._lost:
            return CUT
        return self._fault_of(method, path, number)

    def _kill(self, victim: str) -> bool:
        if victim == "driver":
            if self.driver is not None:
                self.driver.kill()
            return self.driver is not None
        assert self.cluster is not None
        if victim == "node":
            return self.cluster.kill_node(self._rng)
        return self.cluster.kill_worker(victim, self._rng)


@dataclass
class Played:
    """Result of a scenario."""

    scenario: Scenario
    exits: list[int] = field(default_factory=list)  # of each run
    missed: list[Strike] = field(default_factory=list)  # whose victim was not there at their moment, nor later
    seconds: float = 0.0

    def __str__(self) -> str:
        exits = ", ".join("killed" if code == -signal.SIGKILL else str(code) for code in self.exits)
        missed = f" · missed: {', '.join(map(str, self.missed))}" if self.missed else ""
        story = f"seed {self.scenario.seed}: {self.scenario}{missed}"
        return f"{story} · {len(self.exits)} runs ({exits}) · {self.seconds:.0f} s"


class Arena:
    """Cluster, and storage behind a proxy, on which scenarios run one after the other. Created by `arena`."""

    def __init__(
        self, cluster: ChaosCluster, trouble: Trouble, faulty: FaultyStorage, checkpoint: Path, folder: Path
    ) -> None:
        self._cluster, self._trouble, self.faulty = cluster, trouble, faulty
        self._checkpoint, self._folder = checkpoint, folder

    def play(self, scenario: Scenario) -> Played:
        """Run after run until one of them, after the last strike, ends with 0. Asserts all that must hold."""
        started = time.monotonic()
        self._cluster.replace_lost_nodes()
        self.faulty.choose = self._trouble.choose
        played = Played(scenario)
        place = Place(scenario.num_photos, scenario.broken)
        rng = random.Random(scenario.seed)
        for number in itertools.count():
            strikes = scenario.runs[number] if number < len(scenario.runs) else ()
            if number == 1:
                place.change_photos(scenario.num_changed)
            committed, fetched = place.committed(), dict(self.faulty.gets)
            self._trouble.begin(rng, strikes, scenario.storage)
            code, log = self._run(scenario, place, number)
            played.exits.append(code)
            missed = list(self._trouble.waiting.values())
            played.missed += missed
            assert not strikes or len(missed) < len(strikes), f"run {number}: nothing was hit\n{played}\n{log}"
            again = sorted(path for path in place.paths(committed) if self.faulty.gets[path] > fetched.get(path, 0))
            assert not again, f"run {number} fetched images again that were done: {again}\n{played}\n{log}"
            may_fail = {strike.victim for strike in strikes if strike not in missed} & {"driver", "board"}
            assert code == 0 or may_fail, f"run {number} ended with {code}, though its driver lived\n{played}\n{log}"
            if code == 0:
                self.assert_right(place, f"after run {number}\n{played}\n{log}")
                # One more, where nothing was done before, to see that it finds nothing to do.
                if number >= len(scenario.runs) - 1 and len(committed):
                    break
        played.seconds = time.monotonic() - started
        return played

    def _run(self, scenario: Scenario, place: "Place", number: int) -> tuple[int, str]:
        """One jobs/segment_bucket.py; its exit code and the end of what it printed."""
        options = ["--predictors", str(scenario.predictors)]
        options += ["--relabel-changed"] if scenario.num_changed else []
        driver = self.start(place, f"seed-{scenario.seed}-run-{number}", *options)
        self._trouble.driver = driver.process
        return driver.wait()

    def start(
        self, place: "Place", name: str, *options: str, job: Iterable[str] = ("jobs/segment_bucket.py",)
    ) -> "Driver":
        """Start the job, Python's own options before it, on a scenario's photos; its log has that name."""
        log = self._folder / f"{name}.log"
        command = [*job, "--input", place.photos, "--output", place.output]
        command += ["--checkpoint", str(self._checkpoint), "--rows-per-part", str(ROWS_PER_PART), *options]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=REPOSITORY,
                env={**os.environ, **self._cluster.environment},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Driver(process, log, self._stacks)

    def _stacks(self, driver: int) -> str:
        """Return the stacks of the driver and of the run's workers."""
        working = [
            process.pid
            for process, title in self._cluster.processes()
            if any(part in title for part in TITLES.values())
        ]
        spy = [str(Path(sys.executable).parent / "py-spy"), "dump", "--pid"]
        stacks = [subprocess.run([*spy, str(pid)], capture_output=True, text=True) for pid in [driver, *working]]
        return "\n".join(stack.stdout + stack.stderr for stack in stacks)

    def assert_right(self, place: "Place", when: str) -> None:
        findings = [f"{finding.kind}: {finding}" for finding in Verification(place.output, deep=True).findings()]
        assert not findings, "\n".join([when, *findings])
        rows = place.rows()
        assert sorted(rows["image_uri"].to_pylist()) == sorted(place.expected), when
        kinds = dict(zip(rows["image_uri"].to_pylist(), rows["error_type"].to_pylist(), strict=True))
        assert kinds == place.expected, when
        etags = dict(zip(rows["image_uri"].to_pylist(), rows["etag"].to_pylist(), strict=True))
        assert etags == place.etags(), when


@dataclass(frozen=True)
class Driver:
    """A job in a process of its own."""

    process: "subprocess.Popen[bytes]"
    log: Path
    stacks: Callable[[int], str]

    def wait(self) -> tuple[int, str]:
        """Its exit code and the end of what it printed. Asserts that it ends in time."""
        try:
            self.process.wait(RUN_BOUND)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.log.name} hangs\n{self.said}\n{self.stacks(self.process.pid)}") from None
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        return self.process.returncode, self.said

    @property
    def said(self) -> str:
        """The end of what it has printed."""
        return self.log.read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def arena(endpoint: str, checkpoint: Path, folder: Path) -> Iterator[Arena]:
    """An arena on the storage at this endpoint, which this process's environment must lead to.

    Args:
        checkpoint: a path.
        folder: for the logs of runs.
    """
    trouble = Trouble()
    with (
        faulty_storage(endpoint, choose=trouble.choose) as faulty,
        chaos_cluster(s3_environment(faulty.endpoint, KEY, SECRET)) as cluster,
    ):
        trouble.cluster = cluster
        yield Arena(cluster, trouble, faulty, checkpoint, folder)


class Place:
    """A bucket with a scenario's photos, read past the proxy."""

    def __init__(self, num_photos: int, broken: Iterable[str]) -> None:
        bucket = make_bucket()
        self.photos, self.output = f"{bucket}/photos", f"{bucket}/labels"
        # Each image, and the kind of its failure.
        self.expected: dict[str, str | None] = dict.fromkeys(write_photos(self.photos, num_photos))
        for name in broken:
            content, kind = BROKEN[name]
            storage.write_bytes(f"{self.photos}/{name}", content)
            self.expected[f"{self.photos}/{name}"] = kind

    def change_photos(self, number: int) -> None:
        """Write others under the names of some, of all parts."""
        good = sorted(uri for uri, kind in self.expected.items() if kind is None)
        for index, uri in enumerate(good[:: len(good) // number] if number else []):
            storage.write_bytes(uri, encode_image(scene(2, index, 65, 97)[0]))

    def etags(self) -> dict[str, str]:
        return {file.uri: file.etag for page in storage.listed(self.photos) for file in page if file.etag}

    def rows(self) -> pa.Table:
        """Return the current rows of the masks parts: image_uri, error_type, etag."""
        columns = ["image_uri", "error_type", "etag"]
        tables = [read_table(uri, columns) for uri in storage.find(f"{self.output}/masks")]
        return pa.concat_tables(tables) if tables else pa.table({name: pa.array([], pa.string()) for name in columns})

    def minutes_ago(self) -> float:
        """Return the age of the newest row in minutes, from the time in it."""
        tables = [read_table(uri, ["segmented_at"]) for uri in storage.find(f"{self.output}/masks")]
        newest = max(time for table in tables for time in table["segmented_at"].to_pylist())
        return (datetime.now(UTC) - newest).total_seconds() / 60

    def committed(self) -> set[str]:
        """Images that are done: they have a row, of the photo as it is now."""
        rows, etags = self.rows(), self.etags()
        pairs = zip(rows["image_uri"].to_pylist(), rows["etag"].to_pylist(), strict=True)
        return {uri for uri, etag in pairs if etags[uri] == etag}

    def paths(self, uris: set[str]) -> set[str]:
        """Of images, as the proxy has them."""
        return {uri.removeprefix("s3:/") for uri in uris}
