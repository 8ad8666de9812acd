"""Queues handed to a cluster: submitit's local executor with real processes, and what Slurm would be told."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mimetic.data.fetch import Unavailable
from mimetic.experiments import cluster
from mimetic.experiments.cluster import Resources, RunJob, parameters, report, submit
from mimetic.experiments.configs import named
from mimetic.experiments.runs import checkpoint_path, existing, run
from mimetic.training.checkpoint import exclusive, save_checkpoint
from mimetic.training.loop import TimeLimit

submitit = pytest.importorskip("submitit")
LOCAL = {"executor": "local", "resources": Resources(minutes=5, gpus=0, cpus=1)}


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def toy(seed=0, **changes):
    small = dict(
        experiment="toy",
        train_size=480,
        d_model=16,
        depth=2,
        num_heads=2,
        patch_size=4,
        epochs=2,
        device="cpu",
        threads=1,
    )
    return named("digits", **small | {"seed": seed} | changes)


def test_submits_what_is_not_done_and_gives_what_run_gives(tmp_path):
    done, new = toy(0), toy(1)
    run(done, progress=False)
    bad = named("cifar10-lab30", experiment="toy", seed=2, device="cpu", threads=1)  # its images are not there
    jobs = submit([done, new, bad], tmp_path / "logs", at_once=2, **LOCAL)
    failed = report(jobs)
    assert [job.exception() is None for job in jobs] == [True, False]
    assert jobs[0].result() == "toy/timm-seed1"
    assert list(failed) == [bad.name]
    assert "cifar10.npz: not in the cache" in failed[bad.name]
    alone = run(dataclasses.replace(new, experiment="alone"), progress=False)
    assert existing(new)["curve"] == alone["curve"]
    assert submit([done, new], tmp_path / "logs", **LOCAL) == []


def test_a_job_of_two_processes_trains_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "parameters", lambda *args: parameters(*args) | {"tasks_per_node": 2})
    (job,) = submit([toy()], tmp_path / "logs", **LOCAL)
    assert report([job]) == {}
    record = existing(toy())
    assert record["device"]["processes"] == 2
    alone = run(toy(experiment="alone"), progress=False)
    assert [e["test_loss"] for e in record["curve"]] == pytest.approx(
        [e["test_loss"] for e in alone["curve"]], rel=1e-5
    )


class Waiting(submitit.LocalJob):
    """A job of this machine that has not ended."""

    paths, _process, _cancel_at_deletion = (
        SimpleNamespace(stderr="7_0_log.err", result_pickle=Path("absent")),
        None,
        False,
    )
    error: Exception | None = None

    def __init__(self, name="toy/a-seed0"):
        self.run_name, self.cancelled = name, False

    def done(self):
        return self.cancelled

    def cancel(self, check):
        self.cancelled = True

    def exception(self):
        if self.error is None:
            raise SystemExit(143)  # what until_terminated makes of SIGTERM
        return self.error


def test_a_killed_job_is_named_with_where_it_wrote():
    killed = Waiting()
    killed.error = submitit.core.utils.UncompletedJobError(
        "Job 7 (task: 0) with path /x/7_0_result.pkl\nhas not produced any output (state: FINISHED)"
    )
    assert report([killed]) == {
        "toy/a-seed0": (
            "it ended without a result: its process was killed, as when memory runs out, or its machine was lost; it"
            " wrote 7_0_log.err"
        )
    }


def test_jobs_of_this_machine_end_with_the_process_that_waits_for_them(monkeypatch):
    jobs = [Waiting("toy/a-seed0"), Waiting("toy/a-seed1")]
    with pytest.raises(SystemExit):
        report(jobs)
    assert all(job.cancelled for job in jobs)
    queue = SimpleNamespace(submit=lambda job, config: Waiting())
    given = []
    monkeypatch.setattr(queue, "submit", lambda job, config: given.append(Waiting()) or given[-1])
    monkeypatch.setattr(
        submitit.helpers, "as_completed", lambda jobs, poll_frequency: (_ for _ in ()).throw(SystemExit(143))
    )
    with pytest.raises(SystemExit):
        cluster._in_batches(queue, [toy(0), toy(1)], at_once=1)
    assert [job.cancelled for job in given] == [True] and given[0].run_name == toy(0).name


def test_a_stopped_job_is_queued_again_as_it_was():
    again = cluster.RunJob().checkpoint(toy())
    assert isinstance(again.function, cluster.RunJob) and again.args == (toy(),)


def test_a_job_restarts_a_run_of_other_code_and_leaves_one_that_is_held(monkeypatch):
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: SimpleNamespace(num_tasks=1))
    with pytest.raises(TimeLimit):
        run(toy(), progress=False, time_limit=0)
    checkpoint = checkpoint_path(toy())
    state = torch.load(checkpoint, weights_only=True)
    state["identity"]["source"] = "of yesterday"
    save_checkpoint(checkpoint, state)
    with exclusive(checkpoint):
        assert RunJob()(toy()) == toy().name and existing(toy()) is None
    assert RunJob()(toy()) == toy().name and existing(toy())["resumed"] == 0


def test_what_slurm_is_told(tmp_path, monkeypatch):
    """A Slurm of two commands that keeps the script it is given."""
    (tmp_path / "bin").mkdir()
    for name, line in {
        "srun": "exit 0",
        "sbatch": f'cp "$1" "{tmp_path}/given.sh"; echo "Submitted batch job 7"',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    resources = Resources(minutes=30, gpus=4, nodes=2, cpus=6, partition="gpu")
    jobs = submit([toy(0), toy(1), toy(2)], tmp_path / "logs", resources=resources, at_once=2)
    assert [job.job_id for job in jobs] == ["7_0", "7_1", "7_2"]
    script = (tmp_path / "given.sh").read_text()
    wanted = (
        "array=0-2%2",
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "cpus-per-task=6",
        "time=30",
        "partition=gpu",
        "signal=USR2@120",
    )
    for option in wanted:
        assert f"#SBATCH --{option}\n" in script, script
    assert "account" not in script and "mimetic" in script


def test_bad_input_before_anything_is_submitted(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at_once must be 1 on this machine with GPUs, not 2"):
        submit([toy()], tmp_path, executor="local", resources=Resources(minutes=5, gpus=1), at_once=2)
    with pytest.raises(ValueError, match="executor must be one of slurm, local, not 'pbs'"):
        submit([toy()], tmp_path, executor="pbs")
    with pytest.raises(
        ValueError, match="minutes must be more than 1.5, not 1: a job is told to stop 30 seconds before its limit"
    ):
        submit([toy()], tmp_path, executor="local", resources=Resources(minutes=1, gpus=0), at_once=1)
    with pytest.raises(ValueError, match="minutes must be at least 1, not 0"):
        submit([toy()], tmp_path, resources=Resources(minutes=0))
    with pytest.raises(ValueError, match="pos_embed must be one of"):
        submit([toy(pos_embed="rotary")], tmp_path)
    with pytest.raises(ValueError, match="batch_size=32 cannot be shared equally by 3 processes"):
        submit([toy()], tmp_path, resources=Resources(gpus=3))
    with pytest.raises(ValueError, match="clusters/bert-seed0: its loss is not a mean over rows, so 2 processes"):
        submit([named("clusters")], tmp_path, resources=Resources(gpus=2))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="there is no Slurm here .* choose --executor local"):
        submit([toy()], tmp_path)
    assert not any(tmp_path.glob("*.pkl"))
