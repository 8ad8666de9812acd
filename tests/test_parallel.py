"""Several processes that train one run, as torchrun starts them, against one process."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mimetic.experiments import queue
from mimetic.experiments.configs import named
from mimetic.experiments.runs import checkpoint_path, run
from mimetic.training.parallel import ALONE, VARIABLES, Group
from mimetic.training.records import read_record

SRC = Path(__file__).resolve().parents[1] / "src"
# What each of the processes does: one torchrun for all tests, because starting it takes longer than training.
SCRIPT = """
import dataclasses, json, sys
from mimetic.experiments.configs.vision import VisionConfig
from mimetic.experiments.runs import run
from mimetic.training.loop import TimeLimit
from mimetic.training.parallel import is_first

def refused(config):
    try:
        run(config, progress=False)
    except ValueError as error:
        return str(error)

if __name__ == "__main__":
    config = VisionConfig(**json.loads(sys.argv[1]))
    whole = run(config, progress=False)
    half = run(dataclasses.replace(config, experiment="half"), progress=False)
    try:
        run(dataclasses.replace(config, experiment="limited", epochs=2000), progress=False, time_limit=0.0)
    except TimeLimit as limit:
        stopped = str(limit)
    inside = dataclasses.replace(config, experiment="inside")
    try:
        run(inside, progress=False, time_limit=0.0)
    except TimeLimit:
        run(inside, progress=False)
    odd = refused(dataclasses.replace(config, experiment="odd", batch_size=31))
    damaged = refused(dataclasses.replace(config, experiment="damaged"))
    again = run(config, progress=False)
    with open(f"said{int(not is_first())}.json", "w") as file:
        digests = {"whole": whole["digest"], "again": again["digest"]}
        json.dump({"odd": odd, "damaged": damaged, "stopped": stopped} | digests, file)
"""


def tiny(**changes):
    small = dict(
        experiment="whole",
        init="mimetic",
        train_size=480,
        d_model=16,
        depth=2,
        num_heads=2,
        epochs=3,
        device="cpu",
        threads=1,
    )
    return named("digits", **small | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of two processes that have trained, and the records of one process that trained the same."""
    folder = tmp_path_factory.mktemp("parallel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMETIC_DATA", str(folder / "cache"))
        patch.setenv("MIMETIC_RUNS", str(folder / "alone"))
        alone = run(tiny(), progress=False)

        def stop(entry):
            raise InterruptedError

        patch.setenv("MIMETIC_RUNS", str(folder / "runs"))
        with pytest.raises(InterruptedError):  # one process, stopped after the first epoch
            run(tiny(experiment="half"), progress=False, on_epoch=stop)
        assert checkpoint_path(tiny(experiment="half")).is_file()
    (folder / "runs" / "damaged").mkdir(parents=True)
    (folder / "runs" / "damaged" / "mimetic-seed0.json").write_text("{")
    (folder / "work.py").write_text(SCRIPT)
    names = {
        "PYTHONPATH": str(SRC),
        "MIMETIC_DATA": str(folder / "cache"),
        "MIMETIC_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "work.py",
            json.dumps(dataclasses.asdict(tiny())),
        ],
        env=os.environ | names,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return folder, alone


def losses(record):
    return [entry[key] for entry in record["curve"] for key in ("train_loss", "train_accuracy", "test_loss")]


def test_two_processes_give_the_loss_of_one(trained):
    folder, alone = trained
    record = read_record(folder / "runs" / "whole" / "mimetic-seed0.json")
    assert losses(record) == pytest.approx(losses(alone), rel=1e-5)
    assert record["device"]["processes"] == 2 and alone["device"]["processes"] == 1
    assert [entry["step"] for entry in record["curve"]] == [entry["step"] for entry in alone["curve"]]


def test_two_processes_go_on_from_the_checkpoint_of_one(trained):
    folder, alone = trained
    record = read_record(folder / "runs" / "half" / "mimetic-seed0.json")
    assert record["resumed"] == 1 and record["curve"][0] == alone["curve"][0]
    assert losses(record) == pytest.approx(losses(alone), rel=1e-5)
    assert not list((folder / "cache" / "checkpoints").rglob("half/mimetic-seed0.pt"))


def test_two_processes_go_on_inside_an_epoch(trained):
    folder, alone = trained
    record = read_record(folder / "runs" / "inside" / "mimetic-seed0.json")
    assert record["resumed"] == 1 and 20 % alone["curve"][0]["step"]  # stopped after 20 steps
    assert losses(record) == pytest.approx(losses(alone), rel=1e-5)


def test_all_processes_hear_what_the_first_decides(trained):
    folder, _ = trained
    said = [json.loads((folder / f"said{i}.json").read_text()) for i in (0, 1)]
    assert said[0] == said[1]
    assert said[0]["odd"] == "batch_size=31 cannot be shared equally by 2 processes"
    assert "damaged/mimetic-seed0.json is damaged" in said[0]["damaged"]
    assert said[0]["again"] == said[0]["whole"]  # read, not trained again
    assert "stopped after 20 of" in said[0]["stopped"]  # at the first step at which they agree


def test_rows_of_a_batch():
    x, y = torch.arange(12).view(6, 2), torch.arange(6)
    parts = [Group(rank, 3).rows((x, (y,))) for rank in range(3)]
    assert torch.equal(torch.cat([p[0] for p in parts]), x) and torch.equal(torch.cat([p[1][0] for p in parts]), y)
    assert ALONE.rows((x, y))[0] is x
    with pytest.raises(ValueError, match="a batch of 6 cannot be shared equally by 4 processes"):
        Group(0, 4).rows(x)


def test_a_queue_is_not_for_torchrun(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match="a queue starts its own processes"):
        queue.work([tiny()])
