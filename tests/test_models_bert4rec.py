"""BERT4Rec against transformers' BERT with the same weights; causality, padding, what is tied."""

import pytest
import torch

from mimetic import attention_layers, initialize_
from mimetic.models import BERT4Rec, BERT4RecConfig, parameter_counts
from mimetic.models.positions import sincos

SMALL = dict(num_items=30, max_len=10, d_model=16, depth=2, num_heads=2, dropout=0.0)


def build(**changes):
    torch.manual_seed(0)
    model = BERT4Rec(BERT4RecConfig(**SMALL | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return model


@pytest.fixture
def items():
    x = torch.randint(1, 31, (4, 10), generator=torch.Generator().manual_seed(1))
    x[1, :3] = 0
    x[2, :8] = 0
    x[:, -1] = 31  # the mask
    return x


def test_same_numbers_as_transformers_bert(items):
    """The published architecture: post-LN BERT with its masked-item head. BERT's segment embedding is set to 0."""
    transformers = pytest.importorskip("transformers")
    ours = build()
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_act="gelu",
        max_position_embeddings=10,
        type_vocab_size=1,
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    bert = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        e, head = bert.bert.embeddings, bert.cls.predictions
        e.word_embeddings.weight.copy_(ours.item_embed.weight)
        e.position_embeddings.weight.copy_(ours.pos_embed[0])
        e.token_type_embeddings.weight.zero_()
        pairs = [
            (e.LayerNorm, ours.embed_norm),
            (head.transform.dense, ours.head.dense),
            (head.transform.LayerNorm, ours.head.norm),
        ]
        for theirs, block in zip(bert.bert.encoder.layer, ours.blocks):
            for name, w, b in zip(
                ("query", "key", "value"), block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
            ):
                getattr(theirs.attention.self, name).weight.copy_(w)
                getattr(theirs.attention.self, name).bias.copy_(b)
            pairs += [
                (theirs.attention.output.dense, block.attn.proj),
                (theirs.attention.output.LayerNorm, block.norm1),
            ]
            pairs += [
                (theirs.intermediate.dense, block.mlp.fc1),
                (theirs.output.dense, block.mlp.fc2),
                (theirs.output.LayerNorm, block.norm2),
            ]
        for theirs, mine in pairs:
            theirs.load_state_dict(mine.state_dict())
        bert.tie_weights()
        head.bias[1:31] = ours.head.bias
        expected = bert(input_ids=items, attention_mask=(items > 0).long()).logits[:, :, 1:31]
        found = ours(items)
    seen = items > 0  # what comes out at padding is never read
    torch.testing.assert_close(found[seen], expected[seen], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours(items, items == 31), found[:, -1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing_and_the_future_only_what_it_may(items, norm_first, causal):
    model = build(norm_first=norm_first, causal=causal)
    with torch.no_grad():
        whole = model(items)
        torch.testing.assert_close(model(items[1:2, 3:]), whole[1:2, 3:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(items[2:3, 8:]), whole[2:3, 8:], atol=1e-5, rtol=1e-4)
        other = items.clone()
        other[:, -1] = 5
        same = torch.isclose(model(other)[:, :-1], whole[:, :-1], atol=1e-6).all(-1)
    assert same.all() if causal else not same[0].any()


def test_post_ln_has_no_last_norm_and_pre_ln_has():
    assert not any(n.startswith("norm.") for n, _ in build().named_parameters())
    assert any(n.startswith("norm.") for n, _ in build(norm_first=True).named_parameters())
    assert [layer.in_gain is None for layer in attention_layers(build())] == [True, True]
    assert [layer.in_gain is None for layer in attention_layers(build(norm_first=True))] == [False, False]


def test_output_is_tied_and_counted_once():
    counts = parameter_counts(build())
    assert counts["embedding"] == 32 * 16 + 10 * 16
    assert counts["head"] == 16 * 16 + 16 + 30 and counts["other"] == 0
    assert counts["attention_qkv"] + counts["attention_proj"] == 2 * (4 * 16 * 16 + 4 * 16)


def test_published_initialization():
    model = BERT4Rec(BERT4RecConfig(num_items=500))
    initialize_(model, "bert", default="bert", generator=torch.Generator().manual_seed(0))
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            # a normal cut at two standard deviations has .88 of its sd
            assert p.abs().max() <= 0.04 and p.detach().std().item() == pytest.approx(0.0176, rel=0.06), name
        elif name.endswith("bias"):
            assert not p.any(), name
        else:
            assert (p == 1).all(), name
    initialize_(model, "mimetic", default="bert", generator=torch.Generator().manual_seed(0))
    assert model.item_embed.weight.detach().std().item() == pytest.approx(0.0176, rel=0.06)
    assert all(layer.vp().diagonal().mean() < -0.2 for layer in attention_layers(model))


def test_fixed_positions_stand_beside_items_times_the_root_of_the_width(items):
    fixed, learned = build(pos_embed="sincos"), build()
    assert "pos_embed" not in dict(fixed.named_parameters()) and torch.equal(fixed.pos_embed, sincos(10, 16)[None])
    assert parameter_counts(fixed)["embedding"] == 32 * 16
    # the blocks see what those of a model with learned positions see whose table has these values and whose items are
    # so large
    learned.load_state_dict(fixed.state_dict())
    with torch.no_grad():
        learned.item_embed.weight *= 4
    torch.testing.assert_close(fixed.features(items), learned.features(items), atol=1e-5, rtol=1e-4)
    # the last positions are those of a shorter sequence
    torch.testing.assert_close(fixed(items[1:2, 3:]), fixed(items)[1:2, 3:], atol=1e-5, rtol=1e-4)
    for name in ("bert", "mimetic"):
        model = BERT4Rec(BERT4RecConfig(**SMALL, pos_embed="sincos"))
        initialize_(model, name, default="bert")
        assert torch.equal(model.pos_embed, fixed.pos_embed), name


@pytest.mark.parametrize("kind", ["from-sincos", "from-noise"])
def test_started_positions_are_learned_as_a_change_of_large_ones(items, kind):
    started, fixed, learned = build(pos_embed=kind), build(pos_embed="sincos"), build()
    rows = started.pos_start
    assert rows.square().mean().sqrt().item() == pytest.approx(0.5**0.5, rel=0.1) and not rows.requires_grad
    assert torch.equal(rows, fixed.pos_embed) is (kind == "from-sincos")
    assert started.pos_embed.requires_grad and not torch.equal(started.pos_embed, rows)
    # what a model with learned positions computes that have the sum, and whose items are as large
    state = {name: t for name, t in started.state_dict().items() if name != "pos_start"}
    learned.load_state_dict(state | {"pos_embed": started.pos_embed + rows})
    with torch.no_grad():
        learned.item_embed.weight *= 4
    torch.testing.assert_close(started.features(items), learned.features(items), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(started(items[1:2, 3:]), started(items)[1:2, 3:], atol=1e-5, rtol=1e-4)
    for name in ("bert", "mimetic"):
        model = BERT4Rec(BERT4RecConfig(**SMALL, pos_embed=kind))
        initialize_(model, name, default="bert")
        assert torch.equal(model.pos_start, rows) and 0.015 < model.pos_embed.std() < 0.025, name


def test_mistakes_are_named():
    for wrong in (dict(num_heads=3), dict(depth=0), dict(dropout=1.0), dict(mlp_ratio=0), dict(pos_embed="rope")):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BERT4RecConfig(**SMALL | wrong)
    with pytest.raises(ValueError, match="12 positions, the model has 10"):
        build()(torch.ones(1, 12, dtype=torch.long))


@pytest.mark.parametrize("only", ["embedding", "attention", "attention and MLP"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_every_dropout_is_there_in_training_only(items, norm_first, only):
    model = build(dropout=0.5, norm_first=norm_first)
    calm = model(items)
    model.drop.p = 0.5 if only == "embedding" else 0.0
    dropped = []
    for block in model.blocks:
        block.attn.dropout = 0.5 if only == "attention" else 0.0
        block.drop.p = 0.5 if only == "attention and MLP" else 0.0
        block.drop.register_forward_hook(lambda *_: dropped.append(1))
    assert torch.equal(model(items), calm)
    dropped.clear()
    torch.manual_seed(0)
    assert not torch.allclose(model.train()(items), calm)
    assert len(dropped) == 2 * len(model.blocks)  # after attention and after the MLP
