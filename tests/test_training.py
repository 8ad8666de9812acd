"""Training: the schedule, the groups, the pairing of arms, and exact resume after a real SIGKILL."""

import contextlib
import dataclasses
import errno
import itertools
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mimetic.data.fetch import Unavailable, cache_dir
from mimetic.data.images import load_images
from mimetic.experiments import runs, vision
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.runs import check, checkpoint_path, run
from mimetic.experiments.vision import VisionTask, build_model
from mimetic.models import ViT, ViTConfig
from mimetic.training import backend, loop
from mimetic.training.backend import derive_seed
from mimetic.training.checkpoint import (
    BusyCheckpoint,
    CheckpointError,
    ForeignCheckpoint,
    aside,
    exclusive,
    load_checkpoint,
    save_checkpoint,
)
from mimetic.training.config import TrainConfig
from mimetic.training.loop import Diverged, TimeLimit, learning_rate, make_optimizer, train
from mimetic.training.precision import InFloat32
from mimetic.training.records import RecordError, data_hash, load_runs, read_record, record_path
from mimetic.training.step import Step


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))


def tiny(**changes):
    """A run of a second: a third of the digits, a ViT of 6,000 parameters."""
    small = dict(
        experiment="tiny", train_size=480, d_model=16, depth=2, num_heads=2, patch_size=4, epochs=2, batch_size=32,
        threads=1, device="cpu",
    )  # fmt: skip
    return named("digits", **small | changes)


# ------------------------------------------------------------------------------------------------ the pieces


def test_learning_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(epochs=10, lr=2.0, warmup=0.2)
    rates = [learning_rate(step, config, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(rates) == 2.0 and all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[30] == pytest.approx(2 * 0.5 * (1 + math.cos(math.pi * 20 / 40)))
    assert rates[-1] < 0.01
    assert learning_rate(0, TrainConfig(epochs=1, lr=2.0, warmup=0.0), 5) == 2.0


def test_weight_decay_is_on_matrices_only():
    model = ViT(ViTConfig(img_size=8, patch_size=4, d_model=16, depth=1, num_heads=2, num_classes=3))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(model, TrainConfig(epochs=1, weight_decay=0.1)).param_groups
    decayed, rest = ({names[id(p)] for p in g["params"]} for g in groups)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert decayed == {n for n in names.values() if n.endswith("weight") and "norm" not in n}
    assert rest == {n for n in names.values() if n.endswith("bias") or "norm" in n or n in ("cls_token", "pos_embed")}


def test_derived_seeds_do_not_collide():
    purposes = itertools.product(range(3), ("order", "augment"), range(9), range(9))
    seeds = {derive_seed(*purpose) for purpose in purposes}
    assert len(seeds) == 3 * 2 * 81 and all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(0, "init") == 1749912909633406932  # golden: stored runs depend on it


class Line:
    """A task whose every number can be worked out by hand: fit y = 2 x with one weight."""

    steps_per_epoch, unit, units_per_step = 4, "points", 2

    def batch(self, epoch, step):
        x = torch.tensor([[1.0], [2.0]]) + epoch + step
        return x, 2 * x

    def loss(self, model, batch):
        x, y = batch
        loss = (model(x) - y).square().mean()
        return loss, {"halved": loss / 2}

    def evaluate(self, model, last):
        assert not model.training and not torch.is_grad_enabled()
        return {"weight": model.weight.item()}


def line_model(weight=0.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def test_loop_is_adamw_written_out():
    model, config = line_model(), TrainConfig(epochs=3, lr=0.1, weight_decay=0.2, warmup=0.3, grad_clip=5.0, threads=1)
    result = train(model, Line(), config, progress=False)
    w, m, v, losses, weights = 0.0, 0.0, 0.0, [], []
    for t in range(12):
        epoch, step = divmod(t, 4)
        xs = [1.0 + epoch + step, 2.0 + epoch + step]
        losses.append(sum((w * x - 2 * x) ** 2 for x in xs) / 2)
        gradient = sum(2 * (w * x - 2 * x) * x for x in xs) / 2
        gradient *= min(1.0, 5.0 / (abs(gradient) + 1e-6))
        lr = learning_rate(t, config, 4)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w *= 1 - lr * 0.2
        w -= lr * (m / (1 - 0.9 ** (t + 1))) / (math.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        weights.append(w)
    assert model.weight.item() == pytest.approx(w, rel=1e-4)
    assert [e["test_weight"] for e in result.curve] == pytest.approx(weights[3::4], rel=1e-4)
    means = [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert [e["train_loss"] for e in result.curve] == pytest.approx(means, rel=1e-4)
    assert [e["train_halved"] * 2 for e in result.curve] == pytest.approx([e["train_loss"] for e in result.curve])
    assert [e["epoch"] for e in result.curve] == [1, 2, 3] and [e["step"] for e in result.curve] == [4, 8, 12]
    assert result.units_per_second > 0


def test_divergence_is_said():
    model = line_model(float("inf"))
    with pytest.raises(Diverged, match="epoch 1"):
        train(model, Line(), TrainConfig(epochs=1, threads=1), progress=False)


def test_global_settings_are_restored():
    model = line_model()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train(model, Line(), TrainConfig(epochs=1, threads=threads + 1), progress=False)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_progress_shows_a_line_an_epoch(capsys):
    train(line_model(), Line(), TrainConfig(epochs=2, threads=1), label="a run")
    out = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in out] == [["a run", "epoch 1/2"], ["a run", "epoch 2/2"]]
    assert "train_loss" in out[0] and "points/s" in out[0]
    train(line_model(), Line(), TrainConfig(epochs=2, threads=1), progress=False)
    assert capsys.readouterr() == ("", "")


def test_checkpoint_of_another_run_or_damaged_is_refused(tmp_path):
    path = tmp_path / "a" / "x.pt"
    assert load_checkpoint(path, {}) is None
    save_checkpoint(path, {"identity": {"config": "a", "source": "b"}, "step": 3})
    assert load_checkpoint(path, {"config": "a", "source": "b"})["step"] == 3
    with pytest.raises(CheckpointError, match="x.pt was written with another source"):
        load_checkpoint(path, {"config": "a", "source": "c"})
    # of a version that named its parts otherwise
    with pytest.raises(CheckpointError, match="another arm, config, depth and 3 more: "):
        load_checkpoint(path, dict.fromkeys(("arm", "depth", "lr", "seed"), "a"))
    torch.save({"identity": {"config": "a", "source": "b"}, "step": 3}, path)  # as earlier versions wrote it
    with pytest.raises(ForeignCheckpoint, match="x.pt was written with another version: train with force"):
        load_checkpoint(path, {"config": "a", "source": "b"})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="x.pt is damaged"):
        load_checkpoint(path, {"config": "a", "source": "b"})
    for other in ([1, 2], {"model": {}}):
        save_checkpoint(path, other)
        with pytest.raises(CheckpointError, match="x.pt is no checkpoint of a run: delete it"):
            load_checkpoint(path, {"config": "a", "source": "b"})


def test_a_changed_byte_of_a_weight_is_damage(tmp_path):
    """torch.load itself takes it, as it takes a whole checkpoint."""
    path = tmp_path / "x.pt"
    save_checkpoint(path, {"identity": {}, "model": {"w": torch.ones(1000)}})
    data = path.read_bytes()
    place = data.index(torch.ones(8).numpy().tobytes())
    path.write_bytes(data[:place] + bytes(16) + data[place + 16 :])
    assert not torch.load(path, weights_only=True)["model"]["w"].eq(1).all()
    every_kind = (data[:place] + bytes(16) + data[place + 16 :], data[:-1], data[:-60], data + b"x", b"", bytes(99))
    for damaged in (
        *every_kind,
        *(data[:-i] + bytes([data[-i] ^ 255]) + data[len(data) - i + 1 :] for i in (1, 41, 99)),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="x.pt is damaged .its content does not match its digest"):
            load_checkpoint(path, {})


def test_checkpoint_loads_no_code(tmp_path):
    """A pickle that would run something is refused, not run."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    save_checkpoint(tmp_path / "x.pt", {"identity": {}, "x": Evil()})
    with pytest.raises(CheckpointError, match="Weights only load failed"):
        load_checkpoint(tmp_path / "x.pt", {})
    assert not (tmp_path / "evil").exists()


# ------------------------------------------------------------------------------------------------ the experiment


def test_arms_are_paired():
    """One seed: the same batches for every initializer, other ones for another seed; and only attention differs."""
    data = load_images("digits", train_size=480)
    a, b, c = (VisionTask(data, tiny(init=i, seed=s)) for i, s in (("timm", 0), ("mimetic", 0), ("timm", 1)))
    for epoch, step in [(0, 0), (0, 5), (1, 0), (0, 5)]:  # in any order, and again
        x, y = a.batch(epoch, step)
        x2, y2 = b.batch(epoch, step)
        assert torch.equal(x, x2) and torch.equal(y, y2)
        assert not torch.equal(x, c.batch(epoch, step)[0])
    assert not torch.equal(a.batch(0, 0)[0], a.batch(1, 0)[0])
    labels = torch.cat([a.batch(0, step)[1] for step in range(a.steps_per_epoch)])
    assert torch.equal(torch.bincount(labels), torch.full((10,), 48))  # an epoch is every image once
    timm, mimetic = (dict(build_model(tiny(init=i)).named_parameters()) for i in ("timm", "mimetic"))
    different = {name for name in timm if not torch.equal(timm[name], mimetic[name])}
    assert different == {f"blocks.{i}.attn.{layer}.weight" for i in range(2) for layer in ("qkv", "proj")}


def test_same_config_same_bits_other_seed_other_bits():
    first, again, other = (run(tiny(seed=s), store=False, progress=False) for s in (0, 0, 1))
    assert first["curve"] == again["curve"] != other["curve"]


def test_run_trains_once_then_reads(monkeypatch):
    record = run(tiny(), progress=False)
    assert record["final"] == record["curve"][-1] and record["final"]["epoch"] == 2
    assert record["config"] == dataclasses.asdict(tiny())
    assert record["parameters"]["total"] == sum(p.numel() for p in build_model(tiny()).parameters())
    assert record["curve"][0]["test_accuracy"] * 360 == pytest.approx(round(record["curve"][0]["test_accuracy"] * 360))
    assert set(record["source"]["files"]) == set(vision.SOURCE)
    text = json.dumps(record)
    assert os.getcwd() not in text and os.uname().nodename not in text
    assert not list((cache_dir() / "checkpoints").rglob("*.pt"))
    monkeypatch.setattr(runs, "_train", None)  # training again would fail
    assert run(tiny(), progress=False) == record
    assert run(tiny(threads=2), progress=False)["device"]["threads"] == 1  # the same run of another machine is this run
    with pytest.raises(RecordError, match=r"timm-seed0 exists with another config \(lr: 0.001 there, 0.002 here\)"):
        run(tiny(lr=0.002), progress=False)
    with pytest.raises(TypeError):
        run(tiny(), force=True, progress=False)
    assert load_runs("tiny")["test_accuracy"].tolist() == [record["final"]["test_accuracy"]]


def test_force_replaces_the_record():
    before = run(tiny(), progress=False)
    after = run(tiny(lr=0.002), force=True, progress=False)
    assert after["curve"] != before["curve"] and run(tiny(lr=0.002), progress=False) == after


def test_force_that_is_stopped_goes_on_with_force():
    before = run(tiny(), progress=False)
    again = tiny(lr=0.002)
    whole = run(dataclasses.replace(again, experiment="whole"), progress=False)
    for _ in range(3):  # each time one more step
        with pytest.raises(TimeLimit):
            run(again, force=True, progress=False, time_limit=0)
        assert run(tiny(), progress=False) == before  # nothing is replaced before the end
    record = run(again, force=True, progress=False)
    assert record["resumed"] == 3 and record["curve"] == whole["curve"]
    with pytest.raises(TimeLimit):  # the record is another one now: this begins anew
        run(again, force=True, progress=False, time_limit=0)
    assert torch.load(checkpoint_path(tiny()), weights_only=True)["step"] == 1


def test_a_checkpoint_that_a_kill_left_beside_its_record_is_removed(monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "remove_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(), progress=False, checkpoint_seconds=0)
    assert record_path("tiny", "timm", 0).is_file() and checkpoint_path(tiny()).is_file()
    run(tiny(), progress=False)
    assert not checkpoint_path(tiny()).exists()


def test_every_seed_has_weights_an_order_and_an_augmentation_of_its_own():
    configs = [tiny(seed=seed) for seed in (0, 1)]
    one, two = (build_model(config) for config in configs)
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()) if a.ndim > 1)
    data = vision.load(tiny(), torch.device("cpu"))
    tasks = [VisionTask(data, config) for config in configs]
    (_, first), (_, other) = (task.batch(0, 0) for task in tasks)
    assert not torch.equal(first, other)
    seeds = {(task.batch(*at), task._generator.initial_seed())[1] for task in tasks for at in ((0, 0), (0, 1), (1, 0))}
    assert len(seeds) == 6
    passes = [torch.cat([tasks[0].batch(epoch, step)[1] for step in range(15)]) for epoch in (0, 1)]
    assert not torch.equal(*passes) and torch.equal(*(labels.sort().values for labels in passes))


def test_labels_are_smoothed_in_training_and_not_in_the_test():
    data = vision.load(tiny(), torch.device("cpu"))
    task = VisionTask(data, tiny(label_smoothing=0.2))
    logits = torch.tensor([3.0, 1.0, 0.0, 0, 0, 0, 0, 0, 0, 0])

    class Constant(torch.nn.Module):
        def forward(self, x):
            return logits.expand(len(x), -1)

    log_p = logits.log_softmax(0)
    labels = torch.tensor([0, 1, 2, 2])
    loss, _ = task.loss(Constant(), (torch.zeros(4, 1, 8, 8), labels))
    assert loss.item() == pytest.approx((-(0.8 * log_p[labels] + 0.2 * log_p.mean())).mean().item(), rel=1e-5)
    tested = task.evaluate(Constant(), last=True)
    assert tested["loss"] == pytest.approx((-log_p[data.y_test]).mean().item(), rel=1e-5)


def test_a_run_is_held_while_it_trains():
    tried = []

    def on_epoch(entry):
        with pytest.raises(BusyCheckpoint, match="another process is training this run"):
            with exclusive(checkpoint_path(tiny())):
                pass
        tried.append(entry["epoch"])

    run(tiny(), progress=False, on_epoch=on_epoch)
    assert tried == [1, 2]


def test_a_run_that_another_process_finished_meanwhile_is_read(monkeypatch):
    record = run(tiny(), progress=False)
    path = record_path("tiny", "timm", 0)
    content = path.read_bytes()
    path.unlink()

    @contextlib.contextmanager
    def later(checkpoint):
        path.write_bytes(content)
        yield

    monkeypatch.setattr(runs, "exclusive", later)
    monkeypatch.setattr(runs, "_train", None)  # training again would fail
    assert run(tiny(), progress=False) == record


@pytest.mark.parametrize("what", ["source", "torch", "backend"])
def test_a_checkpoint_of_another_source_or_backend_or_torch_is_foreign(monkeypatch, what):
    with pytest.raises(TimeLimit):
        run(tiny(), progress=False, time_limit=0)
    found = runs.source_hash(vision.SOURCE), runs.resolve_backend(runs.train_config(tiny())), runs.versions()
    name, value = {
        "source": ("source_hash", found[0] | {"sha256": "of yesterday"}),
        "backend": ("resolve_backend", found[1] | {"precision": "float64"}),
        "torch": ("versions", found[2] | {"torch": "1.0"}),
    }[what]
    monkeypatch.setattr(runs, name, lambda *_: value)
    with pytest.raises(ForeignCheckpoint, match=f"written with another {what}: "):
        run(tiny(), progress=False)


def test_a_checkpoint_of_another_precision_is_foreign():
    with pytest.raises(TimeLimit):
        run(tiny(), progress=False, time_limit=0)
    checkpoint = checkpoint_path(tiny())
    state = torch.load(checkpoint, weights_only=True)
    state["identity"]["backend"] = "type cuda, precision bfloat16, compiled True"  # of the machine where it was begun
    save_checkpoint(checkpoint, state)
    with pytest.raises(ForeignCheckpoint, match="written with another backend: train with force"):
        run(tiny(), progress=False)
    with pytest.raises(ForeignCheckpoint, match="written with another backend and threads: "):  # a setting is named
        run(tiny(threads=2), progress=False)
    said = []
    with pytest.raises(TimeLimit):
        runs.run_or_restart(tiny(), said.append, progress=False, time_limit=0)
    assert said == [f"tiny/timm-seed0 begins anew: {checkpoint} was written with another backend"]
    # put aside, until there is a record
    assert torch.load(aside(checkpoint), weights_only=True)["identity"] == state["identity"]
    assert runs.run_or_restart(tiny(), progress=False)["resumed"] == 1 and not aside(checkpoint).exists()


def test_a_run_whose_data_have_changed_begins_anew(monkeypatch):
    with pytest.raises(TimeLimit):
        run(tiny(), progress=False, time_limit=0)
    load = vision.load

    def changed(config, device):
        data = load(config, device)
        data.x_test[-1, 0, 0, 0] += 1
        return data

    with monkeypatch.context() as patched:
        patched.setattr(vision, "load", changed)
        with pytest.raises(ForeignCheckpoint, match="written with another content of the data: train with force"):
            run(tiny(), progress=False)
        said = []
        other = runs.run_or_restart(tiny(), said.append, progress=False)
    assert [line.partition(": ")[0] for line in said] == ["tiny/timm-seed0 begins anew"]
    assert other["resumed"] == 0 and not aside(checkpoint_path(tiny())).exists()
    assert run(tiny(), progress=False, force=True)["data"] != other["data"]


def test_the_digest_of_the_data_is_of_names_types_shapes_and_numbers():
    x = torch.arange(6)
    others = [{"x": x + 1}, {"x": x.view(2, 3)}, {"x": x.int()}, {"y": x}, {"x": x, "y": x}, {"x": x[:-1]}]
    digests = {data_hash(data) for data in ({"x": x}, *others)}
    assert len(digests) == 7
    strided = torch.arange(12)[::2] // 2
    assert data_hash({"y": x + 1, "x": strided}) == data_hash({"x": x, "y": x + 1})


def test_a_run_for_another_folder_of_records_has_a_checkpoint_of_its_own(monkeypatch, tmp_path):
    with pytest.raises(TimeLimit):
        run(tiny(), progress=False, time_limit=0)
    half = checkpoint_path(tiny())
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "again"))
    assert checkpoint_path(tiny()) != half and run(tiny(), progress=False)["resumed"] == 0 and half.is_file()
    monkeypatch.delenv("MIMETIC_RUNS")
    assert checkpoint_path(tiny()) == cache_dir() / "checkpoints" / "tiny" / "timm-seed0.pt"


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = run(tiny(experiment="whole"), progress=False)
    monkeypatch.setattr(loop, "save_checkpoint", full)
    with pytest.warns(UserWarning, match="is not saved .*No space left on device.*goes on"):
        assert run(tiny(), progress=False, checkpoint_seconds=0)["curve"] == whole["curve"]
    with pytest.raises(OSError, match="No space left"):  # "everything is saved" would not be true
        run(tiny(experiment="third"), progress=False, time_limit=0)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "run.pt"
    save_checkpoint(path, {"identity": {}, "step": 1})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, {"identity": {}, "step": 2, "weights": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(path, {})["step"] == 1 and [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_a_record_is_shown_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    record = run(tiny(), progress=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(runs, "_train", None)
    assert run(tiny(), progress=False) == record
    for config, options in ((tiny(seed=1), {}), (tiny(), {"force": True})):
        with pytest.raises(ValueError, match="nothing can be written to .*not writable.*MIMETIC_RUNS"):
            run(config, progress=False, **options)


def test_folders_and_names_are_checked_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_train", None)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir(exist_ok=True)
    (tmp_path / "runs" / "tiny").write_text("")
    with pytest.raises(ValueError, match="nothing can be written to .*tiny is a file.*MIMETIC_RUNS"):
        run(tiny(), progress=False)
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "other"))
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="file is a file.*MIMETIC_DATA"):
        run(tiny(), progress=False)
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="at most 200 characters, not 300"):
        run(tiny(arm="a" * 300), progress=False)
    for options in ({"time_limit": float("nan")}, {"time_limit": -5.0}, {"checkpoint_seconds": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(options))):
            run(tiny(), progress=False, **options)


def test_what_was_compiled_before_does_not_make_a_run_eager(monkeypatch):
    """dynamo counts the graphs of one function over all models of a process, and gives up at eight without a word."""
    compile_, graphs = torch.compile, []

    def backend(module, _):
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: compile_(model, backend=backend, **kwargs))
    small = dict(
        experiment="compiled",
        d_model=16,
        depth=1,
        num_heads=2,
        context=16,
        batch_size=8,
        epochs=1,
        steps_per_epoch=2,
        compile="on",
        curve_tokens=400,
    )

    def compiled(ratio):
        before = len(graphs)
        record = run(named("pydoc", **small, mlp_ratio=ratio), store=False, progress=False)
        assert record["device"]["compiled"]
        return len(graphs) - before, record["curve"]

    first, *others = [compiled(ratio) for ratio in (1.0, 2.0, 3.0, 4.0, 5.0)]
    # every shape is compiled as the first one was
    assert first[0] >= 2 and all(count == first[0] for count, _ in others)
    assert compiled(5.0) == (0, others[-1][1])  # and shared by runs of one shape


def test_a_compiler_that_fails_is_said_in_one_line(monkeypatch):
    def broken(*_, **__):
        raise type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})(
            "no compiler\nand a hundred lines more"
        )

    monkeypatch.setattr(torch, "compile", lambda model, **_: broken)
    with pytest.raises(
        Unavailable, match=r"torch.compile fails on this machine \(InductorError: no compiler\): choose --compile off"
    ):
        run(tiny(compile="on"), store=False, progress=False)


def test_a_run_that_moved_says_so():
    with pytest.raises(TimeLimit):
        run(tiny(), progress=False, time_limit=0)
    path = checkpoint_path(tiny())
    state = torch.load(path, weights_only=True)
    (here,) = state["result"]["machines"]
    state["result"]["machines"] = [here | {"name": "another processor"}]
    save_checkpoint(path, state)
    machines = run(tiny(), progress=False)["device"]["machines"]
    assert [(m["name"], m["from_step"]) for m in machines] == [("another processor", 0), (here["name"], 1)]
    assert "machines" not in run(tiny(experiment="alone"), progress=False)["device"]


def test_a_metric_that_is_no_number_is_said_at_once(monkeypatch):
    monkeypatch.setattr(VisionTask, "evaluate", lambda self, model, last: {"accuracy": float("nan")})
    with pytest.raises(Diverged, match="test_accuracy is nan in epoch 1"):
        run(tiny(), progress=False)


def test_training_learns():
    """Not just numbers that go down: a tiny ViT reads digits after a few seconds."""
    record = run(tiny(train_size=None, epochs=6, d_model=32, lr=3e-3, init="mimetic"), store=False, progress=False)
    assert record["final"]["test_accuracy"] > 0.6
    assert record["final"]["train_loss"] < record["curve"][0]["train_loss"]


def test_time_limit_saves_and_the_same_call_goes_on():
    whole = run(tiny(experiment="whole"), progress=False)
    stops = 0
    while True:
        try:
            record = run(tiny(), progress=False, time_limit=0)  # stops after every step
            break
        except TimeLimit as stopped:
            stops += 1
            assert "of 30 steps" in str(stopped)
    assert stops >= 1 and record["resumed"] == stops and record["curve"] == whole["curve"]


def test_two_processes_do_not_train_the_same_run():
    with (
        exclusive(checkpoint_path(tiny())),
        pytest.raises(CheckpointError, match="another process is training this run"),
    ):
        run(tiny(), progress=False)


# A process that has imported everything (seconds) and forks (milliseconds) one that trains whenever it is told to.
TRAINER = """
import os, sys, traceback
import torch
from mimetic.data import images
from mimetic.experiments import configs, runs, vision


train = runs.train
def train_and_keep(model, *args, **kwargs):
    result = train(model, *args, **kwargs)
    torch.save(model.state_dict(), {weights!r})
    return result
runs.train = train_and_keep
torch.optim.AdamW([torch.zeros(1)])  # its first use imports much
vision.build_model(configs.named("digits"))
images.load_images("digits")
while sys.stdin.readline():
    pid = os.fork()
    if pid == 0:
        try:
            runs.run(configs.vision.VisionConfig(**{config!r}), progress=False, checkpoint_seconds=0.0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    sys.stdin.readline()  # not waited for until told so: its id cannot become another process's
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_killed_at_random_times_and_resumed_is_bit_identical(tmp_path, monkeypatch):
    """SIGKILL to a real process, again and again; then weights and curve are those of a run that was left alone."""
    alone_config = tiny(experiment="alone", epochs=3, init="mimetic")
    final = {}
    keep = runs.train

    def train_and_keep(model, *args, **kwargs):
        final["model"] = model
        return keep(model, *args, **kwargs)

    monkeypatch.setattr(runs, "train", train_and_keep)
    alone = run(alone_config, progress=False)

    killed_config = dataclasses.replace(alone_config, experiment="killed")
    weights, checkpoint, config = (
        tmp_path / "weights.pt",
        checkpoint_path(killed_config),
        dataclasses.asdict(killed_config),
    )
    script = TRAINER.format(config=config, weights=str(weights))
    trainer = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    rng, kills, left_behind = random.Random(20_000), 0, set()  # random times, but the same ones in every test run

    def saved():
        return checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0

    with trainer:
        while True:
            before = saved()
            trainer.stdin.write("train\n")
            pid = int(trainer.stdout.readline())
            if kills < 4:
                # wait until it has gone on from where the last one died, then kill it somewhere in the next steps
                deadline = time.monotonic() + 60
                while saved() == before and time.monotonic() < deadline:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.06))
                os.kill(pid, signal.SIGKILL)
            trainer.stdin.write("wait\n")
            status = int(trainer.stdout.readline())
            if status != -signal.SIGKILL:
                break
            kills += 1
            (checkpoint.parent / ".mimetic-seed0.0123abcd.tmp.pt").touch()  # what a kill in the middle of a save leaves
            if checkpoint.is_file():
                left_behind.add(torch.load(checkpoint, weights_only=True)["step"])
        trainer.stdin.close()
    assert status == 0
    killed = read_record(record_path("killed", "mimetic", 0))
    assert kills == 4 and killed["resumed"] >= 2 and len(left_behind) >= 2, "the processes were too fast to be killed"
    assert killed["curve"] == alone["curve"] and killed["final"] == alone["final"]
    ours, theirs = final["model"].state_dict(), torch.load(weights, weights_only=True)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert [p.name for p in checkpoint.parent.iterdir()] == ["mimetic-seed0.lock"]  # nor half-written files


def test_resume_restores_dropout_and_everything_else(tmp_path):
    """The same at the level of the loop, with a model that draws from the global generator, stopped at every step."""

    class Noisy(Line):
        def loss(self, model, batch):
            x, y = batch
            loss = (torch.dropout(model(x), 0.5, model.training) - y).square().mean()
            return loss, {}

    config = TrainConfig(epochs=3, lr=0.1, threads=1)
    straight, resumed = line_model(), line_model()
    want = train(straight, Noisy(), config, seed=3, progress=False)
    assert train(line_model(), Noisy(), config, seed=4, progress=False).curve != want.curve  # the noise matters
    stopping = dict(checkpoint=tmp_path / "x.pt", time_limit=-1, progress=False)
    for _ in range(100):
        try:
            got = train(line_model(), Noisy(), config, seed=3, **stopping)
            break
        except TimeLimit:
            continue
    resumed.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True)["model"])
    assert got.curve == want.curve and got.resumed == 12 and torch.equal(resumed.weight, straight.weight)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(init="mimetik"), "init must be one of timm, torch, xavier, .*mimetic"),
        (dict(dataset="svhn"), "dataset must be one of cifar10, cifar100, digits"),
        (dict(train_size=7), "train_size must be from 10 to 1437"),
        (dict(seed=-1), "seed must be a whole number"),
        (dict(epochs=0), "epochs must be a whole number"),
        (dict(epochs=True), "epochs must be a whole number"),
        (dict(qk_rank=4), "qk_rank is for init mimetic and mimetic-qk; timm takes none"),
        (dict(batch_size=5000), "more than the 480 training images"),
        (dict(lr=0.0), "lr must be greater than 0"),
        (dict(warmup=1.5), "warmup is a share of the run"),
        (dict(label_smoothing=1.0), "label_smoothing must be"),
        (dict(weight_decay=-1.0), "weight_decay must be at least 0"),
        (dict(device="tpu"), "device must be one of auto, cpu, cuda, mps"),
        (dict(precision="float16"), "precision must be one of auto, float32, bfloat16"),
        (dict(compile="yes"), "compile must be one of auto, on, off"),
        (dict(threads=0), "threads must be a whole number"),
        (dict(global_pool="max"), "global_pool must be one of token, avg"),
        (
            dict(pos_embed="rope"),
            "pos_embed must be one of sincos2d, learned, none, shuffled, noise, from-sincos, from-noise",
        ),
        (dict(patch_size=3), "does not divide img_size=8"),
        (dict(padding_mode="wrap"), "padding_mode must be one of reflect, zero"),
        (dict(experiment="a/b"), "experiment must be lower-case"),
        (dict(arm="A B"), "arm must be lower-case"),
        (dict(experiment="digits"), "digits/timm-seed0 is defined with other values than .*train_size=480"),
    ],
)
def test_bad_config_is_refused_before_anything_is_computed(change, words, monkeypatch):
    monkeypatch.setattr(runs, "_train", None)
    with pytest.raises(ValueError, match=words):
        run(tiny(**change), progress=False)


def test_missing_device_names_the_ones_there():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="device='cuda': PyTorch finds none on this machine; choices here: auto, cpu"):
        backend.resolve_device("cuda")


def test_named():
    assert named("cifar10-lab30", init="mimetic", seed=2).name == "cifar10-lab30/mimetic-seed2"
    with pytest.raises(
        ValueError,
        match=(
            "one of cifar10-lab30, cifar10-lab10, cifar10-recipe, cifar10-rates, cifar10-paper, cifar100-paper,"
            " cifar10-small, digits"
        ),
    ):
        named("cifar")
    with pytest.raises(ValueError, match="'epoch' is not a field.*epochs"):
        named("digits", epoch=3)
    for config in EXPERIMENTS.values():
        check(config)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_runs_and_the_record_says_how(native, monkeypatch):
    monkeypatch.setattr(backend, "cpu_has_bfloat16", lambda: native)
    record = run(tiny(precision="bfloat16", epochs=1), store=False, progress=False)
    assert record["device"]["precision"] == "bfloat16" and math.isfinite(record["final"]["train_loss"])
    assert record["device"]["products"] == ("bfloat16" if native else "float32")


def test_float32_needs_no_instructions_for_bfloat16(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(backend, "cpu_has_bfloat16", lambda native=native: native)
        assert backend.resolve_backend(runs.train_config(tiny(precision="float32")))["products"] == "float32"


def test_products_in_float32_are_rounded_once_forward_and_backward():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).bfloat16().requires_grad_()

    cases = [
        (torch.mm, draw(5, 300), draw(300, 7)),
        (torch.bmm, draw(2, 5, 300), draw(2, 300, 7)),
        (torch.addmm, draw(7), draw(5, 300), draw(300, 7)),
        (torch.baddbmm, draw(2, 5, 7), draw(2, 5, 300), draw(2, 300, 7)),
        (torch.nn.functional.conv2d, draw(2, 3, 8, 8), draw(6, 3, 3, 3), draw(6)),
    ]
    for function, *args in cases:
        with InFloat32():
            found = function(*args)
            gradients = torch.autograd.grad(found.sum(), args)
        wide = [a.detach().float().requires_grad_() for a in args]
        wanted = function(*wide)
        assert found.dtype == torch.bfloat16 and torch.equal(found, wanted.bfloat16())
        for gradient, exact in zip(gradients, torch.autograd.grad(wanted.sum(), wide), strict=True):
            assert gradient.dtype == torch.bfloat16
            torch.testing.assert_close(gradient.float(), exact, rtol=2**-7, atol=1e-2)


# ------------------------------------------------------------------------------------------------ what questions need


def test_epochs_of_a_fixed_number_of_images():
    """With epoch_images the same steps are cut into epochs differently: a pass over the data may span them."""
    data = load_images("digits", train_size=480)
    plain, cut = (VisionTask(data, tiny(epoch_images=n)) for n in (None, 320))
    assert (plain.steps_per_epoch, cut.steps_per_epoch) == (15, 10)
    for step in range(30):
        for x, y in zip(plain.batch(*divmod(step, 15)), cut.batch(*divmod(step, 10))):
            assert y.shape == x.shape
        # the order of the images is that of the pass; the augmentation is drawn for the epoch's step
        assert torch.equal(plain.batch(*divmod(step, 15))[1], cut.batch(*divmod(step, 10))[1])
    assert len(run(tiny(epoch_images=320, epochs=3), store=False, progress=False)["curve"]) == 3


def test_curve_on_a_part_and_the_end_on_all_of_the_test_set():
    part = run(tiny(curve_images=100), store=False, progress=False)
    whole = run(tiny(), store=False, progress=False)
    assert part["final"] == whole["final"]  # evaluation does not touch training
    assert part["curve"][0]["test_loss"] != whole["curve"][0]["test_loss"]
    assert (100 * part["curve"][0]["test_accuracy"]) == pytest.approx(round(100 * part["curve"][0]["test_accuracy"]))


def test_record_holds_products_and_maps_before_and_after():
    record = run(tiny(init="mimetic"), store=False, progress=False)
    before, after = (record["anatomy"][when] for when in ("before", "after"))
    assert before["products"]["rows"] != after["products"]["rows"]
    assert [len(before[k]["rows"]) for k in ("products", "maps")] == [2 * 2 * 3, 2 * 2]


def test_explicit_bfloat16_attention_is_the_fused_one():
    """On a CPU bfloat16 takes another path; in float64 arithmetic the two would be the same."""
    from mimetic.models.blocks import SelfAttention

    torch.manual_seed(0)
    attention, x = SelfAttention(32, 2), torch.randn(2, 9, 32)
    half = attention.to(torch.bfloat16)
    explicit = half(x.bfloat16()).float()
    torch.testing.assert_close(explicit, half.float()(x), atol=2e-2, rtol=2e-2)
    causal = SelfAttention(32, 2, causal=True).to(torch.bfloat16)  # takes the fused path
    assert causal(x.bfloat16()).shape == (2, 9, 32)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_the_same_run_twice_on_a_gpu_and_stopped_in_between(tmp_path, monkeypatch, compiled):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))
    config = tiny(device="cuda", precision="bfloat16", compile=compiled, randaugment_ops=2, epochs=3)
    curves = [run(config, store=False, progress=False)["curve"] for _ in range(2)]
    assert curves[0] == curves[1]

    class Stop(Exception):
        pass

    def stop(entry):
        raise Stop

    with pytest.raises(Stop):
        run(config, progress=False, on_epoch=stop)
    record = run(config, progress=False)
    assert record["resumed"] == 1 and record["curve"] == curves[0]


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_nothing_waits_for_the_gpu_inside_an_epoch(compiled):
    """Between the first and the last step of an epoch any synchronisation is an error."""
    config = tiny(device="cuda", compile=compiled, randaugment_ops=2, epochs=2)
    prepared = vision.prepare(config, torch.device("cuda"))
    task, batch = prepared.task, prepared.task.batch
    checked = []

    def watched(epoch, step):
        inside = 0 < step < task.steps_per_epoch - 1
        torch.cuda.set_sync_debug_mode("error" if inside else "default")
        checked.append(inside)
        return batch(epoch, step)

    task.batch = watched
    try:
        train(prepared.model, task, runs.train_config(config), progress=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum(checked) > 10


@pytest.mark.parametrize("begun", [0, 3])
def test_trial_steps_before_a_graph_leave_nothing_behind(monkeypatch, capsys, begun):
    """A graph is captured at the first step, after two trials, in a new run or one that
    goes on; here a device that cannot hold one.
    """
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda other: None))
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)

    @contextlib.contextmanager
    def graph(_):
        raise RuntimeError("no room\nfor it")
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)

    class Noisy(Line):
        def loss(self, model, batch):
            x, y = batch
            return (torch.dropout(model(x), 0.5, True) - y).square().mean(), {"size": y.abs().mean()}

    backend = {"type": "cpu", "precision": "float32"}
    ends = []
    for captures in (False, True):
        torch.manual_seed(0)
        model, task = line_model(), Noisy()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True, weight_decay=0.3)
        step = Step(model, model, task.loss, optimizer, 1.0, backend)
        for i in range(begun):
            step(task.batch(0, i), 0.1 / (i + 1))
        step.captures = captures
        for i in range(begun, 4):
            step(task.batch(0, i), 0.1 / (i + 1))
        ends.append(
            [
                *model.state_dict().values(),
                *(value for state in optimizer.state.values() for value in state.values()),
                *step.sums.values(),
            ]
        )
    assert len(ends[0]) == len(ends[1]) > 5 and all(map(torch.equal, *ends))
    assert capsys.readouterr().out == "no CUDA graph (no room for it)\n"
    step.replay = lambda: pytest.fail("a batch of another shape is not the graph's")
    step(tuple(part[:1] for part in task.batch(0, 0)), 0.1)
