"""The queue on a machine that has torch, torchvision, timm and NumPy only, as lent GPU machines do."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mimetic.experiments.configs import named
from mimetic.training.records import read_record

SRC = Path(__file__).resolve().parents[1] / "src"
MISSING = (
    "IPython",
    "jupyter_book",
    "matplotlib",
    "nbformat",
    "pandas",
    "papermill",
    "safetensors",
    "scipy",
    "sklearn",
    "threadpoolctl",
    "tokenizers",
    "tqdm",
    "transformers",
    "tyro",
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """An environment without those packages, and a CIFAR-10 of eight images, many times over."""
    folder = tmp_path_factory.mktemp("machine")
    # loaded by every Python that starts here, the queue's workers too
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({MISSING!r}))\n")
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    arrays = {"classes": np.array([f"class {i}" for i in range(10)])}
    for split, count in (("train", 50_000), ("test", 10_000)):
        arrays[f"y_{split}"] = np.arange(count, dtype=np.int64) % 10
        arrays[f"x_{split}"] = images[arrays[f"y_{split}"]]
    (folder / "cache").mkdir()
    np.savez_compressed(folder / "cache" / "cifar10.npz", **arrays)
    names = {
        "PYTHONPATH": f"{folder}{os.pathsep}{SRC}",
        "MIMETIC_DATA": str(folder / "cache"),
        "MIMETIC_RUNS": str(folder / "runs"),
    }
    return folder, os.environ | names


def python(machine, *arguments, **options):
    folder, environment = machine
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


# What `python -m mimetic ...` does, several times in one process, because starting it takes longer than the rest.
COMMANDS = """
import contextlib, io, json, runpy, sys
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module("mimetic", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            results.append((end.code, out, err))
print(json.dumps([(code or 0, out.getvalue(), err.getvalue()) for code, out, err in results]))
"""


def test_they_are_missing(machine):
    assert "ModuleNotFoundError" in python(machine, "-c", "import pandas").stderr


def test_command_line_without_tyro(machine):
    lines = (
        "queue paper --list",
        "queue papers",
        "data fetch cifar10",
        "data fetch gpt2",
        "data fetch pydoc clusters",
        "bench profile --experiment digits --steps 2 --device cpu",
        "bench profile --steps 0",
        "train digits",
    )
    done = python(machine, "-c", COMMANDS, json.dumps([line.split() for line in lines]))
    assert done.returncode == 0, done.stderr
    listed, no_queue, there, no_model, made, profile, no_steps, needs_it = json.loads(done.stdout)
    assert listed[0] == 0 and listed[1].splitlines()[0].split() == ["cifar10-paper/timm-seed0", "waiting"], listed
    assert no_queue[0] == 2 and "queue must be one of lab, paper, recipe" in no_queue[2]
    assert there[:2] == [0, f"cifar10: {machine[0] / 'cache' / 'cifar10.npz'}\n"], there
    assert no_model[0] == 2 and no_model[2].startswith("error: 'gpt2' is not known; choose from cifar10, cifar100, ")
    assert no_model[2].endswith("(pretrained models need pandas)\n")
    assert made[:2] == [0, "pydoc: part of Python\nclusters: made when it is asked for\n"], made
    assert profile[0] == 0 and "backward" in profile[1], profile
    assert no_steps[0] == 2 and no_steps[2] == "error: steps must be at least 1, not 0\n"
    assert needs_it[0] == 2 and needs_it[2].startswith("error: without tyro there are queue, bench and data fetch;")


WORK = """
import json, sys
from mimetic.experiments import queue
from mimetic.experiments.configs.vision import VisionConfig
if __name__ == "__main__":
    configs = [VisionConfig(**c) for c in json.loads(sys.argv[1])]
    outcome = queue.work(configs, processes=1, checkpoint_seconds=0.05, say=lambda line: print(line, flush=True))
    sys.exit(bool(outcome.failed))
"""


def test_killed_half_way_and_gone_on_with(machine):
    folder, environment = machine
    base = named(
        "cifar10-paper",
        experiment="toy",
        train_size=400,
        batch_size=40,
        d_model=16,
        depth=1,
        num_heads=2,
        patch_size=8,
        epochs=6,
        curve_images=100,
        device="cpu",
        threads=1,
    )
    configs = [dataclasses.replace(base, init=init) for init in ("timm", "mimetic")]
    (folder / "work.py").write_text(WORK)
    command = [str(folder / "work.py"), json.dumps([dataclasses.asdict(c) for c in configs])]
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((folder / "cache").rglob("checkpoints/**/toy/mimetic-seed0.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read().decode()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (folder / "runs" / "toy" / "mimetic-seed0.json").is_file(), "the queue was too fast to be killed"
    again = python(machine, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    records = [read_record(folder / "runs" / "toy" / f"{c.init}-seed0.json") for c in configs]
    assert [r["resumed"] for r in records] == [0, 1]
    assert all(len(r["curve"]) == 6 and r["anatomy"]["after"]["maps"]["rows"] for r in records)
    assert set(records[0]["versions"]) >= {"python", "torch", "numpy"}


WITHOUT = """
import torch
from mimetic import lapack
from mimetic.construct import semi_diagonal
from mimetic.data.fetch import Unavailable
from mimetic.experiments.configs import named
from mimetic.experiments.runs import run

run(named("clusters", experiment="toy-sequences", init="mimetic", epochs=1, precision="float32"), progress=False)
toy = dict(experiment="toy-text", d_model=16, depth=1, num_heads=2, context=8, batch_size=4)
toy |= dict(epochs=1, steps_per_epoch=2, curve_tokens=50, device="cpu")
run(named("pydoc", init="mimetic", **toy), progress=False)
try:
    run(named("pydoc", tokenizer="bpe", vocab_size=300, **toy), store=False)
except Unavailable as error:
    print(error)

assert not lapack.scipy  # its solver gives other vectors; the products, which are what is meant, agree
for d, k in ((48, 12), (96, 16), (48, 48)):
    A = semi_diagonal(d, 0.7, 0.7, generator=torch.Generator().manual_seed(d))
    (lefts, right), = lapack.factor_all([(A[None], k)])
    U, S, Vt = torch.linalg.svd(A.double())
    best = (U[:, :k] * S[:k]) @ Vt[:k]
    assert ((lefts[0] @ right).double() - best).norm() < 1e-5 * best.norm(), (d, k)
print("factors are right")
"""


def test_sequences_text_and_factors_without_the_other_packages(machine):
    """In one process, because starting it takes longer than the rest."""
    folder, _ = machine
    result = python(machine, "-c", WITHOUT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "a BPE vocabulary needs the tokenizers library: pip install tokenizers (or tokenizer='char')",
        "factors are right",
    ]
    sequences, text = (
        read_record(folder / "runs" / name / "mimetic-seed0.json") for name in ("toy-sequences", "toy-text")
    )
    assert sequences["final"]["test_ndcg10"] > 0 and sequences["anatomy"]["after"]["products"]["rows"]
    assert text["final"]["test_bits_per_byte"] > 0
