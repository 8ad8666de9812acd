"""A queue handed to a cluster: one Slurm job a run through submitit, with the
same records and checkpoints as everywhere.

    python -m mimetic sweep paper --partition gpu --gpus 1 --minutes 60 --at-once 8
    python -m mimetic sweep lab --executor local --at-once 2          the same on this machine, to try it

Finished runs are not submitted. A job that Slurm preempts or that reaches its time limit is queued again by submitit
and goes on from its checkpoint; a run that another job holds is left to it. With more than one GPU or node the
processes of a job train its run together (training.parallel). Records appear in data/runs, so the machines must share
that folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimetic.data.fetch import Unavailable, check_writable
from mimetic.experiments.configs import RunConfig
from mimetic.experiments.processes import until_terminated
from mimetic.experiments.runs import check, check_processes, existing, run_or_restart
from mimetic.messages import check_choice
from mimetic.training.checkpoint import BusyCheckpoint

if TYPE_CHECKING:
    import submitit

EXECUTORS = ("slurm", "local")
LEAST_SECONDS = 60  # of work, for a job to get on
# seconds before the time limit at which a job is told to stop; submitit's own on this machine
MARGINS = {"slurm": 120, "local": 30}


@dataclass(frozen=True)
class Resources:
    """What each job gets."""

    minutes: int = 60  # time limit of a job; a run may take several
    gpus: int = 1  # on each node; one process each, or one process a node where there are none
    nodes: int = 1
    cpus: int = 8  # for each process
    partition: str | None = None  # Slurm's; None: its default
    account: str | None = None


class RunJob:
    """One run, as submitit pickles it; called in each of the job's processes."""

    def __call__(self, config: RunConfig) -> str:
        """Train the run (or what is left of it); returns its name."""
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            import submitit.helpers

            # what training.parallel.connect reads; it chooses the GPU itself
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        try:
            run_or_restart(config, progress=False)
        except BusyCheckpoint:
            pass  # whoever holds it finishes it
        return config.name

    def checkpoint(self, config: RunConfig) -> submitit.helpers.DelayedSubmission:
        """What submitit queues when the job is stopped early: the same, whose run goes on from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, config)


def submit(
    runs: Sequence[RunConfig],
    folder: str | Path,
    *,
    executor: str = "slurm",
    resources: Resources = Resources(),
    at_once: int = 8,
) -> list[submitit.Job]:
    """Submit every run that has no record yet, in order, as one job array; returns the jobs (empty: nothing to do).

    Args:
        folder: where submitit keeps the jobs' logs, on a disk that the machines share.
        executor: slurm, or local: processes on this machine.
        at_once: how many jobs may run at a time.

    Raises:
        ValueError: a bad config, executor or number; nothing has been submitted.
        Unavailable: submitit is not installed, or there is no Slurm here.
        RecordError: a record of the queue is damaged.
    """
    check_choice("executor", executor, EXECUTORS)
    for name, value, low in [
        ("at_once", at_once, 1),
        *((n, getattr(resources, n), n != "gpus") for n in ("minutes", "gpus", "nodes", "cpus")),
    ]:
        if value < low:
            raise ValueError(f"{name} must be at least {int(low)}, not {value}")
    if executor == "local" and resources.gpus and at_once > 1:
        raise ValueError(
            f"at_once must be 1 on this machine with GPUs, not {at_once}: its jobs would all take the first of them"
            " (`queue` trains on every card)"
        )
    least = MARGINS[executor] + LEAST_SECONDS
    if 60 * resources.minutes <= least:
        raise ValueError(
            f"minutes must be more than {least / 60:g}, not {resources.minutes}: a job is told to stop"
            f" {MARGINS[executor]} seconds before its limit"
        )
    check_writable(Path(folder), "--folder")
    processes = resources.nodes * max(1, resources.gpus)
    for config in runs:
        check(config)
        check_processes(config, processes)
    waiting = [config for config in runs if existing(config) is None]
    if not waiting:
        return []
    try:
        import submitit
    except ImportError:
        raise Unavailable('a sweep needs submitit, which is not installed: pip install "mimetic[cluster]"') from None
    if executor == "slurm" and submitit.SlurmExecutor.affinity() < 0:
        raise Unavailable(
            "there is no Slurm here (no srun command): submit from a cluster's login node, or choose --executor local"
        )
    options = {f"{executor}_max_num_timeout": 1000}  # each time goes on from a checkpoint
    queue = submitit.AutoExecutor(folder=folder, cluster=executor, **options)
    queue.update_parameters(**parameters(executor, resources, at_once))
    if executor == "slurm":
        jobs = queue.map_array(RunJob(), waiting)
        for job, config in zip(jobs, waiting, strict=True):
            job.run_name = config.name
        return jobs
    return _in_batches(queue, waiting, at_once)


def parameters(executor: str, resources: Resources, at_once: int) -> dict[str, Any]:
    """Resources in submitit's words."""
    found: dict[str, Any] = {
        "name": "mimetic", "timeout_min": resources.minutes, "nodes": resources.nodes, "gpus_per_node": resources.gpus,
        "tasks_per_node": max(1, resources.gpus), "cpus_per_task": resources.cpus,
    }  # fmt: skip
    if executor == "slurm":
        found |= {"slurm_array_parallelism": at_once, "slurm_signal_delay_s": MARGINS[executor]}
        found |= {f"slurm_{name}": value for name in ("partition", "account") if (value := getattr(resources, name))}
    return found


def _in_batches(queue: submitit.AutoExecutor, waiting: Sequence[RunConfig], at_once: int) -> list[submitit.Job]:
    """On one machine nothing else limits how many processes start: a job begins when another has ended."""
    import submitit.helpers

    jobs: list[submitit.Job] = []
    with _ended_together(jobs):
        for config in waiting:
            while sum(not job.done() for job in jobs) >= at_once:
                next(submitit.helpers.as_completed([job for job in jobs if not job.done()], poll_frequency=1.0))
            jobs.append(queue.submit(RunJob(), config))
            jobs[-1].run_name = config.name
    return jobs


@contextmanager
def _ended_together(jobs: Sequence[submitit.Job]) -> Iterator[None]:
    """Jobs of this machine end when the process does that waits for them."""
    try:
        with until_terminated():
            yield
    except BaseException:
        for job in jobs:
            if not job.done():
                job.cancel(check=False)
        raise


def report(jobs: Sequence[submitit.Job]) -> dict[str, str]:
    """Wait for the jobs; the names of the runs that failed, and why (one line each).
    Jobs of this machine end with this process.
    """
    import submitit

    with _ended_together(jobs) if any(isinstance(job, submitit.LocalJob) for job in jobs) else nullcontext():
        return {job.run_name: _why(job, error) for job in jobs if (error := job.exception()) is not None}


def _why(job: submitit.Job, error: Exception) -> str:
    """What went wrong with a job, in a line."""
    # a traceback in words around it: its last line says what happened
    said = [line for line in str(error).splitlines() if re.match(r"[A-Za-z_][\w.]*: ", line)]
    return (
        said[-1]
        if said
        else (
            "it ended without a result: its process was killed, as when memory runs out, or its machine was lost; it"
            f" wrote {job.paths.stderr}"
        )
    )
