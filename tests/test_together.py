"""Many runs in the same kernels: each is the run that it would be alone."""

import copy
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mimetic.commands import main
from mimetic.experiments import together, vision
from mimetic.experiments.configs import named
from mimetic.experiments.runs import run
from mimetic.models import gpt
from mimetic.models.gpt import GPT, GPTConfig
from mimetic.models.stacked import StackedViT, stack
from mimetic.models.vit import GLOBAL_POOL, POS_EMBED, ViT, ViTConfig
from mimetic.training.checkpoint import exclusive
from mimetic.training.group import clip_each_
from mimetic.training.records import read_record, record_path

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))


def toy(**changes):
    small = {
        "epochs": 2,
        "epoch_images": 160,
        "device": "cpu",
        "precision": "float32",
        "d_model": 32,
        "depth": 2,
        "num_heads": 2,
    }
    return named("digits", experiment="toy", compile="off", **small | changes)


def train(configs):
    """Together, in this process; how many were recorded, and what failed."""
    written, failed = together.work_together(configs, 8, processes=0, say=lambda line: None)
    return len(written), failed


def stored(config):
    return read_record(record_path(config.experiment, config.arm or config.init, config.seed))


def moved_and_stacked(models):
    """The models with other weights than their first, each once more alone, and all stacked."""
    with torch.no_grad():
        for parameter in (p for model in models for p in model.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return copy.deepcopy(models), stack(models)


def same_outputs_and_gradients(models, inputs):
    alone, stacked = moved_and_stacked(models)
    got, wanted = stacked(inputs), torch.stack([model(x) for model, x in zip(alone, inputs)])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    got.square().sum().backward(), wanted.square().sum().backward()
    for name, weight in zip(stacked.names, stacked.weights):
        for i, model in enumerate(alone):
            torch.testing.assert_close(weight.grad[i], model.get_parameter(name).grad, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("pool", GLOBAL_POOL)
@pytest.mark.parametrize("pos_embed", POS_EMBED)
def test_logits_and_gradients_are_those_of_the_models(pool, pos_embed):
    torch.manual_seed(0)
    config = ViTConfig(
        img_size=16,
        patch_size=4,
        num_classes=10,
        d_model=48,
        depth=2,
        num_heads=3,
        global_pool=pool,
        pos_embed=pos_embed,
    )
    same_outputs_and_gradients([ViT(config) for _ in range(3)], torch.randn(3, 5, 3, 16, 16))


@pytest.mark.parametrize("pos_embed", gpt.POS_EMBED)
def test_the_same_of_gpts(pos_embed):
    torch.manual_seed(0)
    models = [
        GPT(GPTConfig(vocab_size=30, context=8, d_model=24, depth=2, num_heads=3, pos_embed=pos_embed))
        for _ in range(3)
    ]
    same_outputs_and_gradients(models, torch.randint(30, (3, 4, 7)))


def test_the_models_are_views_of_the_stack():
    models = [ViT(ViTConfig(img_size=8, patch_size=4, d_model=16, depth=1, num_heads=2)) for _ in range(2)]
    before = [p.clone() for p in models[1].parameters()]
    stacked = stack(models)
    with torch.no_grad():
        for weight in stacked.weights:
            weight += 1
    assert all(torch.equal(new, old + 1) for new, old in zip(models[1].parameters(), before))
    with pytest.raises(ValueError, match="of one shape"):
        StackedViT([models[0], ViT(ViTConfig(img_size=8, patch_size=4, d_model=32, depth=1, num_heads=2))])
    with pytest.raises(ValueError, match="only ViT and GPT"):
        stack([torch.nn.Linear(2, 2)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
def test_each_run_is_what_it_is_alone(device, precision, capsys):
    """Other initializers, seeds, images and constants side by side, clipped and with weight decay; then each alone."""
    base = toy(device=device, lr=3e-3, weight_decay=0.3, grad_clip=0.3, precision=precision)
    configs = [dataclasses.replace(base, init=init, seed=seed) for init in ("timm", "mimetic") for seed in (0, 1)]
    configs += [
        dataclasses.replace(base, arm="few", init="mimetic", train_size=400),
        dataclasses.replace(base, arm="plus", init="mimetic", vp_beta=0.4),
    ]
    configs.append(dataclasses.replace(base, arm="gentle", lr=1e-3))
    assert train(configs) == (len(configs), {})
    for config in configs:
        got, wanted = stored(config), run(config, store=False, progress=False)
        assert got["device"]["together"] == len(configs) and got["parameters"] == wanted["parameters"]
        assert got["data"] == wanted["data"]
        for entry, alone in zip(got["curve"], wanted["curve"], strict=True):
            assert entry == pytest.approx(
                alone, abs=2e-2 if precision == "bfloat16" else 2e-3 if device == "cuda" else 2e-5
            ), config.name
        assert got["anatomy"]["before"]["maps"]["rows"] == [
            pytest.approx(row, rel=1e-3) for row in wanted["anatomy"]["before"]["maps"]["rows"]
        ]
        assert [row[:4] for row in got["anatomy"]["before"]["products"]["rows"]] == [
            row[:4] for row in wanted["anatomy"]["before"]["products"]["rows"]
        ]
        rows = [table["anatomy"]["after"]["products"]["rows"] for table in (got, wanted)]
        assert [row[4] for row in rows[0]] == pytest.approx(
            [row[4] for row in rows[1]], abs=1e-2 if precision == "bfloat16" else 1e-3
        )
        assert run(config) == got  # and it is the record of the run
    assert "no CUDA graph" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*RoPE rotates:mimetic.MimeticWarning")
@pytest.mark.parametrize("pos_embed", ["learned", "sincos", "rotary"])
@pytest.mark.parametrize("device", DEVICES)
def test_each_run_of_text_is_what_it_is_alone(device, pos_embed):
    base = named(
        "pydoc",
        pos_embed=pos_embed,
        experiment="toy",
        context=16,
        d_model=32,
        depth=2,
        batch_size=4,
        epochs=2,
        steps_per_epoch=5,
        curve_tokens=500,
        lr=1e-2,
        weight_decay=1.0,
        device=device,
        precision="float32",
        compile="off",
    )
    configs = [dataclasses.replace(base, init=init, seed=seed) for init in ("gpt2", "mimetic") for seed in (0, 1)]
    configs.append(dataclasses.replace(base, arm="gentle", lr=1e-3))
    assert train(configs) == (len(configs), {})
    for config in configs:
        got, wanted = stored(config), run(config, store=False, progress=False)
        for entry, alone in zip(got["curve"], wanted["curve"], strict=True):
            assert entry == pytest.approx(alone, rel=2e-3 if device == "cuda" else 1e-4), config.name
        assert [row[4] for row in got["anatomy"]["before"]["products"]["rows"]] == pytest.approx(
            [row[4] for row in wanted["anatomy"]["before"]["products"]["rows"]], rel=1e-3, abs=1e-6
        )
        assert got["cases"]["bytes"] == wanted["cases"]["bytes"] and got["data"] == wanted["data"]


def test_the_gradient_of_each_is_clipped_alone():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3, *shape)) for shape in ((4, 5), (6,))]
    for weight in weights:
        weight.grad = torch.randn_like(weight) * torch.tensor([0.01, 1.0, 10.0]).view(-1, *[1] * (weight.ndim - 1))
    alone = [[torch.nn.Parameter(weight[i].detach().clone()) for weight in weights] for i in range(3)]
    for i, model in enumerate(alone):
        for mine, weight in zip(model, weights):
            mine.grad = weight.grad[i].clone()
        torch.nn.utils.clip_grad_norm_(model, 1.0)
    clip_each_(weights, 1.0)
    for i, model in enumerate(alone):
        for mine, weight in zip(model, weights):
            torch.testing.assert_close(weight.grad[i], mine.grad)


def test_one_that_diverges_leaves_the_others_alone(monkeypatch):
    def build(config):
        model = build_model(config)
        if config.arm == "wild":
            model.head.weight.data.fill_(torch.inf)
        return model

    build_model = vision.build_model
    monkeypatch.setattr(vision, "build_model", build)
    configs = [toy(), toy(arm="wild")]
    _, failed = train(configs)
    assert failed == {"toy/wild-seed0": "Diverged: its loss is no longer a finite number"}
    assert math.isfinite(stored(configs[0])["final"]["train_loss"])
    wanted = run(configs[0], store=False, progress=False)["final"]
    assert stored(configs[0])["final"] == pytest.approx(wanted, abs=2e-5)


def test_groups_have_one_shape_and_are_about_equal():
    runs = [toy(seed=seed) for seed in range(5)] + [toy(arm="wide", d_model=128)] + [toy(seed=5)]
    made = together.groups(runs, 4)
    assert [[config.name for config in group] for group in made] == [
        ["toy/timm-seed0", "toy/timm-seed1", "toy/timm-seed2"],
        ["toy/timm-seed3", "toy/timm-seed4", "toy/timm-seed5"],
        ["toy/wide-seed0"],
    ]
    with pytest.raises(ValueError, match="together must be at least 1, not 0"):
        together.groups(runs, 0)
    with pytest.raises(
        ValueError, match="only ViTs and GPTs can be trained together, and clusters/bert-seed0 is neither"
    ):
        together.groups([named("clusters")], 4)


def test_work_skips_what_is_done_and_names_what_fails():
    done, other, bad = toy(), toy(seed=1), toy(arm="n", d_model=48, lr=1e38)
    before = run(done, progress=False)
    lines = []
    finished, failed = together.work_together([done, other, bad, other], 8, processes=0, say=lines.append)
    assert finished == ["toy/timm-seed1"] and list(failed) == ["toy/n-seed0"] and "Diverged" in failed["toy/n-seed0"]
    assert stored(done) == before and any("FAILED" in line for line in lines)
    assert together.work_together([done, other], 8, processes=0) == ([], {})


def test_what_another_process_holds_or_has_finished_is_passed_over(monkeypatch):
    held, finished, mine = toy(), toy(seed=1), toy(seed=2)
    existing = together.existing

    def finished_meanwhile(config):
        return {} if config.seed == 1 else existing(config)

    monkeypatch.setattr(together, "existing", finished_meanwhile)
    lines = []
    with exclusive(together.checkpoint_path(held)):
        written, failed = together.work_together([held, finished, mine], 8, processes=0, say=lines.append)
    assert written == ["toy/timm-seed2"] and failed == {}
    assert any("timm-seed0  passed over" in line for line in lines) and not record_path("toy", "timm", 1).exists()


def test_a_run_that_cannot_begin_leaves_the_others_alone(monkeypatch):
    def build(config):
        if config.arm == "odd":
            raise ValueError("no such weights")
        return build_model(config)

    build_model = vision.build_model
    monkeypatch.setattr(vision, "build_model", build)
    assert train([toy(arm="odd"), toy()]) == (1, {"toy/odd-seed0": "ValueError: no such weights"})
    with pytest.raises(ValueError, match="qk_rank must be from 1 to the head size, 16, not 17"):
        train([toy(init="mimetic", qk_rank=17)])


def test_what_is_trained_is_recorded_when_the_queue_is_stopped():
    """An exception while the second group is in training: the first one's records are there."""
    configs = [toy(), toy(arm="wide", d_model=128)]

    def say(line):
        if "wide" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together.work_together(configs, 8, processes=1, say=say)
    assert record_path("toy", "timm", 0).exists() and not record_path("toy", "wide", 0).exists()


def test_a_helper_that_dies_is_done_without(monkeypatch):
    submit, killed = together.Helpers.submit, []
    monkeypatch.setattr(together.Helpers, "submit", lambda self, call: _submit_and_kill(self, call, submit, killed))
    assert together.work_together([toy(), toy(seed=1)], 8, processes=1, say=lambda line: None) == (
        ["toy/timm-seed0", "toy/timm-seed1"],
        {},
    )
    assert killed


def _submit_and_kill(helpers, call, submit, killed):
    job = submit(helpers, call)
    if not killed:
        killed.append(True)
        for process in list(helpers.pool._processes.values()):
            process.kill()
    return job


def test_nothing_is_begun_that_would_take_too_long():
    lines = []
    written, failed = together.work_together(
        [toy(), toy(arm="wide", d_model=128, depth=8)], 8, processes=0, minutes=0.05, say=lines.append
    )
    assert written == ["toy/timm-seed0"] and failed == {}
    for wrong in ({"minutes": 0}, {"processes": -1}):
        with pytest.raises(ValueError, match="processes must be at least 0 and minutes more than 0"):
            together.work_together([toy()], 8, **wrong)


def test_a_group_that_another_process_holds_says_nothing_of_how_long_one_takes(monkeypatch):
    """The second of three groups is held: the third is begun, or not, by the time of the first."""
    clock, begun = [0.0], []

    def train(self, group, jobs):
        begun.append(group[0].name)
        clock[0] += 2.0 * (len(begun) != 2)
        return len(begun) != 2

    monkeypatch.setattr(together._Work, "train", train)
    monkeypatch.setattr(together._Work, "begin", lambda self, group: [])
    monkeypatch.setattr(together.time, "monotonic", lambda: clock[0])
    runs = [toy(), toy(arm="held"), toy(arm="longer", epochs=30 * toy().epochs)]
    together.work_together(runs, 1, processes=0, minutes=5 / 60, say=lambda line: None)
    assert begun == ["toy/timm-seed0", "toy/held-seed0"]


def test_not_under_torchrun(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="not under torchrun"):
        together.work_together([toy()], 8)


STOPPED = """
import sys
from mimetic.experiments import together
from mimetic.experiments.configs import named
if __name__ == "__main__":
    config = named(
        "pydoc", experiment="toy", d_model=16, depth=1, num_heads=2, context=8, batch_size=4, epochs=1000,
        steps_per_epoch=50, curve_tokens=50, device="cpu", compile="off",
    )
    together.work_together([config], 8, processes=1, say=lambda line: print(line, flush=True))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_its_helpers_end_with_it(tmp_path, number):
    (tmp_path / "stopped.py").write_text(STOPPED)
    source = Path(together.__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "stopped.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert b"epoch 1/1000" in process.stdout.readline()
    helpers = (
        [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        if Path("/proc").is_dir()
        else []
    )
    process.send_signal(getattr(signal, number))
    process.wait(timeout=60)
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in helpers):
        assert time.monotonic() < deadline, "a helper is left"
        time.sleep(0.1)


def test_command_line(capsys):
    assert main(["queue", "recommenders", "--together", "4"]) == 2
    assert "only ViTs and GPTs can be trained together" in capsys.readouterr().err
    assert main(["queue", "lab", "--together", "0"]) == 2
    if not torch.cuda.is_available():
        assert main(["queue", "lab", "--together", "60"]) == 2 and "PyTorch finds none here" in capsys.readouterr().err
