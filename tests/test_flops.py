"""The FLOP budget against the formula, and what the GPU chapter says with and without GPU records."""

import pandas as pd
import pytest

from mimetic import figures
from mimetic.book import gpu
from mimetic.experiments.configs import named
from mimetic.experiments.vision import vit_config
from mimetic.flops import flops, parameters, peak, total
from mimetic.models.vit import ViT, ViTConfig


@pytest.mark.parametrize("name", ["cifar10-lab30", "cifar10-paper"])
def test_flops_are_those_of_the_formula(name):
    """Forward: patches, 12 d^2 multiply-adds a token and block, attention 2 N d a token and block, head; backward twice
    that (all but the gradient of the pixels)."""
    config = vit_config(named(name))
    d, n, patch = config.d_model, (32 // config.patch_size) ** 2, 3 * config.patch_size**2
    parts = flops(config)
    blocks = 6 * config.depth * n * d
    wanted = {"queries, keys, values": 3 * d, "projection": d, "attention itself": 2 * n, "MLP": 8 * d}
    for part, each in wanted.items():
        assert parts[part] == pytest.approx(blocks * each, rel=1e-9), part
    assert parts["patches"] == 4 * n * patch * d and parts["head"] == 6 * 10 * d
    assert total(config) == sum(parts.values())


def test_parameters_without_weights_and_known_peaks():
    config = ViTConfig(img_size=32, patch_size=4, d_model=32, depth=2, num_heads=2, num_classes=10)
    assert parameters(config) == sum(p.numel() for p in ViT(config).parameters())
    for name, value in {
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA L4": 121e12,
        "NVIDIA GeForce RTX 4090": 165e12,
    }.items():
        assert peak(name) == value, name
    assert peak("NVIDIA GeForce RTX 4090 Laptop GPU") != peak("NVIDIA GeForce RTX 4090 Laptop GPU")
    assert peak("NVIDIA H100 80GB HBM3") == 989e12 and peak("a card of tomorrow") != peak("a card of tomorrow")


def test_budget_of_the_paper_runs():
    table = gpu.budget()
    config = named("cifar10-paper")
    seconds = total(vit_config(config)) * 50_000 * 100 / (0.2 * 989e12)
    assert table.loc["CIFAR-10, ViT-Tiny", "min at 20 %"] == round(seconds / 60, 1)
    assert (table["min at 10 %"] > table["min at 40 %"]).all()
    assert gpu.anatomy().sum().to_numpy() == pytest.approx(100, abs=0.3)
    known = gpu.recipe()["where from"].value_counts()
    assert known["our choice"] > known["papers that compare with it"] > 0


NONE = pd.DataFrame(columns=["device"])  # no measurement of speed


def test_the_chapter_says_that_there_is_nothing_until_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path))
    monkeypatch.setattr(gpu, "load_bench", lambda kind: NONE)
    assert "no GPU result is in" in gpu.answer()
    assert gpu.state()["recorded"].sum() == 0 and gpu.state()["runs"].sum() == 57
    assert gpu.throughput().empty
    assert "measured on CIFAR" not in gpu.imagenet_cost()


def test_a_measured_step_says_what_a_run_will_take(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path))
    steps = [
        {
            "arguments.experiment": name,
            "device": device,
            "finished": "2",
            "step": 0.02,
            "images_per_second": speed,
            "peak": speed / 1e5,
        }
        for name, device, speed in (
            ("cifar10-small", "NVIDIA H100", 5_000.0),
            ("cifar10-paper", "AMD EPYC", 100.0),
            ("cifar10-paper", "NVIDIA H200", 25_000.0),
        )
    ]
    speeds = [
        {
            "arguments.experiment": "cifar10-paper",
            "device": d,
            "finished": "3",
            "ours": 20_000.0,
            "timm": {"a": 100.0, "b": t},
            "ratio": 20_000 / t,
        }
        for d, t in (("NVIDIA H200", 4_000.0), ("NVIDIA A100", 9.0))
    ]
    monkeypatch.setattr(gpu, "load_bench", lambda kind: pd.DataFrame(steps if kind == "profile" else speeds))
    said = gpu.answer()
    assert "no run at this scale is finished" in said and "25,000 images a second and 25 %" in said
    assert "will take 3.3 minutes of training on an NVIDIA H200; our target of 4, set for an H100, is met." in said
    assert "(b) reached 4,000" in said
    assert "5.0 times as many (in that shorter" in said
    speeds[0]["finished"] = "1"
    assert "5.0 times as many (with an earlier version of the step)" in gpu.answer()
    assert set(gpu.minutes()[1]["minutes"].round(1)) == {3.3, 16.7}
    steps[-1]["images_per_second"] = 10_000.0
    assert "8.3 minutes of training" in gpu.answer() and "is missed." in gpu.answer()
    lone = {
        "experiment": "cifar10-paper",
        "arm": "timm",
        "init": "timm",
        "seed": 0,
        "test_accuracy": 0.9,
        "device.name": "NVIDIA H200",
        "images_per_second": 20_000.0,
        "seconds.total": 222.0,
    }
    monkeypatch.setattr(gpu, "load_runs", lambda name: pd.DataFrame([lone] if name == "cifar10-paper" else []))
    said = gpu.answer()
    assert "no pair of runs at this scale is finished** (CIFAR-10, ViT-Tiny: default, seed 0, ends at 90.0 %)" in said
    assert "took 3.7 minutes on an NVIDIA H200, evaluation" in said
    assert "is met." in said


def test_steps_so_far_and_the_largest_kernels_are_those_that_were_stored(monkeypatch):
    steps = [
        {
            "arguments.experiment": "cifar10-paper",
            "device": device,
            "step": step,
            "busy": 0.5,
            "phases": {"batch and augmentation": 0.004},
            "images_per_second": 1e4,
            "peak": 0.1,
            "top": top,
        }
        for device, step, top in (
            ("NVIDIA H200", 0.04, None),
            ("AMD EPYC", 9.0, None),
            ("NVIDIA H200", 0.02, {"flash_bwd": 0.6, "triton_gelu": 0.4}),
        )
    ]
    monkeypatch.setattr(gpu, "load_bench", lambda kind: pd.DataFrame(steps))
    table = gpu.steps_so_far()
    assert table["ms a step"].tolist() == [40, 20]
    assert table["ms the GPU computes"].tolist() == [20, 10]
    assert table.index.tolist() == [1, 2]
    assert gpu.largest_kernels().to_dict("list") == {
        "kind": ["attention kernels", "norms, softmax, GELU, sums"],
        "share (%)": [60, 40],
    }
    monkeypatch.setattr(gpu, "load_bench", lambda kind: pd.DataFrame(steps[:2]))
    assert gpu.largest_kernels().empty


def test_the_chapter_follows_records(monkeypatch):
    rows = [
        {
            "experiment": "cifar10-paper",
            "arm": arm,
            "seed": seed,
            "epoch": 100,
            "test_accuracy": 0.92 + gain + seed / 1000,
            "device.name": "NVIDIA H100 80GB HBM3",
            "images_per_second": 20_000.0,
            "seconds.total": 300.0,
        }
        for arm, gain in (("timm", 0.0), ("mimetic", 0.01))
        for seed in range(5)
    ]
    finals = pd.DataFrame(rows)
    monkeypatch.setattr(gpu, "load_runs", lambda name: finals if name == "cifar10-paper" else finals.iloc[:0])
    said = gpu.answer()
    assert "better: +1.00 points** (95 % interval" in said and "5 paired seeds" in said
    assert "NVIDIA H100" in said and "no GPU" not in said
    (row,) = gpu.throughput().to_dict("records")
    image = total(vit_config(named("cifar10-paper")))
    assert row["share of peak (%)"] == round(100 * 20_000 * image / 989e12, 1) and row["minutes a run"] == 5.0
    assert gpu.throughput_table().loc["CIFAR-10, ViT-Tiny", "minutes a run, all included"] == "5.0 (5 to 5)"
    assert ", 20 % (measured on CIFAR) |" in gpu.imagenet_cost() and gpu.imagenet_cost().count("ViT-Base") == 2


def test_minutes_of_the_figure_are_the_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path))
    monkeypatch.setattr(gpu, "load_bench", lambda kind: NONE)
    lines, points = gpu.minutes()
    row = lines[(lines["label"] == "ViT-Tiny, 100 epochs") & (lines["share"] == 0.2)].iloc[0]
    assert row["minutes"] == pytest.approx(gpu.budget().loc["CIFAR-10, ViT-Tiny", "min at 20 %"], abs=0.05)
    assert points.empty
    one = lines.iloc[[0]]
    for given in (points, one):
        figure = figures.minutes_by_share(lines, given, target=gpu.TARGET_MINUTES)
        assert sum(line.get_marker() == "o" and len(line.get_xdata()) for line in figure.axes[0].lines) == len(given)


def test_imagenet_costs_what_its_flops_cost():
    rows = {
        cells[1]: cells
        for line in gpu.imagenet_cost((8, 32)).splitlines()[2:]
        for cells in [[cell.strip() for cell in line.split("|")]]
    }
    image = total(ViTConfig(d_model=768, num_heads=12, global_pool="avg"))
    hours = image * 1_281_167 * 300 / (0.4 * 989e12) / 3600
    base = rows["ViT-Base (86.6 M parameters), 40 % (assumed)"]
    assert base[3:7] == [f"{hours:.1f}", f"{10 * hours:.0f}", f"{10 * hours / 8:.1f}", f"{10 * hours / 32:.1f}"]
    eight = [float(cells[5]) for name, cells in rows.items() if name.startswith("ViT-Base")]
    assert 1.4 < min(eight) / 24 < 1.6 and 2.7 < max(eight) / 24 < 3.1  # days, as the page says
    assert (
        rows["ViT-Tiny (5.7 M parameters), 40 % (assumed)"][2]
        == f"{round(0.4 * 989e12 / total(ViTConfig(global_pool='avg')), -2):,.0f}"
    )
