import dataclasses

import pytest

from mimetic.bench import bench_init
from mimetic.bench_train import bench_train
from mimetic.experiments.configs import named



def test_bench_compares_the_same_products(capsys):
    result = bench_init(d_model=96, depth=2, num_heads=3)
    assert result["difference"] < 1e-5
    assert result["ratio"] == pytest.approx(result["plain"] / result["ours"])
    printed = capsys.readouterr().out
    assert "times faster than plain" in printed and f"{result['difference']:.1e}" in printed


def test_bench_refuses_too_many_layers():
    with pytest.raises(ValueError, match="between 0 and depth=2"):
        bench_init(d_model=32, depth=2, num_heads=2, plain_layers=3)


def test_bench_train_times_both_on_the_same_batch(capsys, monkeypatch):
    from mimetic.experiments import configs

    small = dataclasses.replace(named("cifar10-lab30"), experiment="small", d_model=16, depth=1, num_heads=1, patch_size=8, batch_size=32)
    monkeypatch.setitem(configs.EXPERIMENTS, "small", small)
    result = bench_train("small", steps=2, workers=0, device="cpu")
    assert set(result["timm"]) == {"float32, 0 workers", "bfloat16, 0 workers"}
    assert result["ratio"] == pytest.approx(result["ours"] / max(result["timm"].values())) and result["ours"] > 0
    assert "times the fastest of timm's" in capsys.readouterr().out
    with pytest.raises(ValueError, match="steps must be at least 1"):
        bench_train(steps=0)
    with pytest.raises(ValueError, match="experiment must be one of"):
        bench_train("nope")
