"""A list of runs, worked off by several processes: what is finished is skipped, what is half done goes on.

    python -m mimetic queue lab                    until all is done
    python -m mimetic queue lab --minutes 9        for nine minutes, then save and stop
    python -m mimetic queue lab --list             what is done and what is left
    python -m mimetic queue lab --together 60      many small runs at once, on a GPU (experiments.together)

The queue keeps no state of its own. A run is done when its record exists, half done when its checkpoint does; a run
that another process holds is passed over. So the queue and its workers can be killed at any moment, on any machine.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import wait

from mimetic.experiments.configs import RunConfig
from mimetic.experiments.processes import until_terminated
from mimetic.experiments.programmes import QUEUES
from mimetic.experiments.runs import checkpoint_path, existing, family, to_be_run, train_config
from mimetic.experiments.together import groups, work_together
from mimetic.experiments.workers import Worker, cards
from mimetic.messages import check_choice
from mimetic.training.backend import resolve_backend, resolve_device
from mimetic.training.records import RecordError, runs_dir

# With less time than this no run is begun or resumed; compiling, which nothing can interrupt, may take a minute
LEAST_SECONDS, LEAST_SECONDS_COMPILED = 15.0, 90.0


@dataclass
class Outcome:
    """What a call of work did."""

    # names of runs whose records it wrote (another queue's are not among them)
    finished: list[str] = field(default_factory=list)
    left: int = 0  # runs without a record
    failed: dict[str, str] = field(default_factory=dict)  # name -> one line


def queue_runs(name: str) -> list[RunConfig]:
    """The runs of a queue, in order.

    Raises:
        ValueError: unknown name; the message lists the choices.
    """
    check_choice("queue", name, QUEUES)
    return QUEUES[name]()


@until_terminated()
def work(
    runs: Sequence[RunConfig],
    *,
    minutes: float | None = None,
    processes: int = 2,
    say=print,
    checkpoint_seconds: float = 30.0,
) -> Outcome:
    """Work the runs off, in order, side by side in worker processes.

    A run that fails is named, and the others go on. SIGINT and SIGTERM stop the queue; what the runs lose then is what
    they did since their last checkpoint, at most checkpoint_seconds.

    Args:
        minutes: stop after this time, all runs saved; None: no limit.
        processes: how many runs at a time; each uses the threads of its config.
        say: called with one line after every epoch and at the end of every run.

    Raises:
        ValueError: a bad config, or a bad limit; nothing has been computed.
        RecordError: a record of the queue is damaged.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, not {processes}")
    _check_minutes(minutes)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    waiting = to_be_run(runs)
    compiled = any(resolve_backend(train_config(config))["compiled"] for config in waiting)
    least = LEAST_SECONDS_COMPILED if compiled else LEAST_SECONDS
    if waiting and minutes is not None and 60 * minutes <= least:
        raise ValueError(f"minutes must be more than {least / 60:g}: with less time no run is begun, not {minutes:g}")
    visible = cards()
    outcome, progress = Outcome(), _Progress(runs, waiting)
    say(progress.line("start"))
    workers: list[Worker] = []
    # runs that another process held, or whose process lost its GPU, and that were put back once
    again: set[str] = set()
    try:
        while True:
            enough = deadline is None or deadline - time.monotonic() > least
            idle = [w for w in workers if w.config is None]
            while enough and waiting and (idle or len(workers) < processes):
                if not idle:
                    taken = [w.card for w in workers]
                    workers.append(Worker(min(visible, key=taken.count) if visible else None))
                    idle.append(workers[-1])
                worker = idle.pop()
                try:
                    worker.give(waiting[0], deadline, checkpoint_seconds)
                    waiting.pop(0)
                except OSError:  # it has died since its last run; another one takes this run
                    worker.config = None
                    worker.stop()
                    workers.remove(worker)
            busy = [w for w in workers if w.config is not None]
            if not busy:
                break
            ready = wait([w.connection for w in busy], timeout=1.0)
            for worker in busy:
                if worker.connection in ready:
                    _receive(worker, workers, waiting, again, outcome, progress, say)
    finally:
        for worker in workers:
            worker.stop()
    outcome.left = count_left(runs, outcome.failed)
    return outcome


def count_left(runs: Sequence[RunConfig], failed: dict[str, str]) -> int:
    """How many runs have no record; a record that has been damaged meanwhile
    counts among them, and is named in failed.
    """
    count = 0
    for config in runs:
        try:
            count += existing(config) is None
        except RecordError as error:
            failed[config.name] = str(error)
            count += 1
    return count


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be more than 0, not {minutes}")


def _receive(
    worker: Worker, workers: list[Worker], waiting: list[RunConfig], again: set[str], outcome: Outcome,
    progress: _Progress, say,
) -> None:  # fmt: skip
    """Take one message of a worker: an epoch, or the end of its run."""
    config, name = worker.config, worker.config.name
    try:
        kind, content = worker.connection.recv()
    except (EOFError, OSError):  # a process that dies before it has read its run resets the connection
        worker.stop()
        workers.remove(worker)  # the next run gets a new process
        code = worker.process.exitcode
        kind, content = "failed", f"its process ended with exit code {code}"
        if code == -signal.SIGKILL:
            content = "its process was killed, as an operating system does when memory runs out"
    if kind not in ("epoch", "says"):
        worker.config = None
    if kind == "lost":
        worker.stop()
        workers.remove(worker)
    first_time = name not in again
    match kind:
        case "epoch":
            progress.first.setdefault(name, (content["epoch"] - 1) / config.epochs)
            progress.share[name] = content["epoch"] / config.epochs
            done = f"epoch {content['epoch']}/{config.epochs}  loss {content['train_loss']:.3f}"
            say(progress.line(f"{name}  {done}  {family(config).METRIC.show(content)}"))
        case "says":
            say(content)
        case "there":
            progress.share[name] = 1.0
            say(progress.line(f"{name}  done by another process"))
        case "done":
            outcome.finished.append(name)
            progress.share[name] = 1.0
            say(progress.line(f"{name}  done, {family(config).METRIC.show(content)}"))
        case "busy":
            # of a queue that was killed, its worker is just ending; of another queue that is at work, it may be done
            # when all others are
            waiting += [config] * first_time
            again.add(name)
            say(f"{name}  passed over: another process is training it" + ", asked for again later" * first_time)
            time.sleep(1.0)
        case "lost" if first_time:
            waiting.insert(0, config)
            again.add(name)
            say(f"{name}  {content}: once more, in a new process")
        case "failed" | "lost":
            outcome.failed[name] = content
            say(f"{name}  FAILED: {content}")
        case "unavailable" | "full":  # others would come to the same
            alike = [c for c in waiting if kind == "full" or c.dataset == config.dataset]
            waiting[:] = [c for c in waiting if c not in alike]
            outcome.failed[name] = content
            others = f"; {len(alike)} other runs that it would happen to are not begun" if alike else ""
            say(f"{name}  FAILED: {content}{others}")


class _Progress:
    """How much of the queue's work is done, and how long the rest will take at the speed so far."""

    def __init__(self, runs: Sequence[RunConfig], waiting: Sequence[RunConfig]) -> None:
        self.costs = {config.name: family(config).cost(config) for config in runs}
        names = {config.name for config in waiting}
        self.share = {config.name: float(config.name not in names) for config in runs}  # done of each run
        self.first: dict[str, float] = {}
        self.began = time.monotonic()

    def line(self, event: str) -> str:
        done = sum(self.costs[name] * share for name, share in self.share.items())
        # what was done before this call is not this call's speed: a run counts from the first epoch that was seen
        here = sum(self.costs[name] * (self.share[name] - first) for name, first in self.first.items())
        runs = sum(share == 1.0 for share in self.share.values())
        total, text = sum(self.costs.values()), ""
        if here > 0:
            seconds = (total - done) / here * (time.monotonic() - self.began)
            text = f", about {seconds / 3600:.1f} h left" if seconds > 5400 else f", about {seconds / 60:.0f} min left"
        return f"[{runs} of {len(self.share)} runs, {done / max(total, 1e-9):.1%} of the work{text}]  {event}"


def listing(runs: Sequence[RunConfig]) -> str:
    """A table as text: every run of the queue, done or how far; last how many there are of each."""
    lines, counts = [], Counter()
    for config in runs:
        try:
            state = "done" if existing(config) else "half done" if checkpoint_path(config).is_file() else "waiting"
        except RecordError as error:
            state = f"DAMAGED: {error}"
        lines.append(f"{config.name:48s} {state}")
        counts[state.partition(":")[0]] += 1
    total = ", ".join(f"{n} {state}" for state, n in counts.items())
    return "\n".join([*lines, f"{len(lines)} runs: {total} (records in {runs_dir()})"])


def run_queue(
    name: str, minutes: float | None, processes: int | None, show: bool, together: int | None = None,
    compile: str = "auto",
) -> Outcome | None:  # fmt: skip
    """What `queue NAME` does on the command line: list the runs, or work them off and say what is left. compile: of
    every run that leaves it open.

    Raises:
        ValueError: unknown queue, or bad limits.
    """
    runs = [replace(config, compile=compile) if config.compile == "auto" else config for config in queue_runs(name)]
    _check_minutes(minutes)
    if show:
        print(listing(runs))
        return None

    say = partial(print, flush=True)
    if together is None:
        outcome = work(runs, minutes=minutes, processes=side_by_side(runs) if processes is None else processes, say=say)
    else:
        groups(runs, together)
        if any(resolve_device(config.device).type != "cuda" for config in runs):
            raise ValueError(
                "runs are trained together on a GPU (CUDA), and PyTorch finds none here: leave --together out"
            )
        finished, failed = work_together(runs, together, minutes=minutes, processes=processes, say=say)
        outcome = Outcome(finished, count_left(runs, failed), failed)
    print(f"{len(outcome.finished)} runs finished, {outcome.left} left; the same command goes on")
    return outcome


def side_by_side(runs: Sequence[RunConfig]) -> int:
    """How many runs at a time: one on each GPU, which one run can fill; else two, on two cores."""
    return len(cards()) if any(resolve_device(config.device).type == "cuda" for config in runs) else 2
