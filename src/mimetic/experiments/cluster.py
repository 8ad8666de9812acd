"""A queue handed to a cluster: one Slurm job a run through submitit, with the same records and checkpoints as everywhere.

    python -m mimetic sweep paper --partition gpu --gpus 1 --minutes 60 --at-once 8
    python -m mimetic sweep lab --executor local --at-once 2          the same on this machine, to try it

Finished runs are not submitted. A job that Slurm preempts or that reaches its time limit is queued again by submitit and
goes on from its checkpoint; a run that another job holds is left to it. With more than one GPU or node the processes of a
job train its run together (training.parallel). Records appear in data/runs, so the machines must share that folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimetic.experiments.configs import RunConfig
from mimetic.experiments.runs import check, check_processes, existing, run_or_restart
from mimetic.training.checkpoint import BusyCheckpoint

if TYPE_CHECKING:
    import submitit

EXECUTORS = ("slurm", "local")
LEAST_SECONDS = 60  # of work, for a job to get on
SIGNAL_MARGIN = 120  # seconds before the time limit at which Slurm tells a job to stop


@dataclass(frozen=True)
class Resources:
    """What each job gets."""

    minutes: int = 60  # time limit of a job; a run may take several
    gpus: int = 1  # on each node; one process each, or one process a node where there are none
    nodes: int = 1
    cpus: int = 8  # for each process
    partition: str | None = None  # Slurm's; None: its default
    account: str | None = None


class Job:
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
    runs: Sequence[RunConfig], folder: str | Path, *, executor: str = "slurm", resources: Resources = Resources(), at_once: int = 8
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
    from mimetic.data.fetch import Unavailable, check_writable

    if executor not in EXECUTORS:
        raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, not {executor!r}")
    for name, value, low in [("at_once", at_once, 1), *((n, getattr(resources, n), n != "gpus") for n in ("minutes", "gpus", "nodes", "cpus"))]:
        if value < low:
            raise ValueError(f"{name} must be at least {int(low)}, not {value}")
    if executor == "slurm" and 60 * resources.minutes <= SIGNAL_MARGIN + LEAST_SECONDS:
        raise ValueError(f"minutes must be more than {(SIGNAL_MARGIN + LEAST_SECONDS) // 60}, not {resources.minutes}: a job is told to stop {SIGNAL_MARGIN} seconds before its limit")
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
        raise Unavailable("there is no Slurm here (no srun command): submit from a cluster's login node, or choose --executor local")
    options = {f"{executor}_max_num_timeout": 1000}  # each time goes on from a checkpoint
    queue = submitit.AutoExecutor(folder=folder, cluster=executor, **options)
    queue.update_parameters(**parameters(executor, resources, at_once))
    if executor == "slurm":
        return queue.map_array(Job(), waiting)
    return _in_batches(queue, waiting, at_once)


def parameters(executor: str, resources: Resources, at_once: int) -> dict[str, Any]:
    """Resources in submitit's words."""
    found: dict[str, Any] = {
        "name": "mimetic", "timeout_min": resources.minutes, "nodes": resources.nodes, "gpus_per_node": resources.gpus,
        "tasks_per_node": max(1, resources.gpus), "cpus_per_task": resources.cpus,
    }  # fmt: skip
    if executor == "slurm":
        found |= {"slurm_array_parallelism": at_once, "slurm_signal_delay_s": SIGNAL_MARGIN}
        found |= {f"slurm_{name}": value for name in ("partition", "account") if (value := getattr(resources, name))}
    return found


def _in_batches(queue: submitit.AutoExecutor, waiting: Sequence[RunConfig], at_once: int) -> list[submitit.Job]:
    """On one machine nothing else limits how many processes start: a job begins when another has ended."""
    import submitit.helpers

    jobs: list[submitit.Job] = []
    for config in waiting:
        while sum(not job.done() for job in jobs) >= at_once:
            next(submitit.helpers.as_completed([job for job in jobs if not job.done()], poll_frequency=1.0))
        jobs.append(queue.submit(Job(), config))
    return jobs


def report(jobs: Sequence[submitit.Job]) -> dict[str, str]:
    """Wait for the jobs; which failed, and why (one line each)."""
    failed = {}
    for job in jobs:
        error = job.exception()
        if error is not None:
            lines = str(error).splitlines()  # a traceback in words around it: its last line says what happened
            said = [line for line in lines if re.match(r"[A-Za-z_][\w.]*: ", line)]
            failed[job.job_id] = said[-1] if said else lines[0]
    return failed
