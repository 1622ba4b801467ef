"""Ray datasets that apply a function, and then actors, to tables held by the driver."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.cluster import ray_internals


def map_tables(
    function: Callable[..., Iterable[pa.Table]],
    tables: Sequence[pa.Table],
    num_cpus: float,
    concurrency: int | None = None,
    verbose: bool = False,
    **arguments: Any,
) -> ray.data.Dataset:
    """Return a lazy dataset of the tables that `function(table, **arguments)` yields, with one task per input table.

    `ray.data.from_arrow` would first run a task for each table to measure what the driver knows already. On a machine
    with few cores that takes seconds before anything else can start.

    Args:
        num_cpus: CPUs that each task reserves.
        concurrency: maximum number of concurrent tasks; None: Ray Data chooses.
        verbose: show Ray Data's own progress, also that of the following stages.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.verbose_progress = verbose
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # otherwise a UserError arrives only as text
    # By default Ray polls the memory of each busy process every second, which pauses a predictor for a moment.
    context.memory_usage_poll_interval_s = None
    # By default Ray ends an execution without progress for 30 minutes. A scene, or waiting for nodes, may take hours.
    context.execution_no_progress_timeout_s = -1
    return ray.data.read_datasource(
        _Tables(partial(function, **arguments), function.__name__, tables),
        override_num_blocks=len(tables),  # otherwise Ray splits the output of a task
        num_cpus=num_cpus,
        concurrency=concurrency,
    )


class _Tables(Datasource):
    def __init__(
        self, function: Callable[[pa.Table], Iterable[pa.Table]], name: str, tables: Sequence[pa.Table]
    ) -> None:
        super().__init__()
        self._function, self._name, self._tables = function, name, tables

    def get_name(self) -> str:
        return self._name

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(self._function, table), unknown) for table in self._tables]


def map_by_actors(
    tables: ray.data.Dataset,
    actor: type,
    arguments: dict[str, Any],
    compute: ray.data.ActorPoolStrategy,
    num_cpus: float,
    gpu: bool,
) -> ray.data.Dataset:
    """Return a dataset of what actors return or yield for each of the tables. Tables are not split or merged.

    Args:
        actor: class whose instances are called with a table.
        arguments: keyword arguments of the class's constructor.
        num_cpus, gpu: CPUs, and whether a GPU, that each actor reserves.
    """
    return ray_internals.map_blocks(
        tables,
        actor,
        fn_constructor_kwargs=arguments,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=1 if gpu else 0,
        compute=compute,
    )
