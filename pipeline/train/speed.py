"""Speed of training."""

import time


class SpeedMeter:
    """Training speed in images per second, over all workers."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._steps, self._seconds = 0, 0.0
        self._since, self._started = 0, time.perf_counter()

    def restart(self) -> None:
        """Restart the clock, to exclude time that was not spent training, such as writing a checkpoint."""
        self._since, self._started = 0, time.perf_counter()

    def step(self) -> None:
        self._since += 1

    def lap(self) -> float:
        """Return the speed since the last lap or restart, and start a new lap."""
        seconds = time.perf_counter() - self._started
        self._steps, self._seconds = self._steps + self._since, self._seconds + seconds
        rate = self._since * self._batch_size / seconds
        self.restart()
        return rate

    def overall(self) -> float | None:
        """Return the speed over all laps; None if no step was taken."""
        return self._steps * self._batch_size / self._seconds if self._steps else None
