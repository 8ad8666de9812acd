from mimetic.bench import bench_init

import pytest


def test_bench_compares_the_same_products(capsys):
    result = bench_init(d_model=96, depth=2, num_heads=3)
    assert result["difference"] < 1e-5
    assert result["ratio"] == pytest.approx(result["plain"] / result["ours"])
    printed = capsys.readouterr().out
    assert "times faster than plain" in printed and f"{result['difference']:.1e}" in printed


def test_bench_refuses_too_many_layers():
    with pytest.raises(ValueError, match="between 0 and depth=2"):
        bench_init(d_model=32, depth=2, num_heads=2, plain_layers=3)
