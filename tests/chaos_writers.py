"""Seeded chaos of several writers: two runs at once, commits that come late, clocks apart, listings that lag behind.

One output has one writer: `play` asserts that whoever comes second is refused or takes over, and that rows are right
in the end. Strikes at workers, nodes and drivers alone are in `tests.chaos`.
"""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import Arena, Driver, Place
from tests.faulty_storage import CUT, HOLD

MASKS, STATISTICS, LEASES = "labels/masks/", "labels/class_stats/", "labels/_leases/"
MOMENTS = ("as the next run begins", "as the next run writes", "after the next run's end")
RUNS = 4  # at the most, until one ends with 0


@dataclass(frozen=True)
class WriterScenario:
    """Parameters of a scenario; each course uses some of them."""

    seed: int
    course: str
    num_photos: int
    broken: tuple[str, ...]
    seconds_between: float  # the starts of two runs
    number: int  # of the part at whose commit the first driver is killed
    moment: str  # when that commit comes
    clocks: tuple[int, ...]  # minutes by which the drivers' clocks are ahead
    lag: float  # seconds until listings show an object

    def __str__(self) -> str:
        told = {
            "two at once": f"started {self.seconds_between:.1f} s apart",
            "late commit": f"part {self.number} comes {self.moment}",
            "clocks apart": f"minutes ahead: {', '.join(map(str, self.clocks))}",
            "lagging listing": f"{self.lag:.1f} s, driver killed at part {self.number}",
        }
        return f"seed {self.seed}: {self.course}: {told[self.course]}"


def draw(seed: int) -> WriterScenario:
    """Return the scenario of a seed."""
    rng = random.Random(f"writers {seed}")
    course = list(COURSES)[seed % len(COURSES)]
    return WriterScenario(
        seed,
        course,
        num_photos=rng.randint(32, 48),
        broken=("text.jpg",),
        seconds_between=rng.choice([0.0, rng.uniform(0, 2)]),
        # On a busy machine the blocks pile up, and a run may write no more than two parts.
        number=min(2, rng.randint(1, 3)),
        moment=MOMENTS[seed // len(COURSES) % len(MOMENTS)],
        clocks=tuple(rng.sample([-11, -7, -3, 3, 7, 11], 3)),
        lag=rng.uniform(1, 6),
    )


def play(arena: Arena, scenario: WriterScenario) -> str:
    """Play a scenario, assert all that must hold, and tell how it went."""
    began = time.monotonic()
    place = Place(scenario.num_photos, scenario.broken)
    arena.faulty.choose = lambda method, path, number: None
    exits = COURSES[scenario.course](Stage(arena, scenario, place))
    told = ", ".join("killed" if code == -signal.SIGKILL else str(code) for code in exits)
    return f"{scenario} · {len(exits)} runs ({told}) · {time.monotonic() - began:.0f} s"


@dataclass
class Stage:
    """Output of a scenario, and the drivers that write it."""

    arena: Arena
    scenario: WriterScenario
    place: Place
    started: int = 0

    def start(self, *options: str, minutes_ahead: int = 0) -> Driver:
        self.started += 1
        name = f"writers-{self.scenario.seed}-run-{self.started}"
        job = ["-m", "tests.skewed_clock", str(minutes_ahead)] if minutes_ahead else ["jobs/segment_bucket.py"]
        return self.arena.start(self.place, name, "--predictors", "1", *options, job=job)

    def run_killed(self, blow: "Blow", *options: str, minutes_ahead: int = 0) -> int:
        """One run, whose driver is killed by the blow."""
        self.arena.faulty.choose = blow.choose
        blow.driver = self.start(*options, minutes_ahead=minutes_ahead)
        code, said = blow.driver.wait()
        assert code == -signal.SIGKILL, f"{self.scenario}: was not hit\n{said}"
        return code

    def run(self, *options: str, minutes_ahead: int = 0, may_end_with: tuple[int, ...] = (0,)) -> int:
        code, said = self.start(*options, minutes_ahead=minutes_ahead).wait()
        assert code in may_end_with, f"{self.scenario}: ended with {code}\n{said}"
        return code

    def assert_right(self) -> None:
        self.arena.assert_right(self.place, str(self.scenario))

    def assert_nothing_to_do(self) -> int:
        """Run once more: it fetches no image, and what is there stays right."""
        gets = dict(self.arena.faulty.gets)
        code = self.run()
        photos = self.place.paths(set(self.place.expected))
        assert not [path for path in photos if self.arena.faulty.gets[path] > gets.get(path, 0)], str(self.scenario)
        self.assert_right()
        return code


class Blow:
    """Kills a driver at a request; that request, and further tries at it, have a fault."""

    def __init__(self, is_moment: Callable[[str, str], bool], number: int, fault: str | None) -> None:
        self._is_moment, self._number, self._fault = is_moment, number, fault
        self._seen = 0
        self._struck: str | None = None
        self.driver: Driver | None = None
        self.then: Callable[[str, str], None] = lambda method, path: None  # at each later request

    def choose(self, method: str, path: str, number: int) -> str | None:
        """For faulty_storage."""
        if self._struck is not None:
            self.then(method, path)
            # Of a worker that outlives its driver for a moment.
            return CUT if self._fault and (method, path) == ("PUT", self._struck) else None
        self._seen += self._is_moment(method, path)
        if self._seen < self._number or self.driver is None:
            return None
        self._struck = path
        self.driver.process.kill()
        return self._fault


def commits(method: str, path: str) -> bool:
    return method == "PUT" and MASKS in path


def repairs(method: str, path: str) -> bool:
    return (method == "DELETE" and (MASKS in path or STATISTICS in path)) or commits(method, path)


def two_at_once(stage: Stage) -> list[int]:
    """One of them writes, and the other says who does."""
    first = stage.start()
    time.sleep(stage.scenario.seconds_between)
    second = stage.start()
    ended = [first.wait(), second.wait()]
    said = "\n".join(said for _, said in ended)
    assert sorted(code for code, _ in ended) == [0, 2], f"{stage.scenario}\n{said}"
    (refused,) = [said for code, said in ended if code == 2]
    assert "is being written by run" in refused, refused
    stage.assert_right()
    return [code for code, _ in ended] + [stage.assert_nothing_to_do()]


def late_commit(stage: Stage) -> list[int]:
    """The first driver dies between the two files of a part, and the second file comes when another run goes on."""
    faulty, moment = stage.arena.faulty, stage.scenario.moment
    faulty.released.clear()
    landed = faulty.landed
    blow = Blow(commits, stage.scenario.number, HOLD)
    exits = [stage.run_killed(blow)]

    def release(method: str, path: str) -> None:
        begins, writes = method == "PUT" and LEASES in path, commits(method, path)
        if (begins and moment == MOMENTS[0]) or (writes and moment == MOMENTS[1]):
            faulty.released.set()

    blow.then = release
    exits.append(stage.run())
    if moment == MOMENTS[2]:
        assert not faulty.released.is_set()
        stage.assert_right()
        faulty.released.set()
        end = time.monotonic() + 30
        while faulty.landed == landed:
            assert time.monotonic() < end, "the commit did not come"
            time.sleep(0.05)
        exits.append(stage.run())
    assert faulty.landed == landed + 1, f"{stage.scenario}: the commit did not come"
    stage.assert_right()
    return [*exits, stage.assert_nothing_to_do()]


def clocks_apart(stage: Stage) -> list[int]:
    """Rows of changed photos take the place of older ones, whatever the clocks of their runs say."""
    one, two, three = stage.scenario.clocks
    exits = [stage.run(minutes_ahead=one)]
    assert abs(stage.place.minutes_ago() + one) < 2, "the clocks were right"
    stage.place.change_photos(5)
    blow = Blow(repairs, stage.scenario.number + 1, None)
    exits.append(stage.run_killed(blow, "--relabel-changed", minutes_ahead=two))
    exits.append(stage.run("--relabel-changed", minutes_ahead=three))
    stage.assert_right()
    return [*exits, stage.assert_nothing_to_do()]


def lagging_listing(stage: Stage) -> list[int]:
    """Hide the newest commits from listings. A run that cannot correct the consequences must report them."""
    stage.arena.faulty.lag = stage.scenario.lag
    try:
        exits = [stage.run_killed(Blow(commits, stage.scenario.number, None))]
        while exits[-1] != 0:
            assert len(exits) < RUNS, str(stage.scenario)
            exits.append(stage.run(may_end_with=(0, 1)))
        stage.assert_right()
    finally:
        stage.arena.faulty.lag = 0.0
    return [*exits, stage.assert_nothing_to_do()]


COURSES: dict[str, Callable[[Stage], list[int]]] = {
    "two at once": two_at_once,
    "late commit": late_commit,
    "clocks apart": clocks_apart,
    "lagging listing": lagging_listing,
}
