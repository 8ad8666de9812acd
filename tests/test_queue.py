"""The queue with real processes: side by side, stopped, killed; and what it is told to run."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mimetic import cli, commands
from mimetic.data.fetch import Unavailable
from mimetic.experiments import queue, workers
from mimetic.experiments.configs import ARMS, EXPERIMENTS, named, with_arm
from mimetic.experiments.configs.vision import FITTED
from mimetic.experiments.fitted import from_pretrained
from mimetic.experiments.processes import gpu_is_lost
from mimetic.experiments.programmes import QUEUES, command_for
from mimetic.experiments.programmes import vision as programme
from mimetic.experiments.runs import check, checkpoint_path, existing, run
from mimetic.experiments.vision import build_model, cost
from mimetic.training.checkpoint import exclusive, save_checkpoint
from mimetic.training.loop import TimeLimit
from mimetic.training.records import RecordError, read_record, record_path


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))


def toy(count=3, **changes):
    """Runs on synthetic sequences, which need none of the libraries whose import takes a worker longer than its run."""
    small = dict(
        experiment="toy",
        init="timm",
        max_len=6,
        d_model=16,
        depth=1,
        num_heads=2,
        batch_size=100,
        epochs=2,
        passes=1,
        precision="float32",
        threads=1,
        device="cpu",
    )
    return [named("clusters", **small | {"seed": seed} | changes) for seed in range(count)]


def record_of(config):
    return read_record(record_path(config.experiment, config.arm or config.init, config.seed))


def test_works_off_side_by_side_and_gives_what_run_gives():
    runs, lines = toy(3), []
    outcome = queue.work(runs, processes=2, say=lines.append)
    assert sorted(outcome.finished) == [c.name for c in runs] and outcome.left == 0 and not outcome.failed
    alone = run(dataclasses.replace(runs[1], experiment="alone"), progress=False)
    assert record_of(runs[1])["curve"] == alone["curve"]
    assert any("toy/timm-seed0  epoch 1/2" in line for line in lines)
    assert lines[-1].startswith("[3 of 3 runs, 100.0% of the work")
    # what is done is skipped
    lines.clear()
    assert queue.work(runs, say=lines.append).finished == [] and len(lines) == 1
    assert "done" in queue.listing(runs) and "waiting" not in queue.listing(runs)


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """What a process does that cannot begin; in a module of its own, because a new
    process imports the one in which it lies.
    """
    (tmp_path / "dying.py").write_text(
        "import os, time\n\ndef exits(connection):\n    time.sleep(0.5)\n    os._exit(3)\n\ndef"
        " is_killed(connection):\n    os.kill(os.getpid(), 9)\n\ndef loses_its_gpu(connection):\n   "
        " connection.recv()\n    connection.send(('lost', 'CUDA error: an illegal memory access'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("dying")
    del sys.modules["dying"]


# A queue in a process of its own, which leads a group, so that it and its workers can be killed at once or apart.
QUEUE = """
import json, sys
from mimetic.experiments import queue
from mimetic.experiments.configs.recommenders import RecommenderConfig
queue.LEAST_SECONDS = 3.0
if __name__ == "__main__":
    configs = [RecommenderConfig(**c) for c in json.loads(sys.argv[1])]
    options = dict(processes=len(configs), checkpoint_seconds=0.05, say=lambda line: print(line, flush=True))
    outcome = queue.work(configs, minutes=json.loads(sys.argv[2]), **options)
    print(json.dumps(vars(outcome)), flush=True)
"""


def start(tmp_path, runs, minutes=None):
    script = tmp_path / "work.py"
    script.write_text(QUEUE)
    command = [sys.executable, str(script), json.dumps([dataclasses.asdict(c) for c in runs]), json.dumps(minutes)]
    with (tmp_path / "stderr").open("w") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


@pytest.mark.parametrize("who", ["all", "the queue alone"])
def test_killed_at_work_loses_nothing(tmp_path, who):
    runs = toy(2 if who == "all" else 1, epochs=12)
    alone = run(dataclasses.replace(runs[0], experiment="alone"), progress=False)
    checkpoint = checkpoint_path(runs[0])
    process = start(tmp_path, runs)
    wait_for(checkpoint.is_file)
    if who == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    process.stdout.close()
    assert not record_path("toy", "timm", 0).is_file(), "the queue was too fast to be killed"
    if who != "all":  # its workers notice at once and leave the runs to others
        wait_for(
            lambda: subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).returncode == 1, seconds=5
        )
    assert "half done" in queue.listing(runs)
    if who == "all":
        assert queue.work(runs, processes=1, say=lambda line: None).left == 0
    else:  # the same without a process that has to start
        run(runs[0], progress=False)
    record = record_of(runs[0])
    assert record["resumed"] == 1 and record["curve"] == alone["curve"]


def test_time_limit_saves_and_the_next_call_goes_on(tmp_path):
    runs = toy(2, epochs=2000)  # minutes of work
    began = time.monotonic()
    process = start(tmp_path, runs, minutes=(3.0 + 4) / 60)
    output, _ = process.communicate(timeout=120)
    outcome = json.loads(output.splitlines()[-1])
    assert process.returncode == 0 and outcome["left"] == 2 and not outcome["failed"]
    assert "leaked" not in (tmp_path / "stderr").read_text(), (
        "what its workers leave behind must not reach the terminal"
    )
    assert time.monotonic() - began < 3.0 + 4 + 60  # and the start of three processes on a busy machine
    assert queue.listing(runs).count("half done\n") == 2 and "\n2 runs: 2 half done (records in " in queue.listing(runs)
    with pytest.raises(ValueError, match="minutes must be more than 0.25: with less time no run is begun"):
        queue.work(runs, minutes=0.01, say=lambda line: None)


def test_stops_on_sigterm_and_takes_its_workers_along(tmp_path):
    runs = toy(2, epochs=2000)
    process = start(tmp_path, runs)
    wait_for(checkpoint_path(runs[1]).is_file)
    process.terminate()
    assert process.wait(timeout=30) == 143
    process.stdout.close()
    wait_for(lambda: subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).returncode == 1, seconds=5)
    assert "leaked" not in (tmp_path / "stderr").read_text()


def test_every_worker_sees_one_card_of_its_own(monkeypatch, dying):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers.cards() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    given, start = [], workers.Worker.__init__

    def watched(worker, card):
        start(worker, card)
        seen = Path(f"/proc/{worker.process.pid}/environ")
        if seen.is_file():  # Linux
            wait_for(lambda: f"CUDA_VISIBLE_DEVICES={card}" in seen.read_text().split("\0"))  # empty for a moment
        given.append(card)

    monkeypatch.setattr(workers.Worker, "__init__", watched)
    monkeypatch.setattr(workers, "_serve", dying.exits)  # the processes are enough, they need not train
    queue.work(toy(2), processes=2, say=lambda line: None)
    assert given == ["5", "7"] and os.environ["CUDA_VISIBLE_DEVICES"] == "5, 7"


def test_a_run_that_fails_or_is_held_elsewhere_does_not_stop_the_others():
    bad, held, good, stale = toy(4)
    bad = dataclasses.replace(bad, lr=1e30, grad_clip=0.0)
    checkpoint = checkpoint_path(stale)
    with pytest.raises(TimeLimit):
        run(stale, progress=False, time_limit=0)
    state = torch.load(checkpoint, weights_only=True)
    state["identity"]["source"] = "of yesterday"
    save_checkpoint(checkpoint, state)
    with exclusive(checkpoint_path(held)):
        lines = []
        outcome = queue.work([bad, held, good, stale], processes=1, say=lines.append)
    assert outcome.finished == [good.name, stale.name] and outcome.left == 2
    assert sum(line.startswith(f"{held.name}  passed over") for line in lines) == 2  # and asked for again at the end
    assert any("begins anew" in line and "another source" in line for line in lines)
    assert list(outcome.failed) == [bad.name] and "Diverged" in outcome.failed[bad.name]
    assert record_of(stale)["resumed"] == 0  # a half-done run of other source starts again


def test_what_would_happen_to_all_stops_all(monkeypatch):
    """Data that cannot be had are asked for once, not by three hundred runs."""
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    missing = [
        named("cifar10-lab10", experiment="toy", arm=f"c{seed}", seed=seed, device="cpu", threads=1)
        for seed in range(3)
    ]
    outcome, lines = None, []
    outcome = queue.work([*missing, *toy(1)], processes=1, say=lines.append)
    assert list(outcome.failed) == [missing[0].name]
    assert "Unavailable" in outcome.failed[missing[0].name]
    assert outcome.left == 3
    assert outcome.finished == ["toy/timm-seed0"]
    assert "2 other runs that it would happen to are not begun" in " ".join(lines)


def test_a_record_that_another_process_wrote_is_not_counted():
    (config,) = toy(1)
    workers = []

    def say(line):
        if line.endswith("start"):  # after the queue has looked, before its worker does
            workers.append(run(config, progress=False))

    lines = []
    outcome = queue.work([config], processes=1, say=lambda line: (say(line), lines.append(line)))
    assert outcome.finished == [] and outcome.left == 0 and workers and "done by another process" in lines[-1]


def test_a_record_that_is_damaged_meanwhile_is_counted_and_named():
    failed = {}
    runs = toy(2)
    run(runs[0], progress=False)
    path = record_path("toy", "timm", 0)
    path.write_text(path.read_text()[:-40])
    assert queue.count_left(runs, failed) == 2 and list(failed) == [runs[0].name]


def test_a_worker_that_dies_between_two_runs_is_replaced(monkeypatch):
    made = []

    class Watched(workers.Worker):
        def __init__(self, card):
            super().__init__(card)
            made.append(self)

    def say(line):
        if "done" in line and len(made) == 1:
            made[0].process.kill()
            made[0].process.join()

    monkeypatch.setattr(queue, "Worker", Watched)
    outcome = queue.work(toy(2), processes=1, say=say)
    assert len(outcome.finished) == 2 and not outcome.failed and len(made) == 2


@pytest.mark.parametrize(("end", "says"), [("exits", "exit code 3"), ("is_killed", "when memory runs out")])
def test_a_process_that_cannot_begin_is_one_failed_run(monkeypatch, dying, end, says):
    """It closes its end with the run unread, which resets the connection."""
    monkeypatch.setattr(workers, "_serve", getattr(dying, end))
    outcome = queue.work(toy(1), processes=1, say=lambda line: None)
    assert list(outcome.failed) == [toy(1)[0].name] and says in outcome.failed[toy(1)[0].name]


def test_a_run_whose_process_lost_its_gpu_is_tried_once_more_in_a_new_one(monkeypatch, dying):
    """A CUDA error stays with its process: the next runs must not get that one."""
    monkeypatch.setattr(workers, "_serve", dying.loses_its_gpu)
    lines, runs = [], toy(2)
    outcome = queue.work(runs, processes=1, say=lines.append)
    assert list(outcome.failed) == [config.name for config in runs]
    assert "illegal memory access" in outcome.failed[runs[0].name]
    assert [line for line in lines if "once more" in line] == [
        f"{config.name}  CUDA error: an illegal memory access: once more, in a new process" for config in runs
    ]
    assert gpu_is_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not gpu_is_lost(torch.OutOfMemoryError("CUDA out of memory."))


def test_a_damaged_checkpoint_does_not_stop_its_run():
    (config,) = toy(1)
    with pytest.raises(TimeLimit):
        run(config, progress=False, time_limit=0)
    checkpoint_path(config).write_bytes(b"nothing")
    lines = []
    assert queue.work([config], processes=1, say=lines.append).finished == [config.name]
    assert any("begins anew" in line and "is damaged" in line and "delete it" not in line for line in lines)


def test_compilation_can_be_turned_off_for_all_runs(monkeypatch):
    seen = []
    monkeypatch.setattr(queue, "queue_runs", lambda name: toy(2))
    monkeypatch.setattr(queue, "work", lambda runs, **options: seen.extend(runs) or queue.Outcome())
    assert commands.main(["queue", "paper", "--compile", "off"]) == 0
    assert [config.compile for config in seen] == ["off", "off"]


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (Unavailable("cifar10: not in the cache"), "cifar10: not in the cache"),
        (OSError("No space left on device"), "No space left on device"),
        (queue.Outcome(failed={"toy/timm-seed0": "Diverged: nan"}), "toy/timm-seed0: Diverged: nan"),
    ],
    ids=["data", "disk", "run"],
)
@pytest.mark.parametrize("together", [[], ["--together", "4"]], ids=["work", "together"])
def test_both_command_lines_end_what_fails_with_one_line_and_status_2(end, says, together, monkeypatch, capsys):
    def work(*_, **__):
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(queue, "work", work)
    monkeypatch.setattr(queue, "work_together", lambda *_, **__: (work().finished, work().failed))
    monkeypatch.setattr(queue, "resolve_device", lambda name: torch.device("cuda"))
    for main in (cli.main, commands.main):
        assert main(["queue", "lab", *together]) == 2
        assert capsys.readouterr().err == f"error: {says}\n"


def test_time_left_counts_what_this_call_has_done():
    runs = [dataclasses.replace(config, epochs=30) for config in toy(2)]
    progress = queue._Progress(runs, runs)
    assert "left" not in progress.line("start")
    progress.began -= 60
    progress.first[runs[0].name] = 25 / 30  # it was gone on with
    progress.share[runs[0].name] = 26 / 30
    assert "about 34 min left" in progress.line("")  # 34 of its epochs are left, at one a minute


def test_a_record_of_another_config_is_not_taken_for_this_run():
    (config,) = toy(1)
    run(config, progress=False)
    with pytest.raises(RecordError, match="another config .*epochs: 2 there, 3 here"):
        queue.work([dataclasses.replace(config, epochs=3)], say=lambda line: None)


def test_a_run_of_the_default_is_the_arm_of_that_name():
    """`train EXPERIMENT` names no arm; a queue may call the same run by the name of its initializer."""
    (config,) = toy(1)
    made = run(config, progress=False)
    assert config.arm == "" and existing(dataclasses.replace(config, arm=config.init)) == made


@pytest.mark.parametrize("name", QUEUES)
def test_every_committed_record_is_the_run_that_its_queue_plans(name, monkeypatch):
    """Else the whole queue would refuse to start."""
    monkeypatch.delenv("MIMETIC_RUNS")
    for config in queue.queue_runs(name):
        existing(config)


def test_bad_input_before_anything_runs():
    with pytest.raises(ValueError, match="one of lab, paper, recipe"):
        queue.queue_runs("nope")
    with pytest.raises(ValueError, match="processes must be at least 1"):
        queue.work(toy(1), processes=0)
    with pytest.raises(ValueError, match="pos_embed must be one of"):
        queue.work([named("digits", experiment="toy", pos_embed="rotary")], say=pytest.fail)


@pytest.mark.parametrize("variable", ["MIMETIC_RUNS", "MIMETIC_DATA"])
def test_a_folder_that_cannot_be_written_to_is_named_before_anything_runs(tmp_path, monkeypatch, variable):
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file" / "folder"))
    with pytest.raises(ValueError, match=f"nothing can be written to .*folder.* .*file is a file.*{variable}"):
        check(toy(1)[0])
    check(toy(1)[0], store=False)


# ------------------------------------------------------------------------------------------------ the programme


def test_every_run_of_the_programme_can_be_built():
    runs = programme.lab_runs() + programme.recipe_runs()
    assert len({c.name for c in runs}) == len(runs)
    for config in runs:
        check(config)
    for arm in ARMS["cifar10-lab10"]:
        if not arm.startswith(("d128", "d192", "depth12")):  # as the others, only larger
            build_model(named("cifar10-lab10", arm=arm))


def test_an_arm_changes_what_it_says_and_nothing_else():
    base = EXPERIMENTS["cifar10-lab10"]
    config = named("cifar10-lab10", arm="vp-plus", seed=2)
    assert config == dataclasses.replace(base, arm="vp-plus", seed=2, init="mimetic", vp_beta=0.4)
    assert named("cifar10-lab10", arm="mimetic-qk") == dataclasses.replace(base, init="mimetic-qk")
    with pytest.raises(ValueError, match="no arm 'nope'; choose from"):
        named("cifar10-lab10", arm="nope")
    with pytest.raises(ValueError, match=r"defined with other values than vp_beta=0.1"):
        check(dataclasses.replace(config, vp_beta=0.1))
    assert with_arm(dataclasses.replace(base, experiment="mine", arm="nope")).arm == "nope"  # not an experiment of ours
    whole = dataclasses.replace(named("cifar10-lab10", arm="swapped"), experiment="mine")
    assert with_arm(whole) == whole  # the arm's own settings, all given


def test_the_command_that_makes_the_runs_of_an_experiment():
    for experiment, name in {
        "cifar10-lab30": "lab",
        "cifar10-paper": "paper",
        "tinyshakespeare": "language",
        "wikitext2-gpu": "language-gpu",
        "share-gpu": "language-gpu",
        "cifar10-recipe": "recipe",
    }.items():
        assert command_for(experiment) == f"python -m mimetic queue {name}"


def test_no_run_of_a_queue_has_constants_that_its_initializer_does_not_read():
    for name in ("lab", "paper", "language", "language-gpu", "recommenders", "recommenders-gpu"):
        for config in {config.arm or config.init: config for config in QUEUES[name]()}.values():
            check(config, store=False)


def test_all_questions_make_equal_numbers_of_steps():
    runs = [c for c in programme.lab_runs() if c.experiment == "cifar10-lab10"]
    assert {(c.epoch_images, c.epochs, c.batch_size) for c in runs} == {(10_000, 10, 128)}


def test_questions_are_asked_in_order_and_in_whole_pairs():
    runs = programme.lab_runs()
    assert [c.name for c in runs[:12]] == [
        f"cifar10-lab30/{arm}-seed{s}" for s in range(6) for arm in ("timm", "mimetic")
    ]
    for study in programme.QUESTIONS:
        for seed in (0, 1, 2, 3, 4):
            assert all(c in runs for c in study.runs((seed,)))
    assert all(c in runs for c in programme.RATES.runs((0,)))
    assert {c.validation for c in programme.RATES.runs((0,))} == {5_000}
    # behind all these, what was added when they had been seen: five new seeds first, then other positions
    first_added = runs.index(next(programme.DEEPER_AGAIN.runs(programme.DEEPER_SEEDS)))
    runs, added = runs[:first_added], runs[first_added:]
    others = ("shuffled", "from-", "noise")
    assert added and all(c.seed in programme.DEEPER_SEEDS or c.arm.startswith(others) for c in added)
    questions = [
        c.seed for c in runs if c.experiment == "cifar10-lab10" and not c.arm.startswith(("float32", "depth12-half"))
    ]
    # three pairs of everything before a fourth of anything
    assert questions.index(3) == sum(seed <= 2 for seed in questions)
    # asked last
    assert {(c.arm, c.seed) for c in runs[-10:]} == {
        (f"depth12-half-{init}", seed) for init in programme.PAIR for seed in range(5)
    }


def test_fitted_constants_are_those_of_the_committed_measurement():
    assert FITTED["dinov2"] == from_pretrained("dinov2-vit-s", 6)
    assert FITTED["dinov2-raw"] == from_pretrained("dinov2-vit-s", 6, fold=False)
    with pytest.raises(ValueError, match="nothing is recorded of 'nope'"):
        from_pretrained("nope", 6)


def test_cost_is_proportional_to_the_work():
    short, long = (named("digits", epochs=epochs) for epochs in (2, 4))
    assert cost(long) == pytest.approx(2 * cost(short))
    assert cost(named("cifar10-lab10", arm="depth12-timm")) == pytest.approx(2 * cost(named("cifar10-lab10")))
