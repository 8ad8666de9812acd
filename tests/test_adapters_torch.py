"""torch.nn.MultiheadAttention, alone and inside torch's, torchvision's and other people's blocks."""

import dataclasses
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from mimetic import AttentionLayer, MimeticSpec, MimeticWarning, adapters, mimetic_init_
from mimetic.adapters import calls, fused_out, linear_in, linear_out
from mimetic.adapters.views import GATE, NO_DROPOUT, QK_NORM, ROPE
from mimetic.attention import UnsupportedAttention
from mimetic.coverage.build import make_generic
from mimetic.models.blocks import SelfAttention
from mimetic.scan import attention_layers, scan
from mimetic.verify import verify

D, H = 32, 4


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A user's own pre-norm block."""

    def __init__(self, need_weights=False, **kwargs):
        super().__init__()
        self.norm, self.attn, self.need_weights = nn.LayerNorm(D), nn.MultiheadAttention(D, H, **kwargs), need_weights

    def forward(self, x):
        n = self.norm(x)
        return x + self.attn(n, n, n, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_forward(need_weights, batch_first, bias):
    torch.manual_seed(0)
    model = Block(need_weights, batch_first=batch_first, bias=bias)
    make_generic(model)
    (check,) = verify(model, lambda m: m(tokens(5, 6, D)))
    assert check.ok and check.qk_error < 1e-4 and check.vp_error < 1e-4 and abs(check.scale - 1) < 1e-3


@torch.no_grad()
def test_one_token_is_the_product():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, H)
    nn.init.normal_(attention.in_proj_bias)
    (layer,) = attention_layers(attention)
    x = torch.cat([torch.eye(D), torch.zeros(1, D)])[None]
    y = attention(x, x, x, need_weights=False)[0][0]
    torch.testing.assert_close(layer.vp(), y[:-1] - y[-1:], rtol=1e-4, atol=1e-6)
    q = (attention.in_proj_weight[:D]).view(H, -1, D)  # torch keeps (out, in)
    k = (attention.in_proj_weight[D : 2 * D]).view(H, -1, D)
    for h in range(H):
        torch.testing.assert_close(layer.qk(h), q[h].T @ k[h])


def test_other_widths_are_cross_attention():
    """kdim, vdim: separate in_proj, and keys that are not the queries' tokens."""
    torch.manual_seed(0)

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(D, H, kdim=24, vdim=24, batch_first=True)

        def forward(self, x, kv):
            return self.attn(x, kv, kv)[0]

    model = Cross()
    (layer,) = attention_layers(model)
    assert layer.kind == "cross" and layer.k.shape == (24, H, D // H)
    (check,) = verify(model, lambda m: m(tokens(2, 5, D), tokens(2, 7, 24)))
    assert check.ok and check.qk_error < 1e-4


@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_transformer(norm_first):
    torch.manual_seed(0)
    model = nn.Transformer(D, H, 2, 2, 48, batch_first=True, norm_first=norm_first)
    make_generic(model)
    layers = attention_layers(model)
    assert [layer.kind for layer in layers] == ["self"] * 2 + ["self", "cross"] * 2
    for layer, check in zip(layers, verify(model, lambda m: m(tokens(2, 5, D), tokens(2, 6, D, seed=1)))):
        assert check.ok, check
        if layer.kind == "self":
            assert layer.gains_known and (layer.in_gain is not None) == norm_first
            assert check.fold_error < 1e-4, check


def test_torchvision_vit():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=H, hidden_dim=D, mlp_dim=48, num_classes=5
    )
    make_generic(model)
    checks = verify(model, lambda m: m(tokens(2, 3, 16, 16)))
    assert len(checks) == 2 and all(c.ok and c.fold_error < 1e-4 for c in checks)


def test_torchvision_swin():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2], num_heads=[2], window_size=[4, 4], num_classes=5
    )
    with pytest.raises(UnsupportedAttention, match="ShiftedWindowAttention is not a known attention class"):
        attention_layers(model)


DEFECTS = {
    "untransposed in_proj": lambda a, m: {
        part: w.unflatten(1, (H, -1)) for part, w in zip("qkv", m.in_proj_weight.detach().view(3, D, D))
    },
    "untransposed out_proj": lambda a, m: {"proj": m.out_proj.weight.detach().unflatten(0, (H, -1))},
    "q and k swapped": lambda a, m: {"q": a.k, "k": a.q},
    "in_proj split per head": lambda a, m: {
        part: m.in_proj_weight.detach().mT.unflatten(1, (H, 3, -1))[:, :, i] for i, part in enumerate("qkv")
    },
    "rows of proj by channel": lambda a, m: {
        "proj": m.out_proj.weight.detach().mT.unflatten(0, (-1, H)).transpose(0, 1)
    },
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_check_sees_a_wrong_reading(defect):
    torch.manual_seed(0)
    model = Block(batch_first=True)
    (layer,) = attention_layers(model)
    wrong = dataclasses.replace(layer, **DEFECTS[defect](layer, model.attn))
    (check,) = verify(model, lambda m: m(tokens(5, 6, D)), layers=[wrong], fold=False)
    assert check.problem.startswith("wrong"), check


@pytest.mark.parametrize("part", ["q_bias", "k_bias", "v_bias", "proj_bias"])
def test_the_check_sees_a_bias_that_a_reader_leaves_out(part):
    model = Block(batch_first=True)
    (layer,) = attention_layers(model)
    (check,) = verify(model, lambda m: m(tokens(5, 6, D)), layers=[dataclasses.replace(layer, **{part: None})])
    what = "attn.out_proj.bias" if part == "proj_bias" else "attn.in_proj_bias"
    assert check.problem == f"wrong: {what} is not all in the layer's biases"


def test_a_model_that_cannot_be_read_is_not_verified():
    """An empty list of checks would pass for a reader that copies its weights."""
    half_known = nn.Sequential(Block(batch_first=True), Block(batch_first=True))
    half_known[1].attn.out_proj = nn.Identity()
    for model in (nn.Linear(3, 3), half_known):
        with pytest.raises(UnsupportedAttention):
            verify(model, lambda m: m(tokens(5, 6, D)))


def test_pooling_with_a_learned_query_is_passed_over():
    class AttentionPool(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.attn = nn.Parameter(torch.randn(1, 1, D)), nn.MultiheadAttention(D, H, batch_first=True)

    model = nn.ModuleList([Block(batch_first=True), AttentionPool()])
    found = scan(model)
    assert [layer.name for layer in found.layers] == ["0.attn"] and list(found.passed_over) == ["1.attn"]


def test_refusals_name_layer_and_reason():
    with pytest.raises(UnsupportedAttention, match="no attention layer found in Linear"):
        attention_layers(nn.Linear(3, 3))
    parametrised = Block()
    torch.nn.utils.parametrizations.weight_norm(parametrised.attn.out_proj)
    with pytest.raises(UnsupportedAttention, match="attn.*out_proj.*parametri"):
        attention_layers(parametrised)
    with pytest.raises(TypeError, match="Module"):
        attention_layers([1])


def test_quantised_weights_are_refused():
    model = Block()
    model.attn.in_proj_weight = nn.Parameter(model.attn.in_proj_weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedAttention, match="float8"):
        attention_layers(model)


class CrossAttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn = nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)


class CrossEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(16, 2)


class MeanPoolClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2)


class AttentionPool(MeanPoolClassifier):
    pass


def test_a_layers_own_name_counts_before_its_blocks():
    assert [(layer.name, layer.kind) for layer in attention_layers(CrossAttentionBlock())] == [
        ("self_attn", "self"),
        ("cross_attn", "cross"),
    ]
    assert attention_layers(CrossEncoder())[0].kind == attention_layers(MeanPoolClassifier())[0].kind == "self"
    with pytest.raises(UnsupportedAttention, match="pools with a learned query"):
        attention_layers(AttentionPool())


class Lists(nn.Module):
    """Layers in containers: the container's attribute is their name."""

    def __init__(self):
        super().__init__()
        mha = lambda: nn.MultiheadAttention(16, 2)  # noqa: E731
        self.sa, self.layers = mha(), nn.ModuleList([mha()])
        self.cross_attn, self.self_attns = nn.ModuleList([mha()]), nn.ModuleList([mha()])
        self.steps = nn.ModuleList([nn.ModuleDict({"self_attn": mha(), "x_attn": mha(), "multihead_attn": mha()})])
        self.encoder_attn = nn.Sequential(nn.Sequential(mha()))
        self.attn_pool = nn.ModuleList([mha()])


def test_a_layer_in_a_list_is_called_like_the_list():
    found = scan(Lists())
    assert {layer.name: layer.kind for layer in found.layers} == {
        "sa": "self",
        "layers.0": "self",
        "cross_attn.0": "cross",
        "self_attns.0": "self",
        "steps.0.self_attn": "self",
        "steps.0.x_attn": "cross",
        "steps.0.multihead_attn": "cross",
        "encoder_attn.0.0": "cross",
    }
    assert list(found.passed_over) == ["attn_pool.0"]
    assert "Lists pools with a learned query" in found.passed_over["attn_pool.0"]
    with pytest.warns(MimeticWarning, match="cross_attn.0 to encoder_attn.0.0.: cross-attention, left alone"):
        assert len(mimetic_init_(Lists())) == 4


@pytest.mark.parametrize(("siblings", "kind"), [((), "self"), (("norm",), "self"), (("self_attn",), "cross")])
def test_multihead_attn_is_cross_attention_beside_a_self_attn_only(siblings, kind):
    block = nn.Module()
    for name in siblings:
        setattr(block, name, nn.LayerNorm(16) if name == "norm" else nn.MultiheadAttention(16, 2))
    block.multihead_attn, model = nn.MultiheadAttention(16, 2), nn.Module()
    model.block = block
    assert attention_layers(model)[-1].kind == kind
    block.__class__ = type("DecoderLayerOptimal", (nn.Module,), {})  # ML-Decoder's has no self-attention
    assert attention_layers(model)[-1].kind == "cross"


def test_attention_to_the_source_is_cross_attention():
    """As the Annotated Transformer calls it."""
    block = nn.Module()
    block.self_attn, block.src_attn = nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)
    assert [layer.kind for layer in attention_layers(block)] == ["self", "cross"]


def test_zeros_that_are_attended_to_are_a_caveat():
    (layer,) = attention_layers(nn.MultiheadAttention(16, 2, add_zero_attn=True))
    assert "adds one token of zeros" in layer.caveats[0]


def test_our_layer_in_another_block_has_gains_that_are_not_known():
    block = nn.Module()
    block.ln, block.attn = nn.LayerNorm(16), SelfAttention(16, 2)
    assert not attention_layers(block)[0].gains_known and not attention_layers(SelfAttention(16, 2))[0].gains_known
    with pytest.raises(UnsupportedAttention):
        attention_layers(block)[0].qk(0, fold=True)


def test_no_two_layers_have_one_name():
    for order in (("module", "attn"), ("attn", "module")):
        model = nn.Module()
        parts = {"module": nn.ModuleDict({"attn": nn.MultiheadAttention(16, 2)}), "attn": nn.MultiheadAttention(16, 2)}
        for name in order:
            setattr(model, name, parts[name])
        assert {layer.name for layer in attention_layers(model)} == {"attn", "module.attn"}
        assert len(mimetic_init_(model, MimeticSpec(vp_beta=(-0.4, 0.4)))) == 2
        assert [layer.vp().diagonal().mean() > 0 for layer in attention_layers(model)] == [False, True]


@pytest.mark.parametrize(
    "name",
    [
        "enc_attn",
        "dec_enc_attn",
        "encoder_attention",
        "context_attn",
        "src_tgt_attn",
        "mem_attn",
        "cond_attn",
        "ca",
        "xattn",
        "attn2",
        "second",
    ],
)
def test_a_second_layer_beside_a_self_attn_is_cross_attention(name):
    block = nn.Module()
    block.self_attn = nn.MultiheadAttention(16, 2)
    block.add_module(name, nn.MultiheadAttention(16, 2))
    assert [(layer.name, layer.kind) for layer in attention_layers(block)] == [("self_attn", "self"), (name, "cross")]


class Subclass(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_a_layer_is_cross_attention_whatever_is_wrapped_around_it(wrap):
    block = nn.Module()
    block.self_attn, block.second = wrap(nn.MultiheadAttention(16, 2)), wrap(Subclass(16, 2))
    assert [layer.kind for layer in attention_layers(block)] == ["self", "cross"]


@pytest.mark.parametrize(
    "name", ["enc_attn", "decoder_encoder_attention", "ctx_attn", "ca_text", "xattn", "attn2", "guided_attn"]
)
def test_its_name_alone_says_cross_attention(name):
    block = nn.Module()
    block.add_module(name, nn.MultiheadAttention(16, 2))
    assert attention_layers(block)[0].kind == "cross"


def test_a_sparse_or_complex_weight_is_refused_in_a_line():
    layer = nn.MultiheadAttention(16, 2)
    layer.in_proj_weight = nn.Parameter(layer.in_proj_weight.detach().to_sparse())
    with pytest.raises(
        UnsupportedAttention, match="in_proj_weight is stored as torch.sparse_coo, not as a plain matrix$"
    ):
        attention_layers(layer)
    with pytest.raises(UnsupportedAttention, match="complex weights"):
        attention_layers(nn.MultiheadAttention(16, 2).to(torch.complex64))


@pytest.mark.parametrize(
    "names",
    [
        ("q_proj_weight", "k_proj_weight", "v_proj_weight"),
        ("att_qkv",),
        ("self_q", "self_k", "self_v"),
        ("Q_mat", "K_mat", "V_mat"),
        ("query_layers", "key_layers"),
        ("linears_q", "linears_k", "linears_v"),
        ("i2q", "i2k"),
        ("theta", "phi", "g"),
        ("attn_in", "attn_out"),
        ("conv_q", "conv_k", "conv_v"),
        ("q_linears", "k_linears"),
        ("qTrans", "kTrans", "vTrans"),
        ("q_mlp", "k_mlp"),
    ],
)
def test_more_names_that_show_attention_beside_a_known_layer(names):
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            for name in names:
                linear = nn.Linear(8, 24 if name == "attn_in" else 8)
                setattr(self, name, nn.Parameter(torch.ones(8, 8)) if name.endswith("_weight") else linear)

    with pytest.raises(UnsupportedAttention, match="b: .*Mixer is not a known attention class"):
        attention_layers(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": Mixer()}))


class Mixes(nn.Module):
    """Attention that no name gives away."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))


class MixesByLibrary(Mixes):
    def forward(self, x):
        return F.scaled_dot_product_attention(self.a(x), self.b(x), self.c(x))


class MixesByHand(Mixes):
    def forward(self, x):
        return (self.a(x) @ self.b(x).mT).softmax(-1) @ self.c(x)


class MixesByEinsum(Mixes):
    """One key head for all."""

    def forward(self, x):
        logits = torch.einsum("b h i d, b j d -> b h i j", self.a(x)[:, None], self.b(x))
        return torch.einsum("... i j, ... j d -> ... i d", logits.softmax(-1), self.c(x)[:, None])


class Scores(Mixes):
    """A softmax, and no attention."""

    def forward(self, x):
        return (self.a(x) + self.b(x)).softmax(-1) @ self.c(x)


class Experts(Mixes):
    """A softmax and two sums over experts."""

    def forward(self, x):
        gates = self.a(x).softmax(-1)
        sent = torch.einsum("gsec,gsm->gecm", gates.unflatten(-1, (2, 4)), x)
        return torch.einsum("gsec,gecm->gsm", gates.unflatten(-1, (2, 4)), sent)


def test_attention_that_only_its_code_gives_away_is_not_passed_over():
    known = nn.MultiheadAttention(8, 2)
    for mixer in (MixesByLibrary(), MixesByHand(), MixesByEinsum()):
        with pytest.raises(UnsupportedAttention, match="b: .*MixesBy.* is not a known attention class"):
            attention_layers(nn.ModuleDict({"a": known, "b": mixer}))
    for other in (Scores(), Experts()):
        assert [layer.name for layer in attention_layers(nn.ModuleDict({"a": known, "b": other}))] == ["a"]

    around = MixesByLibrary()
    around.inner = known
    with pytest.raises(UnsupportedAttention, match="MixesByLibrary is not a known"):
        attention_layers(around)


class CausalSelfAttention(nn.Module):
    """Its fused weight and its projection lie deeper than its children."""

    def __init__(self):
        super().__init__()
        self.into, self.out = (nn.Sequential(nn.Linear(8, n), nn.Dropout(0.0)) for n in (24, 8))

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(*self.into(x).chunk(3, -1)))


def test_a_name_and_a_call_together_show_attention_in_wrapped_layers():
    with pytest.raises(UnsupportedAttention, match="b: .*CausalSelfAttention is not a known attention class"):
        attention_layers(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": CausalSelfAttention()}))


def test_refusals_name_who_can_be_taught():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({part: nn.Linear(8, 8) for part in "qkv"})

        def forward(self, x):
            return sum(part(x) for part in self.parts.values())

    with pytest.raises(UnsupportedAttention, match="parts: it holds the projections of .*Block, which is not a known"):
        attention_layers(Block())
    with pytest.raises(UnsupportedAttention, match=r"it is traced \(torch.fx, torch.export\): initialise before"):
        attention_layers(torch.fx.symbolic_trace(Block()))


# --- attention written by hand, of which a reader says what the code computes ---------------------------------------


class Handmade(nn.Module):
    caveats = ()

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))

    def heads(self, x):
        return [part(x).unflatten(-1, (H, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)]

    def out(self, y):
        return self.o(y.transpose(1, 2).flatten(2))


def rotated(t):
    angles = torch.arange(t.shape[-2])[:, None] / 10 ** (torch.arange(t.shape[-1] // 2) / 2)
    a, b = t.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class NormByFunction(Handmade):
    caveats = (ROPE, QK_NORM)

    def forward(self, x):
        q, k, v = self.heads(x)
        q, k = (F.rms_norm(rotated(t), t.shape[-1:]) for t in (q, k))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class NormUnsaid(NormByFunction):
    caveats = (ROPE,)


class Einsum(Handmade):
    caveats = (ROPE,)

    def forward(self, x):
        q, k, v = self.heads(x)
        logits = torch.einsum("bhid, bhjd -> bhij", rotated(q), rotated(k)) * q.shape[-1] ** -0.5
        return self.out(torch.einsum("bhij,bhjd->bhid", logits.softmax(-1), v))


class EinsumHeadsLast(Handmade):
    def forward(self, x):
        q, k, v = (t.transpose(1, 2) for t in self.heads(x))
        logits = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
        return self.o(torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v).flatten(2))


class SoftCapped(Handmade):
    def forward(self, x):
        q, k, v = self.heads(x)
        logits = q @ k.mT * q.shape[-1] ** -0.5
        return self.out((50 * torch.tanh(logits / 50)).softmax(-1) @ v)


class SequenceFirst(Handmade):
    def forward(self, x):
        q, k, v = self.heads(x.transpose(0, 1))
        return self.out(F.scaled_dot_product_attention(q, k, v)).transpose(0, 1)


class HeadsBeforeBatch(Handmade):
    """Heads and batch in one dimension, heads first, as in SASRec's first code."""

    def forward(self, x):
        q, k, v = (torch.cat(part(x).split(D // H, -1), 0) for part in (self.q, self.k, self.v))
        y = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.o(torch.cat(y.split(len(x), 0), -1))


class TalkingHeads(Handmade):
    caveats = (ROPE,)  # it has none; its logits are not q k^T either

    def forward(self, x):
        q, k, v = self.heads(x)
        mixed = torch.einsum("bhij,hg->bgij", q @ k.mT * q.shape[-1] ** -0.5, torch.eye(H) + 0.3)
        return self.out(mixed.softmax(-1) @ v)


class OneTemperatureAHead(Handmade):
    caveats = (ROPE,)

    def forward(self, x):
        q, k, v = self.heads(x)
        return self.out((q @ k.mT * torch.arange(1, H + 1)[:, None, None]).softmax(-1) @ v)


class ConstantGate(Handmade):
    caveats = (GATE,)  # of which it says nothing: this gate is a number a head

    def forward(self, x):
        q, k, v = self.heads(x)
        gate = torch.sigmoid(torch.arange(H) - 1.0)
        return self.out(F.scaled_dot_product_attention(q, k, v) * gate[:, None, None])


class HeadByHead(Handmade):
    def forward(self, x):
        q, k, v = self.heads(x)
        one = lambda h: (q[:, h] @ k[:, h].mT * q.shape[-1] ** -0.5).softmax(-1) @ v[:, h]  # noqa: E731
        return self.o(torch.cat([one(h) for h in range(H)], -1))


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (NormByFunction, ""),
        (NormUnsaid, "wrong: missing caveat: QK-norm"),
        (Einsum, ""),
        (EinsumHeadsLast, ""),
        (SoftCapped, ""),
        (SequenceFirst, ""),
        (HeadsBeforeBatch, ""),
        (TalkingHeads, "wrong: what reaches the softmax is not q k^T times one number"),
        (OneTemperatureAHead, "wrong: what reaches the softmax is not q k^T times one number"),
        (ConstantGate, "wrong: W_V W_proj differs"),
        (HeadByHead, "unverified: 4 softmaxes"),
    ],
)
def test_attention_in_many_spellings_is_verified(monkeypatch, made, problem):
    def read(module, name, ancestors, swap=False):
        q, k, v = (linear_out(part, H, name)[0] for part in (module.q, module.k, module.v))
        if swap:
            q, k = k, q
        return AttentionLayer(name, q, k, v, linear_in(module.o, H, name)[0], caveats=module.caveats)

    model = nn.Sequential(made())
    monkeypatch.setattr(adapters, "_CUSTOM", {made: read})
    (check,) = verify(model, lambda m: m(tokens(3, 7, D)))
    assert check.problem.startswith(problem) and check.ok == (problem == "")
    monkeypatch.setattr(adapters, "_CUSTOM", {made: lambda *a: read(*a, swap=True)})
    (check,) = verify(model, lambda m: m(tokens(3, 7, D)))
    assert not check.ok


# --- what the code of a block calls its layers with, under names that say nothing or something else ------------------


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)
        self.norm, self.probe = nn.LayerNorm(16), nn.Parameter(torch.zeros(1, 1, 16))


class Decoder(Calls):
    def forward(self, x, seen, mask=None):
        x = x + self.one(x, x, x, attn_mask=mask)[0]
        x = self.norm(x)
        return x + self.two(x, seen, seen)[0]


class BothSelf(Calls):
    """As DETR adds its positions."""

    def place(self, x, where):
        return x if where is None else x + where

    def forward(self, src, pos):
        q = k = self.place(src, pos)
        for _ in range(2):
            src = src + self.one(q, k, value=src)[0]
        a, b = self.norm(src), self.norm(src)
        return self.two(query=a, key=b, value=src)[0]


class Asks(Calls):
    def forward(self, x):
        probe = self.probe.expand(x.shape[0], -1, -1)
        return self.two(probe, self.one(x, x, x)[0], x)[0]


class Unsaid(Calls):
    """Context that may be the tokens themselves; a class token that asks: the names decide."""

    def forward(self, x, context=None):
        if context is None:
            context = x
        x = self.one(x, context, context)[0]
        return self.two(x[:, :1], x, x)[0]


class PassedOn(Calls):
    def forward(self, query, value):
        return self.one(query, value, value)[0]


class Target(Calls):
    def forward(self, item, history):
        return self.one(item, history, history)[0]


class Around(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.first, self.then = block, nn.Linear(16, 16)

    def forward(self, x, memory):
        return self.then(self.first(x, x))


class AroundTwo(Around):
    def forward(self, x, memory):
        return self.then(self.first(x, memory))


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (Decoder(), ["self", "cross"]),
        (BothSelf(), ["self", "self"]),
        (Unsaid(), ["self", "self"]),
        (PassedOn(), ["self", "self"]),
        (Target(), ["cross", "self"]),
        (Around(Target()), ["self", "self"]),
        (Around(PassedOn()), ["self", "self"]),
        (AroundTwo(PassedOn()), ["cross", "self"]),
        (nn.DataParallel(Decoder()), ["self", "cross"]),
    ],
)
def test_the_code_of_a_block_says_what_its_layers_are_called_with(model, kinds):
    assert [layer.kind for layer in attention_layers(model)] == kinds


class HeadMajor(nn.TransformerEncoderLayer):
    """Reads the rows of in_proj_weight in another order."""

    def _sa_block(self, x, *_, **__):
        heads = self.self_attn.num_heads
        qkv = F.linear(x, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias).unflatten(-1, (heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        return self.self_attn.out_proj(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Scaled(nn.TransformerEncoderLayer):
    def __init__(self):
        super().__init__(16, 2, 32, batch_first=True, norm_first=True)
        self.ls1 = nn.Parameter(torch.full((16,), 1e-5))

    def reset_parameters(self):
        nn.init.normal_(self.self_attn.in_proj_weight)

    def _sa_block(self, *args, **kwargs):
        return self.ls1 * super()._sa_block(*args, **kwargs)


def test_what_a_subclass_of_torchs_block_changes_is_seen():
    with pytest.raises(UnsupportedAttention, match="self_attn: HeadMajor, .*uses its in_proj_weight itself"):
        attention_layers(HeadMajor(16, 2, 32))
    (layer,) = attention_layers(Scaled())
    assert not layer.gains_known
    with pytest.warns(MimeticWarning, match="ls1 beside it, which may scale its output, is about 1e-05"):
        mimetic_init_(Scaled())


class MadeBefore(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.ins = nn.MultiheadAttention(16, 2), nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))


class MadeByMatrices(MadeBefore):
    def forward(self, x):
        a, b = self.ins[0](x), self.ins[1](x)
        return self.attn(a, b, self.ins[2](x))[0]


class MadeByOne(MadeBefore):
    def forward(self, x):
        x = self.ins[0](x)
        return self.attn(x, x, self.ins[2](x))[0]


class MadeByNorms(MadeBefore):
    def forward(self, x):
        return self.attn(self.norms[0](x), self.norms[1](x), x)[0]


def test_queries_and_keys_that_a_block_has_made_with_matrices_are_refused():
    with pytest.raises(UnsupportedAttention, match="attn: MadeByMatrices, .*makes queries and keys with ins before it"):
        attention_layers(MadeByMatrices())
    assert len(attention_layers(MadeByOne())) == len(attention_layers(MadeByNorms())) == 1


def test_a_part_that_is_called_module_does_not_hide_its_class():
    class CrossAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.MultiheadAttention(16, 2)

    class SemanticCrossAttention(CrossAttention):
        pass

    parts = CrossAttention(), SemanticCrossAttention(), nn.DataParallel(nn.MultiheadAttention(16, 2))
    model = nn.ModuleDict({f"layer{i}": part for i, part in enumerate(parts)})
    assert [layer.kind for layer in attention_layers(model)] == ["cross", "cross", "self"]


def test_to_refuse_a_parametrised_layer_changes_nothing():
    layer = nn.MultiheadAttention(16, 2)
    nn.utils.parametrizations.spectral_norm(layer, "in_proj_weight")
    before = [t.clone() for t in layer.state_dict().values()]
    with pytest.raises(UnsupportedAttention, match="q is no view of a parameter .*: initialise before that"):
        mimetic_init_(layer)
    assert all(map(torch.equal, before, layer.state_dict().values()))


class Hook:
    """What accelerate's hooks say of themselves."""

    def __init__(self, offload=False, hooks=()):
        self.offload, self.hooks = offload, hooks


@pytest.mark.parametrize("hook", [Hook(True), Hook(hooks=(Hook(), Hook(True)))])
def test_offloaded_weights_are_refused_also_where_they_are_in_place(hook):
    layer = nn.MultiheadAttention(16, 2)
    layer.out_proj._hf_hook = hook
    with pytest.raises(UnsupportedAttention, match="put in their place anew for every pass: initialise before that"):
        attention_layers(layer)
    layer.out_proj._hf_hook = Hook()
    assert len(attention_layers(layer)) == 1


def test_what_an_adapter_keeps_as_it_was_is_left_alone():
    kept = nn.Module()
    kept.original_module = nn.MultiheadAttention(16, 2)
    kept.modules_to_save = nn.ModuleDict({"default": nn.MultiheadAttention(16, 2)})
    with pytest.warns(MimeticWarning, match="attn.original_module: left alone, .*beside the copy that it trains"):
        written = mimetic_init_(nn.ModuleDict({"attn": kept}))
    assert [layer.name for layer in written] == ["attn.modules_to_save.default"]


class ZeroCentredNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(16))


def test_a_norms_own_gain_is_no_scale_and_a_vector_behind_attention_is_one():
    block = nn.Module()
    block.norm, block.attn = ZeroCentredNorm(), nn.MultiheadAttention(16, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mimetic_init_(block)
        block.attn_scale = nn.Parameter(torch.tensor(0.25))  # may be the temperature
        mimetic_init_(block)
    block.attn_scale = nn.Parameter(torch.full((16,), 1e-4))
    with pytest.warns(MimeticWarning, match="attn_scale beside it, which may scale its output, is about 0.0001"):
        mimetic_init_(block)


def test_a_query_that_comes_from_no_argument_is_learned():
    found = scan(Asks())
    assert [layer.name for layer in found.layers] == ["one"]
    assert "Asks pools with a learned query" in found.passed_over["two"]


class Unfollowed(Calls):
    """Queries that come from tokens in ways that are not followed: nothing is said of them."""

    def by_append(self, x):
        parts = []
        parts.append(self.norm(x))
        return self.one(torch.stack(parts).mean(0), x, x)[0]

    def forward(self, x):
        h = torch.zeros(x.shape)
        h[:, 1:] = x[:, :-1]
        return self.two(h, x, x)[0]


class Kept(Calls):
    def forward(self, x):
        self.last = self.norm(x)
        y = self.one(self.last, x, x)[0]
        return self.two(self.stored(), y, y)[0]

    def stored(self):
        return self.last


class Comprehended(Calls):
    def forward(self, x, memory):
        x = sum(self.one(h, x, x)[0] for h in x.chunk(2, 1))
        if (y := memory) is not None:
            x = self.two(y, x, x)[0]
        return x


class Rebound(Calls):
    def forward(self, x, mem, way=1):
        k = x
        match way:
            case 1:
                k = mem
        with torch.no_grad():
            x = self.one(x, k, k)[0]
        y = k = x
        if (k := mem) is not None:
            y = self.two(y, k, k)[0]
        return y


class Memory(Calls):
    def forward(self, x):
        return self.one(x, self.probe, self.probe)[0] + self.two(x, self.cache, self.cache)[0]


@pytest.mark.parametrize("block", [Unfollowed, Kept, Comprehended, Rebound])
def test_what_is_not_followed_is_left_to_names(block):
    assert [layer.kind for layer in attention_layers(block())] == ["self", "self"]
    assert calls.tokens_of_call([("two", block())]) == calls.UNSAID


def test_what_a_module_holds_is_a_memory_and_what_it_keeps_may_be_anything():
    assert [layer.kind for layer in attention_layers(Memory())] == ["cross", "self"]


def lazily_wrapped():
    class Config(dict):
        __getattr__ = dict.__getitem__

    def forward(self, x):
        return self.one(x, x, x)[0]

    forward.__wrapped__ = forward  # around itself
    return type("Odd", (Calls,), {"config": Config(width=1), "forward": forward})()


def test_odd_classes_are_read_or_left_to_names():
    assert [layer.kind for layer in attention_layers(lazily_wrapped())] == ["self", "self"]
    without_source = {"nn": nn, "Calls": Calls}
    exec("class Typed(Calls):\n  def forward(self, x, y):\n    return self.one(x, y, y)[0]", without_source)
    assert attention_layers(without_source["Typed"]())[0].kind == "self"


def test_no_class_is_kept_alive():
    def make():
        class Short(Decoder):
            pass

        assert len(attention_layers(Short())) == 2
        return weakref.ref(Short)

    gone = make()
    gc.collect()
    assert gone() is None


class TwoTowers(Calls):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, batch):
        image, text = self.image(batch["image"]), self.text(batch["text"])
        return self.one(text, image, image)[0]


class Mentions(Calls):
    def freeze(self):
        self.one.in_proj_weight.requires_grad_(False)

    def forward(self, x):
        x = x.to(self.one.in_proj_weight.dtype)
        return self.one(x, x, x)[0]


class Router(Mixes):
    """One product with a transposed matrix and a softmax, as in routers and heads of contrastive losses."""

    def forward(self, x):
        return (x @ self.a.weight.t()).softmax(-1)[..., :1] * self.b(self.c(x))


def test_towers_and_routers_and_mentions_of_a_weight_are_no_reason_to_refuse():
    assert len(attention_layers(TwoTowers())) == len(attention_layers(Mentions())) == 2
    assert len(attention_layers(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": Router()}))) == 1


def test_what_the_code_says_counts_before_the_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.cross_attn, self.self_attn = nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)

        def forward(self, x, y):
            x = self.cross_attn(x, x, x)[0]
            return self.self_attn(x, y, y)[0]

    assert [layer.kind for layer in attention_layers(Named())] == ["self", "cross"]
    changed = Named()
    changed.forward = lambda x: x  # the class's code is not what runs
    assert [layer.kind for layer in attention_layers(changed)] == ["cross", "self"]


def test_what_was_put_in_the_place_of_a_blocks_dropout_makes_its_gains_unknown():
    layer = nn.TransformerEncoderLayer(D, H, 2 * D, norm_first=True)
    assert attention_layers(layer)[0].gains_known
    layer.dropout = nn.Linear(2 * D, 2 * D)  # of the MLP
    assert attention_layers(layer)[0].gains_known and not attention_layers(layer)[0].caveats
    layer.dropout1 = nn.Tanh()
    assert not attention_layers(layer)[0].gains_known and attention_layers(layer)[0].caveats == (NO_DROPOUT,)
    layer.dropout1 = nn.Linear(D, D)
    with pytest.raises(UnsupportedAttention, match="dropout1 is a Linear with weights of its own"):
        attention_layers(layer)


def test_a_lazy_layer_beside_a_known_one_is_not_passed_over():
    class MyAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o = (nn.LazyLinear(8) for _ in range(4))

    for model in (nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": MyAttention()}), nn.Sequential(MyAttention())):
        with pytest.raises(UnsupportedAttention, match="MyAttention is not a known attention class"):
            attention_layers(model)


@pytest.mark.parametrize("head", [True, "0", 1.0])
def test_a_head_that_is_no_number_is_refused(head):
    layer = attention_layers(nn.MultiheadAttention(8, 2))[0]
    for product in (layer.qk, layer.vp, layer.w_q):
        with pytest.raises(TypeError, match=r"a head is a number from 0 to 1, not .* \(fold is a keyword"):
            product(head)
    assert torch.equal(layer.qk(np.int64(1)), layer.qk(1))


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_norm_of_ones_own_in_torchs_block_is_not_known(norm_first):
    block = nn.TransformerEncoderLayer(8, 2, norm_first=norm_first)
    block.norm1 = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    assert attention_layers(block)[0].gains_known != norm_first  # behind attention it does not matter


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_scripted_part_is_passed_by_and_scripted_attention_refused():
    block = nn.Module()
    block.attn, block.head = nn.MultiheadAttention(16, 2), torch.jit.script(nn.Linear(16, 4))
    assert [layer.name for layer in attention_layers(block)] == ["attn"]
    assert len(mimetic_init_(block)) == 1
    encoder = torch.jit.script(nn.TransformerEncoderLayer(16, 2, 32))
    for model, name in ((encoder, "self_attn"), (nn.Sequential(encoder), "0.self_attn")):
        with pytest.raises(UnsupportedAttention, match=f"{name}: it is scripted or traced .*: initialise before that"):
            attention_layers(model)


class TwoInABlock(nn.Module):
    """A user's block with two attentions one after the other, as axial ones have."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.row, self.col = Plain(), Plain()
        self.mlp = nn.Linear(D, D)

    def forward(self, x):
        x = x + self.row(self.norm1(x))
        x = x + self.col(self.norm2(x))
        return x + self.mlp(x)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("right", [True, False])
def test_the_gains_of_two_attentions_in_one_block_are_verified(monkeypatch, right):
    def read(module, name, ancestors):
        weights, biases = zip(*fused_out(module.qkv, H, name))
        proj, proj_bias = linear_in(module.proj, H, name)
        path, block = ancestors[0]
        gain = (block.norm1 if path.endswith("row") is right else block.norm2).weight
        return AttentionLayer(name, *weights, proj, *biases, proj_bias, in_gain=gain)

    monkeypatch.setattr(adapters, "_CUSTOM", {Plain: read})
    model = nn.Sequential(TwoInABlock(), TwoInABlock())
    for block in model:
        nn.init.uniform_(block.norm1.weight, 0.5, 1.5)
    checks = verify(model, lambda m: m(tokens(2, 7, D)))
    assert [check.ok for check in checks] == [right] * 4
    assert all(check.fold_error < 1e-5 if right else check.fold_error > 0.1 for check in checks)


def test_a_compiled_model_is_verified_without_its_compiled_code():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, H, 32, batch_first=True), 1, enable_nested_tensor=False)
    (check,) = verify(torch.compile(model, backend="eager"), lambda m: m(tokens(2, 5, D)))
    assert check.ok and check.vp_error < 1e-5
