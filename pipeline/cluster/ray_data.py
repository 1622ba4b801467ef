"""Datasets that begin with a function of tables which the driver holds."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask


def map_tables(
    function: Callable[..., Iterable[pa.Table]],
    tables: Sequence[pa.Table],
    num_cpus: float,
    concurrency: int | None = None,
    verbose: bool = False,
    **arguments: Any,
) -> ray.data.Dataset:
    """A dataset of the tables that `function(table, **arguments)` yields, with one task for each of the tables.

    `ray.data.from_arrow` would first run a task for each table, to measure what the driver knows: on a machine of few
    cores that takes seconds before anything else can start.

    Args:
        num_cpus: that each task reserves.
        concurrency: number of tasks at the same time; None: as many as Ray Data sees fit.
        verbose: whether Ray Data shows its own progress, of what follows this stage, too.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.verbose_progress = verbose
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # otherwise a UserError arrives as text alone
    # Ray would ask for the memory of every busy process once a second, which stops a predictor for a moment.
    context.memory_usage_poll_interval_s = None
    # Ray would end what has stood still for half an hour: a scene may take hours, and so may nodes that are waited for.
    context.execution_no_progress_timeout_s = -1
    return ray.data.read_datasource(
        _Tables(partial(function, **arguments), function.__name__, tables),
        override_num_blocks=len(tables),  # otherwise Ray would split what a task yields
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
    """A dataset of what actors return or yield for each of the tables, which they get whole.

    Args:
        actor: a class whose instances take a table; `arguments` are those of its constructor.
        num_cpus, gpu: what each actor reserves.
    """
    # Where there are GPUs `Dataset.map_batches` wants a number of rows for all batches. The tables come as those who
    # made them saw fit.
    return tables.map_batches_internal(
        actor,
        fn_constructor_kwargs=arguments,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=1 if gpu else 0,
        compute=compute,
    )
