"""The measurements of speed: what they compare is the same work, what they keep is what the speed page says."""

import contextlib
import dataclasses
import itertools
import math

import matplotlib

matplotlib.use("agg")
import pandas as pd
import pytest
import torch

from mimetic import commands, figures
from mimetic.bench import bench_init, bench_profile, bench_train, load_bench, store_bench
from mimetic.bench.profile import LARGEST, kind_of, largest
from mimetic.bench.train import Bench, _loader
from mimetic.book import speed
from mimetic.experiments.configs import named
from mimetic.training.records import RecordError


def test_bench_compares_the_same_products(capsys):
    result = bench_init(d_model=96, depth=2, num_heads=3)
    assert result["difference"] < 1e-5
    assert result["ratio"] == pytest.approx(result["plain"] / result["ours"])
    printed = capsys.readouterr().out
    assert "times the speed of plain" in printed and f"{result['difference']:.1e}" in printed


def test_bench_refuses_too_many_layers():
    with pytest.raises(ValueError, match="between 0 and depth=2"):
        bench_init(d_model=32, depth=2, num_heads=2, plain_layers=3)


def test_options_are_read_without_tyro(monkeypatch):
    seen = []
    monkeypatch.setattr(commands.BenchTrain, "__call__", lambda self: seen.append(self))
    assert commands.main(["bench", "train", "--workers", "2", "--store", "--experiment", "digits"]) == 0
    assert commands.main(["bench", "train"]) == 0
    assert seen == [commands.BenchTrain("digits", workers=2, store=True), commands.BenchTrain()]


def test_timms_loader_has_no_end_and_its_waiting_batches_are_not_timed():
    config = dataclasses.replace(named("cifar10-lab30"), batch_size=8)
    images, labels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8), torch.arange(10)
    for workers in (0, 2):
        with contextlib.closing(_loader(config, images, labels, workers)) as batches:
            seen = torch.cat([y for _, y in itertools.islice(batches, 12)])  # nine times all images
        assert len(seen) == 96 and set(seen.tolist()) == set(range(10))
    calls = []
    Bench("digits", 3, "cpu").images_per_second(lambda: calls.append(0), ready=4)
    assert len(calls) == 3 + 4 + 8


def test_bench_train_times_both_on_the_same_batch(capsys, monkeypatch):
    from mimetic.experiments import configs

    small = dataclasses.replace(
        named("cifar10-lab30"), experiment="small", d_model=16, depth=1, num_heads=1, patch_size=8, batch_size=32
    )
    monkeypatch.setitem(configs.EXPERIMENTS, "small", small)
    result = bench_train("small", steps=2, workers=0, device="cpu")
    assert set(result["timm"]) == {"float32, 0 workers", "bfloat16, 0 workers"}
    assert result["ratio"] == pytest.approx(result["ours"] / max(result["timm"].values())) and result["ours"] > 0
    assert "times the fastest of timm's" in capsys.readouterr().out
    with pytest.raises(ValueError, match="steps must be at least 1"):
        bench_train(steps=0)
    with pytest.raises(ValueError, match="experiment must be one of"):
        bench_train("nope")


def test_profile_names_every_phase_and_kind(capsys):
    result = bench_profile("digits", steps=2, device="cpu")
    assert list(result["phases"]) == ["batch and augmentation", "forward", "backward", "clipping and update"]
    assert all(value > 0 for value in result["phases"].values()) and sum(result["kinds"].values()) == pytest.approx(1)
    assert result["kinds"]["matrix products"] > 0.1 and math.isnan(result["busy"]) and result["images_per_second"] > 0
    assert "matrix products" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cifar10-paper, .* which have images; not 'pydoc'"):
        bench_profile("pydoc")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        bench_profile(steps=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn", "matrix products"),
        ("nvjet_tst_128x256_64x4_v_bz_TNT", "matrix products"),
        ("pytorch_flash::flash_bwd_kernel", "attention kernels"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention kernels"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("Memcpy HtoD", "copies and casts"),
        ("triton_per_fused_native_layer_norm_3", "norms, softmax, GELU, sums"),
        ("triton_poi_fused__to_copy_convolution_native_layer_norm_3", "norms, softmax, GELU, sums"),
    ],
)
def test_kinds_of_operators_and_kernels(name, kind):
    assert kind_of(name) == kind


def test_alike_kernels_are_named_once_and_added_up():
    long = (
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>, false>(pytorch_flash::Flash_fwd_params)"
    )
    found = largest(
        {"triton_poi_fused_gelu_view_11": 2.0, "triton_poi_fused_gelu_view_3": 3.0, long: 4.0, "aten::addmm": 1.0}
    )
    assert found == pytest.approx({"triton_poi_fused_gelu_view": 0.5, "flash_fwd_kernel": 0.4, "aten::addmm": 0.1})
    assert list(found)[0].endswith("gelu_view")
    assert len(largest({f"aten::{'op' * n}": 1.0 for n in range(1, 30)})) == LARGEST


def test_records_of_speed(tmp_path):
    assert load_bench("init", tmp_path).empty
    for seconds in (2.0, 1.0):
        path = store_bench("init", {"d_model": 8}, {"ours": seconds, "peak": float("nan")}, "a machine", 2, tmp_path)
    assert path.name == "init-2.json"
    table = load_bench("init", tmp_path)
    assert table["ours"].tolist() == [2.0, 1.0]
    assert table["arguments.d_model"].tolist() == [8, 8]
    assert table["peak"].isna().all()
    with pytest.raises(ValueError, match="kind must be one of init, train, profile"):
        store_bench("speed", {}, {}, "a machine", 2, tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RecordError, match=r"init-2.json is damaged"):
        load_bench("init", tmp_path)


def test_the_speed_page_says_what_was_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "load_bench", lambda kind: load_bench(kind, tmp_path))
    assert "No measurement" in speed.init_table()
    assert "No measurement" in speed.train_table()
    assert speed.head_table().empty
    assert "No profile is stored yet" in speed.profile_sentence() and speed.profiles().empty
    for ours, plain in ((4.0, 24.0), (5.0, 40.0)):
        result = {"ours": ours, "plain": plain, "floor": 2.0, "ratio": plain / ours, "difference": 1e-6}
        store_bench(
            "init", {"d_model": 768, "depth": 12, "num_heads": 12, "plain_layers": 0}, result, "a CPU", 2, tmp_path
        )
    assert (
        "| 12 layers, 12 heads, d 768 (ViT-B/16); a CPU, 2 threads, 2 runs | 4.00 to 5.00 | 24.0 to 40.0 | 6.0 to 8.0 |"
        " 2.0 to 2.5 | 1.0e-06 |" in speed.init_table()
    )
    assert speed.head_table().loc["ms a head", 768] == pytest.approx(4500 / 168, abs=0.1)
    for ours in (300.0, 330.0):
        result = {"ours": ours, "timm": {"slow": 50.0, "fast": 150.0}, "ratio": ours / 150, "peak": float("nan")}
        store_bench("train", {"experiment": "digits"}, result, "a CPU", 1, tmp_path)
    assert speed.train_table().endswith("| digits | a CPU | 2 | 300 to 330 | 150 | fast | 2.00 to 2.20 | – |")
    assert speed.without_sentence() == ""
    result = {
        "precision": "bfloat16",
        "products": "float32",
        "ours": 130.0,
        "timm": {"float32, 0 workers": 90.0, "float32, 2 workers": 99.0, "bfloat16, 0 workers": 17.0},
        "ratio": 1.3,
        "peak": float("nan"),
    }
    store_bench("train", {"experiment": "digits"}, result, "a CPU", 1, tmp_path)
    assert "| digits | a CPU without bfloat16 instructions | 1 | 130 |" in speed.train_table()
    assert "trains 17 images/s, and float32 99" in speed.without_sentence()
    assert "a sum: 130 images/s" in speed.without_sentence()
    kinds = {
        "matrix products": 0.5,
        "attention kernels": 0.1,
        "optimiser": 0.0,
        "copies and casts": 0.1,
        "norms, softmax, GELU, sums": 0.3,
    }
    for device in ("a CPU", "NVIDIA H100"):
        store_bench(
            "profile",
            {"experiment": "digits"},
            {"phases": {"forward": 0.1, "backward": 0.3}, "kinds": kinds},
            device,
            1,
            tmp_path,
        )
    table = speed.profiles()
    assert table.query("name == 'backward'")["share"].tolist() == pytest.approx([0.75, 0.75])
    assert set(table["measure"]) == {"phase", "kind"}
    assert (
        "digits; NVIDIA H100: 60 % in matrix products and attention, then norms, softmax, GELU, sums with 30 %"
        in speed.profile_sentence()
    )
    assert "No GPU has been profiled yet" not in speed.profile_sentence()
    assert len(figures.init_seconds(speed.init_measurements()).axes) == 1
    assert [len(ax.patches) for ax in figures.step_shares(table).axes] == [4, 8]  # the optimiser takes nothing


def test_the_speed_page_holds():
    """Its answer is written by hand: it holds as long as this does."""
    table = speed.init_measurements()
    wide = table[table["arguments.d_model"] == 768]
    assert wide["threads"].max() == 2
    assert (wide[wide["threads"] == 2]["ratio"] > 6).all()
    assert wide["ours"].max() < 10
    assert wide["floors"].between(2.5, 3.7).all()
    single = table[table["threads"] == 1].groupby("arguments.d_model")["ratio"].median()
    assert single.is_monotonic_increasing
    assert single[192] < 1.05
    assert single[768] < wide[wide["threads"] == 2]["ratio"].min()
    assert table["difference"].max() < 2e-6
    training = load_bench("train")
    assert set((training["ratio"] > 1) == (training.get("products") != "float32")) == {True}


def test_a_step_that_was_profiled_after_its_comparison_is_named(monkeypatch):
    compared = pd.DataFrame({"arguments.experiment": ["digits"], "device": ["a GPU"], "finished": ["2026-01-02"]})
    steps = pd.DataFrame(
        {
            "arguments.experiment": ["digits"] * 2,
            "device": ["a GPU"] * 2,
            "finished": ["2026-01-01", "2026-01-03"],
            "images_per_second": [500.0, 700.0],
            "peak": [0.1, 0.2],
        }
    )
    tables = {"train": compared, "profile": steps}
    monkeypatch.setattr(speed, "load_bench", tables.__getitem__)
    assert (
        speed.newer_step()
        == "On the a GPU the step has become faster since: 700 images/s and 20 % of the peak in the newest profile of"
        " digits."
    )
    for other in (steps.iloc[:1], steps.assign(device="another"), steps.iloc[:0]):
        tables["profile"] = other
        assert speed.newer_step() == ""
