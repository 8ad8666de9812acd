"""The audit: its numbers against the weights, its sentences against its numbers, and every family it must take."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mimetic
from mimetic import AttentionLayer, StateNames, UnsupportedAttention, attention_layers, audit
from mimetic.audit import CHANCE, count_parameters, report
from mimetic.audit.parameters import _block
from mimetic.measure import fit
from mimetic.models import BERT4Rec, BERT4RecConfig, ViT, ViTConfig, parameter_counts
from mimetic.models.blocks import Block

HERE = Path(__file__).parent


def family(module):
    """The small models of the adapters' own tests."""
    spec = importlib.util.spec_from_file_location(module, HERE / f"{module}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def recommender(init="mimetic", seed=0, **changes):
    model = BERT4Rec(BERT4RecConfig(**dict(num_items=500, d_model=64, depth=3, num_heads=2) | changes))
    mimetic.initialize_(model, init, default="bert", generator=torch.Generator().manual_seed(seed))
    return model


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [False, True])
def test_explained_is_the_projection_on_the_identity(fold):
    model = recommender(norm_first=True)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    found, layers = audit(model, fold=fold), attention_layers(model)
    for i, layer in enumerate(layers):
        rows = found.products[found.products["layer"] == i]
        assert len(rows) == layer.num_heads + 1  # QK of every head, V.proj of the layer
        for row in rows.itertuples():
            P = (layer.qk(row.head, fold) if row.product == "qk" else layer.vp(fold=fold)).double()
            eye = torch.eye(64, dtype=P.dtype)
            direct = ((P * eye).sum() / eye.norm() / P.norm()) ** 2
            assert row.explained == pytest.approx(direct.item(), rel=1e-6)


def test_a_bare_multiple_of_the_identity_is_all_explained():
    model = nn.Sequential(Block(32, 2), Block(32, 2))
    mimetic.mimetic_init_(model, mimetic.MimeticSpec(qk_alpha=0, vp_alpha=0))
    found = mimetic.audit(model)
    vp = found.layers[found.layers["product"] == "vp"]
    assert vp["explained"].tolist() == [1, 1] and "below in 2 of 2 layers" in str(found)
    model[0].attn.proj.weight.data.zero_()
    with pytest.raises(UnsupportedAttention, match="0.attn: a product of its weights is 0"):
        mimetic.audit(model)


def test_of_a_random_matrix_next_to_nothing_is_explained():
    found = audit(recommender("bert"))
    assert found.products["explained"].mean() < 10 / 64**2


def test_what_the_initializer_wrote_is_found_again():
    """Vision's constants, their sizes before truncation, and after it what an imitation has."""
    found = audit(recommender())
    rows = found.layers.groupby("product")[["alpha", "beta", "explained", "target", "imitated", "limit"]].mean()
    assert rows.loc["qk", ["alpha", "beta"]].tolist() == pytest.approx([0.7, 0.7], abs=0.07)
    assert rows.loc["vp", ["alpha", "beta"]].tolist() == pytest.approx([0.4, -0.4], abs=0.03)
    assert rows["target"].tolist() == pytest.approx([0.5, 0.5], abs=0.06)
    assert rows["explained"].tolist() == pytest.approx(rows["imitated"].tolist(), abs=0.03)
    assert rows.loc["qk", "imitated"] < rows.loc["qk", "limit"] == 0.5 and rows.loc["vp", "limit"] == 1
    assert found.layers["reachable"].all()


def test_constants_are_those_of_fit():
    model = recommender("mimetic", depth=2)
    spec, found = fit(model), audit(model).layers
    assert found[found["product"] == "qk"]["alpha"].tolist() == pytest.approx(list(spec.qk_alpha))
    assert found[found["product"] == "vp"]["beta"].tolist() == pytest.approx(list(spec.vp_beta))


def test_a_diagonal_beyond_reach_is_marked():
    model = recommender(depth=2)
    with torch.no_grad():
        q = attention_layers(model)[1]
        q.q.copy_(torch.eye(64)[:, :32, None].movedim(1, 2).expand(64, 2, 32) + 1e-6 * torch.randn(64, 2, 32))
        q.k.copy_(q.q)
    found = audit(model)
    assert not found.layers.query("layer == 1 and product == 'qk'")["reachable"].item()
    assert found.layers.query("layer == 0 or product == 'vp'")["reachable"].all()
    assert "In 1 of 4 products" in found.answers[1] and "not reachable" in str(found)


# --- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_of_our_models_are_those_that_we_count():
    model = recommender()
    counts, ours = count_parameters(model), parameter_counts(model)
    assert counts.attention == ours["attention_qkv"] + ours["attention_proj"] and counts.mlp == ours["mlp"]
    assert counts.total == ours["total"] == sum(p.numel() for p in model.parameters())
    assert counts.embedding == ours["embedding"] + 500  # the bias an item
    assert (counts.items, counts.per_item) == (502, pytest.approx(64 + 500 / 500))
    vit = ViT(ViTConfig(img_size=16, patch_size=4, d_model=32, depth=2, num_heads=2))
    counts, ours = count_parameters(vit), parameter_counts(vit)
    assert (counts.attention, counts.mlp) == (ours["attention_qkv"] + ours["attention_proj"], ours["mlp"])
    assert counts.items is None and audit(vit).shares() == {}
    with pytest.raises(ValueError, match="no item table"):
        counts.share(1000)


def test_an_mlp_in_another_numbered_part_of_the_block_counts():
    transformers = pytest.importorskip("transformers")
    model = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    dense = sum(p.numel() for name, p in model.named_parameters() if "DenseReluDense" in name)
    assert count_parameters(model).mlp == dense == 2 * 2 * 32 * 64
    attention = "encoder.block.0.layer.0.SelfAttention"
    others = {f"{attention}.relative_attention_bias.weight", "encoder.block.0.layer.1.DenseReluDense.wi.weight"}
    assert _block(attention, others) == "encoder.block.0"  # what lies in the layer itself says nothing


def test_without_a_block_the_mlp_is_with_the_rest():
    class Parallel(nn.Module):  # as SASRec is often written
        def __init__(self):
            super().__init__()
            self.attentions = nn.ModuleList(nn.MultiheadAttention(16, 2) for _ in range(2))
            self.forwards = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    found = audit(Parallel())
    assert found.parameters.mlp == 0 and f"MLP and rest {found.parameters.rest:,}" in str(found)


def test_share_by_catalogue_is_that_of_a_model_built_with_it():
    found = audit(recommender())
    for items in (100, 3_000, 20_000):
        built = BERT4Rec(BERT4RecConfig(num_items=items, d_model=64, depth=3, num_heads=2))
        assert found.parameters.share(items + 2) == pytest.approx(count_parameters(built).share(), rel=1e-6)
    shares = found.shares()
    assert list(shares) == [10**k for k in range(2, 8)] and all(np.diff(list(shares.values())) < 0)
    assert shares[10**7] < 1e-3 < shares[10**2]
    assert found.shares([3_002])[3_002] == found.parameters.share(3_002)
    assert f"10,000,000 items {100 * shares[10**7]:.2g}%" in found.answers[2]  # a percentage, as the others are


def test_an_untied_output_counts_twice_an_item():
    transformers = pytest.importorskip("transformers")
    shared = dict(vocab_size=100, n_embd=32, n_head=2, n_layer=2, n_positions=20, bos_token_id=1, eos_token_id=2)
    tied = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shared))
    untied = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shared, tie_word_embeddings=False))
    assert (count_parameters(tied).items, count_parameters(tied).per_item) == (100, 32)
    assert (count_parameters(untied).items, count_parameters(untied).per_item) == (100, 64)
    counts = count_parameters(tied)
    assert counts.attention == 2 * (4 * 32 * 32 + 4 * 32) and counts.mlp == 2 * (8 * 32 * 32 + 5 * 32)
    assert counts.embedding == 120 * 32 and counts.rest == 10 * 32  # five LayerNorms


# --- the sentences ---------------------------------------------------------------------------------------------------


def test_signs_and_what_follows():
    vision, opposite, none = audit(recommender()), None, audit(recommender("bert"))
    model = recommender("bert")
    mimetic.mimetic_init_(
        model, mimetic.MimeticSpec(qk_beta=-0.7, vp_beta=0.4), generator=torch.Generator().manual_seed(0)
    )
    opposite = audit(model)
    assert vision.signs() == {"qk": "+", "vp": "−"} and opposite.signs() == {"qk": "−", "vp": "+"}
    assert none.signs() == {"qk": "none", "vp": "none"}
    assert vision.answers[0].startswith("Yes: ") and "the signs of vision models" in vision.answers[0]
    assert "wrong way" in opposite.answers[3] and "wrong way" not in vision.answers[3]
    assert none.answers[0].startswith("No: ") and "no sign to imitate" in none.answers[3]
    assert vision.answers[1].startswith("Yes: ") and none.answers[1].startswith("Hardly: ")
    assert "beta above 0 for QK and beta below 0 for V.proj" in vision.answers[3]


def test_one_product_alone():
    found = audit(recommender("mimetic-vp"))
    assert found.signs() == {"qk": "none", "vp": "−"}
    assert "W_Q W_K^T has no clear sign" in found.answers[0] and "QK" not in found.answers[3].split(":")[0]


def test_the_share_decides_the_third_answer():
    small, large = audit(recommender(num_items=100)), audit(recommender(num_items=50_000))
    assert small.answers[2].startswith("Yes: ") and large.answers[2].startswith("No: ")
    assert f"{large.parameters.attention:,} of {large.parameters.total:,}" in large.answers[2]
    assert "does nothing" in large.answers[3] and "does nothing" not in small.answers[3]


def test_counts_in_the_answer_are_those_of_the_table():
    found = audit(recommender("mimetic-qk"))
    qk = found.products[found.products["product"] == "qk"]
    assert f"above chance in {int((qk['sigmas'] > CHANCE).sum())} and below in 0 of {len(qk)} heads" in found.answers[0]


def test_the_report_has_every_layer_and_all_three_questions():
    text = str(audit(recommender()))
    assert text.count("W_V W_proj  ") == 3 and all(f"\n{i}. " in text for i in (1, 2, 3))
    assert "10,000,000: " in text and "parameters   attention" in text


# --- what it takes ---------------------------------------------------------------------------------------------------

TIMM, TRANSFORMERS, TORCH = (family(f"test_adapters_{name}") for name in ("timm", "transformers", "torch"))


def check_family(model):
    layers = [
        x
        for x in attention_layers(model)
        if x.kind == "self" and {x.k.shape[0], x.v.shape[0], x.proj.shape[2]} == {x.d_model}
    ]
    if not layers:
        with pytest.raises(UnsupportedAttention, match="no diagonal"):
            audit(model)
        return
    found = audit(model)
    assert found.layers["layer"].nunique() == len(layers)
    assert len(found.products) == sum(layer.num_heads + 1 for layer in layers)
    numbers = found.layers[["alpha", "beta", "explained", "target", "imitated", "limit"]].to_numpy(float)
    assert np.isfinite(numbers).all() and all(found.answers) and str(found)
    assert found.fold == all(layer.gains_known for layer in layers)
    assert found.parameters.total == sum(p.numel() for p in model.parameters())
    assert 0 < found.parameters.attention < found.parameters.total


@pytest.mark.parametrize("name", TIMM.MODELS)
def test_timm(name):
    check_family(TIMM.build(name))


@pytest.mark.parametrize("name", TRANSFORMERS.FAMILIES)
def test_transformers(name):
    check_family(TRANSFORMERS.build(name)[0])


def test_torch_and_torchvision():
    from torchvision.models import VisionTransformer

    check_family(torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2))
    check_family(VisionTransformer(8, 4, 2, 4, 32, 48, num_classes=5))


def test_a_list_of_layers():
    found = audit(attention_layers(recommender()))
    assert found.parameters is None and found.answers[2].startswith("Not known") and found.shares() == {}


def test_cross_attention_is_left_out_and_said():
    layer = attention_layers(recommender())[0]
    other = AttentionLayer("cross", layer.q, layer.k, layer.v, layer.proj, kind="cross")
    found = audit([layer, other])
    assert found.layers["layer"].nunique() == 1 and "1 of 2 attention layers are not audited" in found.notes[0]
    with pytest.raises(UnsupportedAttention, match="no diagonal"):
        audit([other])


@pytest.mark.parametrize(
    "name", ["minilm-l6", "whisper-tiny-encoder", "dinov2-vit-s", "svtrv2-base", "whisper-tiny-decoder", "smollm2-135m"]
)
def test_pretrained_by_name_from_the_recorded_measurement(name):
    """Offline, with an empty cache."""
    found = audit(name)
    assert found.layers["layer"].nunique() == mimetic.pretrained.SOURCES[name].num_layers
    assert found.parameters is None and "only the attention weights" in found.notes[-1]


def test_whisper_has_visions_signs_and_minilm_none():
    assert audit("whisper-tiny-encoder").signs() == {"qk": "+", "vp": "−"}
    assert audit("minilm-l6").signs() == {"qk": "none", "vp": "none"}


# --- state dicts -----------------------------------------------------------------------------------------------------

NAMES = StateNames(qkv="blocks.{}.attn.qkv.weight", proj="blocks.{}.attn.proj.weight", num_heads=2)


def test_state_dict_and_file_like_the_module(tmp_path):
    model = recommender()
    whole, found = audit(model, fold=False), audit(model.state_dict(), names=NAMES)
    assert np.allclose(
        found.layers.drop(columns="product").to_numpy(float), whole.layers.drop(columns="product").to_numpy(float)
    )
    assert found.parameters == whole.parameters and found.answers == whole.answers
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "sasrec.pt")
    assert audit(tmp_path / "sasrec.pt", names=NAMES).answers == whole.answers
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "sasrec.safetensors")
    assert audit(str(tmp_path / "sasrec.safetensors"), names=NAMES).answers == whole.answers


def test_separate_transposed_and_gains():
    model = recommender(norm_first=True)
    with torch.no_grad():
        for block in model.blocks:
            block.norm1.weight.uniform_(0.5, 1.5)
    state = {"items": model.item_embed.weight}
    for i, block in enumerate(model.blocks):
        for name, w in zip("qkv", block.attn.qkv.weight.chunk(3)):
            state[f"l{3 * i}.{name}"] = w.detach().mT
        state |= {f"l{3 * i}.o": block.attn.proj.weight.detach().mT, f"l{3 * i}.gain": block.norm1.weight.detach()}
    names = StateNames(
        q="l{}.q", k="l{}.k", v="l{}.v", proj="l{}.o", num_heads=2, transposed=True, in_gain="l{}.gain", table="items"
    )
    found, whole = audit(state, names=names), audit(model)
    assert np.allclose(found.products["explained"], whole.products["explained"], atol=1e-6)
    assert (found.parameters.items, found.parameters.per_item) == (502, 64)


def test_grouped_queries_are_audited_with_the_rank_that_they_have():
    found = audit("smollm2-135m")  # 9 heads of 64, 3 of them with keys and values
    limits = found.layers.groupby("product")["limit"].first()
    assert limits["vp"] == pytest.approx(3 * 64 / 576)
    assert limits["qk"] == pytest.approx(64 / 576)
    assert any("RoPE" in note for note in found.notes)


def test_which_product_is_out_of_reach_is_told_apart_with_one_key_head():
    q, proj = torch.randn(64, 4, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 16, 64)
    v = torch.randn(64, 1, 16, generator=torch.Generator().manual_seed(1)) / 8
    proj.copy_(torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(2)))
    basis = torch.eye(64)[:, :16]
    layer = AttentionLayer(
        "mqa", basis[:, None].expand(64, 4, 16).contiguous() + 1e-4 * q, basis[:, None].contiguous(), v, proj
    )
    assert audit([layer]).layers.set_index("product")["reachable"].to_dict() == {"qk": False, "vp": True}


def test_without_a_gain_a_state_dict_is_audited_raw_and_says_so():
    model = recommender(norm_first=True)
    with torch.no_grad():
        for block in model.blocks:
            block.norm1.weight.copy_(torch.linspace(0.1, 3, 64))
    found = audit(model.state_dict(), names=NAMES)
    assert not found.fold and "raw weights" in found.notes[0]
    whole = audit(model.state_dict(), names=dataclasses.replace(NAMES, in_gain="blocks.{}.norm1.weight"))
    assert whole.fold and np.allclose(whole.products["explained"], audit(model).products["explained"], atol=1e-6)
    assert not np.allclose(whole.products["explained"], found.products["explained"], atol=1e-3)


def test_masks_and_patches_are_no_parameters_of_a_catalogue():
    model = recommender()
    state = model.state_dict()
    masked = state | {f"blocks.{i}.attn.mask": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    assert audit(masked, names=NAMES).parameters == audit(state, names=NAMES).parameters
    vit = {k: v for k, v in state.items() if k.startswith("blocks.")} | {
        "patch_embed.proj.weight": torch.zeros(64, 48),
        "patch_embed.proj.bias": torch.zeros(64),
    }
    assert audit(vit, names=NAMES).parameters.items is None


def test_what_a_state_dict_lacks_is_named():
    state = dict(recommender().state_dict())
    missing = {k: v for k, v in state.items() if k != "blocks.1.attn.qkv.weight"}
    with pytest.raises(UnsupportedAttention, match=r"no blocks\.1\.attn\.qkv\.weight"):
        audit(missing, names=NAMES)
    with pytest.raises(
        UnsupportedAttention, match=r"no tensor is called like 'layers\.\{\}\.attn.*blocks\.0\.attn\.proj\.weight"
    ):
        audit(state, names=StateNames(qkv="blocks.{}.attn.qkv.weight", proj="layers.{}.attn.proj.weight", num_heads=2))
    with pytest.raises(UnsupportedAttention, match=r"blocks\.0\.attn\.qkv\.weight.*does not fit 7 heads"):
        audit(state, names=StateNames(qkv=NAMES.qkv, proj=NAMES.proj, num_heads=7))
    with pytest.raises(UnsupportedAttention, match=r"blocks\.2\.attn\.proj\.weight: shape .*expected \(64, 64\)"):
        audit(state | {"blocks.2.attn.proj.weight": torch.zeros(64, 60)}, names=NAMES)
    with pytest.raises(UnsupportedAttention, match="no matrix of floating-point"):
        audit(state | {"blocks.2.attn.proj.weight": torch.zeros(64, 64, dtype=torch.int8)}, names=NAMES)
    with pytest.raises(UnsupportedAttention, match=r"blocks\.2\.attn\.proj\.weight is a meta tensor"):
        audit(state | {"blocks.2.attn.proj.weight": torch.zeros(64, 64, device="meta")}, names=NAMES)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="either qkv, or q and k and v"):
        StateNames(q="{}", proj="{}", num_heads=2)
    with pytest.raises(ValueError, match="one {} for the number"):
        StateNames(qkv="qkv", proj="{}", num_heads=2)
    with pytest.raises(ValueError, match="needs names=StateNames"):
        audit({})
    with pytest.raises(ValueError, match="minilm-l6.*ml100k"):
        audit("bert4rec")
    with pytest.raises(ValueError, match="belong to a state dict"):
        audit(recommender(), names=NAMES)
    with pytest.raises(ValueError, match="expected a module"):
        audit(3)
    (tmp_path / "broken.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="broken.pt cannot be read"):
        audit(tmp_path / "broken.pt", names=NAMES)


# --- our own runs ----------------------------------------------------------------------------------------------------


def test_our_runs_by_record_and_by_checkpoint(data_folder, tmp_path, monkeypatch):
    from mimetic.experiments.configs import named
    from mimetic.experiments.runs import run
    from mimetic.training.loop import TimeLimit

    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    config = named("clusters", device="cpu")
    with pytest.raises(ValueError, match="clusters/bert-seed0 has not been run"):
        audit("clusters")
    monkeypatch.setitem(mimetic.experiments.configs.EXPERIMENTS, "clusters", small := _few(config))
    with pytest.raises(TimeLimit):
        run(small, progress=False, time_limit=0.0)
    half = audit("clusters/bert-seed0")
    assert "checkpoint after 1 steps" in half.notes[-1]
    run(small, progress=False)
    done = audit("clusters")
    assert done.name == "clusters/bert-seed0" and not any("checkpoint" in note for note in done.notes)
    assert (done.parameters.total, done.parameters.attention) == (half.parameters.total, half.parameters.attention)
    assert done.shares()[10**6] == pytest.approx(half.shares()[10**6], rel=1e-3)
    assert done.layers["explained"].between(0, 1).all()


def test_a_finished_run_of_an_experiment_of_ones_own(data_folder, tmp_path, monkeypatch):
    from dataclasses import replace

    from mimetic.experiments.configs import named
    from mimetic.experiments.runs import run

    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    with pytest.raises(
        ValueError, match=r"'mine/turned-seed1' is no file, .* no finished run of another experiment in"
    ):
        audit("mine/turned-seed1")
    small = replace(_few(named("clusters", device="cpu")), experiment="mine", arm="turned", seed=1)
    run(replace(small, init="mimetic", vp_beta=(0.4,) * small.depth), progress=False)
    done = audit("mine/turned-seed1")
    assert done.name == "mine/turned-seed1" and done.parameters.items is not None
    for damaged in ("mine/", "mine/turned", "/turned-seed1", "Mine/turned-seed1", "../mine/turned-seed1"):
        with pytest.raises(ValueError, match="is no file|did you mean mine/turned-seed1"):
            audit(damaged)
    with pytest.raises(ValueError, match=r"'whisper-tiny-encodr' is not known: did you mean whisper-tiny-encoder"):
        audit("whisper-tiny-encodr")


def test_wrong_kinds_of_names():
    with pytest.raises(ValueError, match="names must be a StateNames, not a dict"):
        audit({}, names={"proj": "{}"})
    with pytest.raises(ValueError, match="proj must be the name of a tensor, not 3"):
        StateNames(proj=3, qkv="{}", num_heads=2)
    with pytest.raises(ValueError, match="in_gain must be the name of a tensor, not True"):
        StateNames(proj="{}", qkv="{}", in_gain=True, num_heads=2)
    state = recommender().state_dict()
    with pytest.raises(UnsupportedAttention, match=r"norm\.weight is no table, \(items, width\): \(64,\)"):
        audit(state | {"norm.weight": torch.ones(64)}, names=dataclasses.replace(NAMES, table="norm.weight"))


def test_a_damaged_checkpoint_is_named(data_folder):
    from mimetic.experiments.configs import named
    from mimetic.experiments.runs import checkpoint_path
    from mimetic.training.checkpoint import CheckpointError

    path = checkpoint_path(named("digits", seed=7))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
        audit("digits/timm-seed7")


def test_a_half_done_run_of_text(data_folder, tmp_path, monkeypatch):
    from dataclasses import replace

    from mimetic.experiments.configs import named
    from mimetic.experiments.runs import run
    from mimetic.training.loop import TimeLimit

    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    small = replace(
        named("pydoc", device="cpu"),
        d_model=16,
        depth=1,
        num_heads=2,
        context=16,
        epochs=2,
        steps_per_epoch=3,
        batch_size=2,
    )
    monkeypatch.setitem(mimetic.experiments.configs.EXPERIMENTS, "pydoc", small)
    with pytest.raises(TimeLimit):
        run(small, progress=False, time_limit=0.0)
    half = audit("pydoc")
    assert "checkpoint after 1 steps" in half.notes[-1]
    run(small, progress=False)
    assert audit("pydoc").parameters == half.parameters and half.parameters.items > 90  # the vocabulary, either way


def _few(config):
    import dataclasses

    return dataclasses.replace(config, epochs=2, passes=1, d_model=16, batch_size=200, max_len=8, precision="float32")


def test_command_line(capsys):
    from mimetic.cli import main

    assert main(["audit", "whisper-tiny-encoder"]) == 0
    assert "the signs of vision models" in capsys.readouterr().out
    assert main(["audit", "nothing"]) == 2
    assert "is no file, no pretrained model" in capsys.readouterr().err
    assert main(["audit", "x.pt", "--num-heads", "2"]) == 2
    assert "needs both --num-heads and --proj" in capsys.readouterr().err


def test_tokens_of_width_one_have_no_diagonal_to_compare():
    with pytest.raises(UnsupportedAttention, match="MultiheadAttention: tokens of width 1"):
        audit(torch.nn.MultiheadAttention(1, 1))


def test_a_sign_is_what_more_than_three_quarters_have():
    for sigmas, counts, sign in (
        ([3.0] * 4, (4, 0), "+"),
        ([3.0] * 3 + [1.0], (3, 0), "none"),  # exactly three quarters
        ([-3.0] * 4 + [3.0], (1, 4), "−"),
        ([2.0, -2.0], (0, 0), "none"),
        ([], (0, 0), "none"),
    ):
        values = pd.Series(sigmas, dtype=float)
        assert report.beyond_chance(values) == counts and report.sign(values) == sign
    assert report.sign_words("+", "none") == "QK +, V·proj no common sign"
    assert report.sign_words("none", "−", "mixed") == "QK mixed, V·proj −"
