"""The coverage table: a handful of architectures through the whole path, and the committed table and page."""

import json
import sys
import time

import pytest
from torch import nn

from mimetic import adapters, coverage
from mimetic.coverage import architecture, build, transformers_models

TABLES = [coverage.table_path(library) for library in coverage.LIBRARIES]


@pytest.mark.parametrize(
    ("library", "name", "verdict", "finding"),
    [
        ("timm", "vision_transformer: vit", "supported", ""),
        ("timm", "resnet: resnet#t", "none", ""),
        ("timm", "xcit: xcit_#_p#_#", "refused", "mixes channels"),
        ("transformers", "gpt2", "supported", ""),
        ("transformers", "llama", "with caveat", "RoPE"),
        ("transformers", "whisper", "supported", ""),
        ("transformers", "deepseek_v3", "refused", "DeepseekV3Attention"),
        ("transformers", "resnet", "none", ""),
        # one layer in eight attends: none of the small model's
        ("transformers", "jamba", "refused", "JambaAttention is not a known"),
    ],
)
def test_one_architecture(library, name, verdict, finding):
    pytest.importorskip(library)
    row = coverage.examine(library, name)
    assert (row["name"], row["verdict"]) == (name, verdict), row
    assert finding in row["finding"]
    assert (row["error"] is not None and row["error"] < 1e-4 and row["layers"] > 0) == (
        verdict in ("supported", "with caveat")
    )


def test_a_small_model_without_the_layers_that_attend_is_no_evidence(monkeypatch):
    pytest.importorskip("transformers")
    whole = transformers_models.plan_transformers("gpt2").outline
    monkeypatch.setattr(architecture, "whole_outline", lambda library, name: whole)
    row = coverage.examine("transformers", "resnet")
    assert row["verdict"] == "not built" and "lacks the layers that attend" in row["finding"]


def test_a_layer_that_only_the_whole_model_has_counts():
    """sam3_lite_text's text encoder begins and ends with blocks that do not attend: made small it has no others."""
    pytest.importorskip("transformers")
    row = coverage.examine("transformers", "sam3_lite_text")
    assert row["verdict"] == "in part" and "Sam3LiteTextTextAttention is not a known" in row["finding"]


def test_a_base_class_without_a_model_in_it_is_passed_over():
    pytest.importorskip("transformers")
    outline = transformers_models.whole_outline("transformers", "qwen2_5_omni")
    assert outline is None or sum(p.numel() for p in outline.parameters()) > 0


def test_a_wrong_reader_is_found_out(monkeypatch):
    """A reader that swaps queries and keys makes the verdict "wrong" and the exit code 1."""
    pytest.importorskip("transformers")
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    from mimetic.adapters.transformers import parts

    def swapped(module, name, ancestors):
        layer = parts(module, name, ancestors)
        q = layer.q
        object.__setattr__(layer, "q", layer.k)
        object.__setattr__(layer, "k", q)
        return layer

    monkeypatch.setitem(adapters._CUSTOM, GPT2Attention, swapped)
    row = coverage.examine("transformers", "gpt2")
    assert row["verdict"] == "wrong" and "W_Q W_K^T" in row["finding"]


def test_a_layer_called_alone_is_called_with_its_rotation(monkeypatch):
    """CLVP's small encoder cannot be run, so its layer is called alone: without the
    refusal the rotated values must be seen.
    """
    pytest.importorskip("transformers")
    assert "rotates the values" in coverage.examine("transformers", "clvp_encoder")["finding"]
    monkeypatch.setattr("mimetic.adapters.transformers.refuse_unlike", lambda *args: None)
    row = coverage.examine("transformers", "clvp_encoder")
    assert row["verdict"] == "wrong" and "W_V W_proj" in row["finding"]


def test_a_model_that_is_not_built_says_why(monkeypatch):
    def fail(name):
        raise build.NotBuilt("no small config: because")

    monkeypatch.setattr(architecture, "plan_timm", fail)
    row = coverage.examine("timm", "vision_transformer: vit")
    assert (row["verdict"], row["finding"]) == ("not built", "no small config: because")


@pytest.mark.slow
def test_survey_outlives_a_crash_and_a_hang():
    """Worker processes: one that dies and one that hangs are rows of the table."""
    rows = coverage.survey("timm", ["vision_transformer: vit", "no such family"], processes=1)["architectures"]
    assert {r["name"]: r["verdict"] for r in rows} == {
        "no such family": "not built",
        "vision_transformer: vit": "supported",
    }
    worker = coverage._Process("timm")
    worker.give("vision_transformer: vit")
    worker.process.kill()
    worker.process.join()
    assert worker.take()["finding"] == "the process died"
    worker.give("vision_transformer: vit")
    worker.since -= coverage.SECONDS + 60
    assert worker.take()["finding"].startswith("hung")
    worker.process.kill()  # while it has nothing to do
    worker.process.join()
    worker.give("vision_transformer: vit")
    worker.stop()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how large a process is")
@pytest.mark.parametrize(("growth", "replaced"), [(-1, True), (2**40, False)])
def test_a_worker_that_has_grown_is_replaced(growth, replaced):
    """So that a large model finds the same memory, whatever came before it."""
    worker = coverage._Process("timm", growth)
    first = worker.process.pid
    for _ in range(2):
        worker.give("no such family")
        while (row := worker.take()) is None:
            time.sleep(0.02)
        assert row["verdict"] == "not built" and "no such family" in row["name"]
    assert (worker.process.pid != first) is replaced
    worker.stop()


def test_make_generic_leaves_nothing_at_one_or_zero():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    build.make_generic(model)
    assert model[1].weight.abs().min() > 0 and len(model[0].weight.unique()) == 4


def test_unknown_library_is_named():
    with pytest.raises(ValueError, match="library must be one of timm, transformers, not 'keras'"):
        coverage.main("keras")


def test_exit_code_and_files(monkeypatch, tmp_path, capsys):
    """A wrong product: the table and the page are written, it is named, and the exit code is 1."""
    row = {"name": "a", "model": "a", "verdict": "wrong", "finding": "W_Q", "layers": 1, "error": None}
    counts = dict.fromkeys(coverage.VERDICTS, 0) | {"wrong": 1}
    table = {"library": "timm", "versions": {"timm": "1"}, "counts": counts, "architectures": [row]}
    monkeypatch.setattr(coverage, "survey", lambda *args: table)
    monkeypatch.setattr(coverage, "data_dir", lambda: tmp_path / "data")
    with pytest.raises(SystemExit) as stop:
        coverage.main("timm")
    assert stop.value.code == 1 and "WRONG a: W_Q" in capsys.readouterr().err
    assert json.loads(coverage.table_path("timm").read_text()) == table
    assert coverage.page_path().read_text() == coverage.page([table])


def test_representatives_keep_every_kind():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16), 5)
    layers = architecture.scan(model).layers
    assert [layer.name for layer in architecture.representatives(model, layers)] == [
        "layers.0.self_attn",
        "layers.4.self_attn",
    ]


# --- the committed table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_committed_table_is_sound(path):
    table = json.loads(path.read_text())
    rows = table["architectures"]
    assert table["counts"]["wrong"] == 0
    assert [r["name"] for r in rows] == sorted({r["name"] for r in rows})
    assert table["counts"] == {v: sum(r["verdict"] == v for r in rows) for v in coverage.VERDICTS}
    assert len(rows) > 300 and table["counts"]["supported"] + table["counts"]["with caveat"] > 80
    for row in rows:
        assert row["finding"] or row["verdict"] in ("supported", "none"), row
        if row["verdict"] in ("supported", "with caveat"):
            assert row["error"] < 1e-3 and row["layers"] > 0, row


def test_committed_page_is_the_tables():
    tables = [json.loads(path.read_text()) for path in TABLES]
    assert coverage.page_path().read_text() == coverage.page(tables), (
        "run `python -m mimetic coverage` again, it writes the page"
    )


def test_page_survives_odd_findings():
    table = {
        "library": "timm",
        "versions": {"timm": "1"},
        "counts": dict.fromkeys(coverage.VERDICTS, 0) | {"refused": 1},
        "architectures": [
            {
                "name": "a_b",
                "model": "a",
                "verdict": "refused",
                "finding": "x | y_z* `q`\n$3 {role}",
                "layers": 0,
                "error": None,
            }
        ],
    }
    row = next(line for line in coverage.page([table]).splitlines() if line.startswith("| `a_b`"))
    assert row.count("|") == 3 and "\n" not in row
