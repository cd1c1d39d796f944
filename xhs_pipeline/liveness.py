"""Runs whose process was killed: found, marked failed, and their places in the GPU pool freed.

Dagster learns nothing from a process that dies by SIGKILL: its run stays "started", keeps its place in the pool, and every
later run would wait for that place for ever. So each run holds a lock on a file of its own while its process lives (the
system frees it however the process ends), and a run that starts first looks for runs whose file is no longer locked.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import dagster as dg
from dagster import Executor

UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def _locks(instance: dg.DagsterInstance) -> Path | None:
    """Where this instance's lock files are, or None for an instance that ends with its process."""
    return None if instance.is_ephemeral else Path(instance.root_directory) / "alive"


@contextlib.contextmanager
def alive(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Hold this run's lock for the time of the block."""
    folder = _locks(instance)
    if folder is None:
        yield
        return
    folder.mkdir(exist_ok=True)
    path, unlocked = folder / run_id, folder / f".{run_id}.new"
    with unlocked.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unlocked.rename(path)  # nobody ever sees the file without its lock
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs failed whose process is gone, and free their pool slots; returns their ids.

    A run without a lock file was started by something else and is left alone.
    """
    folder = _locks(instance)
    ended: list[str] = []
    if folder is None:
        return ended
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        path = folder / run.run_id
        with contextlib.suppress(FileNotFoundError), path.open("r+") as file:
            if _free(file):
                instance.report_run_failed(run, "The run's process is gone (killed, or the machine went down).")
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
                path.unlink(missing_ok=True)
                ended.append(run.run_id)
    _free_places_of_finished_runs(instance)
    return ended


def _free_places_of_finished_runs(instance: dg.DagsterInstance) -> None:
    """A run that the code server itself marked failed after a kill still holds its place."""
    storage = instance.event_log_storage
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def _free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _LivingExecutor(Executor):
    """The in-process executor, around which the run shows that it is alive."""

    def __init__(self, inner: Executor):
        self._inner = inner

    @property
    def retries(self) -> Any:
        return self._inner.retries

    @property
    def step_dependency_config(self) -> Any:
        return self._inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        with alive(plan_context.instance, plan_context.run_id):
            for run_id in end_dead_runs(plan_context.instance):
                plan_context.log.warning(f"run {run_id} had died; marked failed, its place in the pool is free")
            yield from self._inner.execute(plan_context, execution_plan)


def _create(context: dg.InitExecutorContext) -> Executor:
    inner = dg.in_process_executor.executor_creation_fn
    assert inner is not None
    return _LivingExecutor(inner(context))


# Dagster's in-process executor, for runs that may be killed.
living_in_process_executor = dg.ExecutorDefinition(
    name="in_process",
    config_schema=dg.in_process_executor.config_schema,  # type: ignore[arg-type]
    requirements=[],
    executor_creation_fn=_create,
)
