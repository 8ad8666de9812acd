"""timm: every supported layout in a small model with random weights, checked through its own forward."""

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn

import mimetic
from mimetic.adapters.views import GATE, HOOKED, INNER_NORM, NO_DROPOUT, OUT_NORM, QK_NORM, ROPE, UNSCALED
from mimetic.attention import UnsupportedAttention
from mimetic.coverage.build import make_generic
from mimetic.scan import attention_layers, scan
from mimetic.verify import verify

timm = pytest.importorskip("timm")
from timm.models.beit import Beit  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.hiera import Hiera  # noqa: E402
from timm.models.swin_transformer import SwinTransformer  # noqa: E402
from timm.models.swin_transformer_v2 import SwinTransformerV2  # noqa: E402
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock, VisionTransformer  # noqa: E402
from timm.models.vision_transformer_relpos import VisionTransformerRelPos  # noqa: E402
from timm.models.vision_transformer_sam import VisionTransformerSAM  # noqa: E402

D, H = 32, 4
VIT = dict(img_size=16, patch_size=4, embed_dim=D, depth=2, num_heads=H, num_classes=5)
SWIN = dict(img_size=32, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=5)


def _separate_qkv(**more):
    return Eva(**VIT, qkv_fused=False, use_rot_pos_emb=True, **more)


MODELS = {  # name: (model, layers, caveats, whether the gains are known)
    "vit": (lambda: VisionTransformer(**VIT), 2, set(), True),
    "deit distilled": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2, embed_dim=D, num_heads=H),
        2,
        set(),
        True,
    ),
    "dinov2": (lambda: VisionTransformer(**VIT, init_values=1e-5, reg_tokens=4, no_embed_class=True), 2, set(), True),
    "siglip": (lambda: VisionTransformer(**VIT, class_token=False, global_pool="map"), 2, set(), True),
    "qk norm": (lambda: VisionTransformer(**VIT, qk_norm=True), 2, {QK_NORM}, True),
    "norm and gate": (lambda: VisionTransformer(**VIT, scale_attn_norm=True), 2, {INNER_NORM}, True),
    "res-post-norm": (lambda: VisionTransformer(**VIT, block_fn=ResPostBlock), 2, {OUT_NORM}, False),
    "eva": (lambda: Eva(**VIT, use_rot_pos_emb=True, init_values=1e-5), 2, {ROPE}, True),
    "eva without rope": (lambda: Eva(**VIT, use_rot_pos_emb=False), 2, set(), True),
    "eva02": (lambda: _separate_qkv(scale_attn_inner=True, swiglu_mlp=True), 2, {ROPE, INNER_NORM}, True),
    "beit": (lambda: Beit(**VIT, use_rel_pos_bias=True, init_values=0.1), 2, set(), True),
    "relpos": (lambda: VisionTransformerRelPos(**VIT, rel_pos_type="mlp", init_values=1e-5), 2, set(), True),
    "sam": (
        lambda: VisionTransformerSAM(**VIT, use_rel_pos=True, window_size=2, global_attn_indexes=(1,)),
        2,
        set(),
        True,
    ),
    "swin": (lambda: SwinTransformer(**SWIN), 4, set(), True),
    "swin v2": (lambda: SwinTransformerV2(**SWIN), 4, {QK_NORM, OUT_NORM}, False),
    "hiera": (
        lambda: Hiera(img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), num_classes=5),
        2,
        set(),
        True,
    ),
}


def build(name):
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    make_generic(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1 and not p.any():
                p.normal_(std=0.2)
    return model


def run(model):
    size = {Hiera: 64}.get(type(model)) or getattr(getattr(model, "patch_embed", None), "img_size", (32, 32))[0]
    return model(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_forward(name):
    _, count, caveats, gains = MODELS[name]
    model = build(name)
    layers = attention_layers(model)
    assert len(layers) == count
    for layer, check in zip(layers, verify(model, run)):
        assert check.ok, check
        assert check.qk_error < 1e-4 and check.vp_error < 1e-4
        assert set(layer.caveats) == caveats
        if gains is not None:
            assert layer.gains_known == gains
            assert not gains or check.fold_error < 1e-4, check


@pytest.mark.parametrize("name", ["vit", "dinov2", "beit", "eva", "swin"])
@torch.no_grad()
def test_one_token_is_the_product(name):
    """The module alone, on basis vectors: with one token softmax is 1 and the output is V.proj exactly."""
    model = build(name)
    for layer in attention_layers(model):
        module = model.get_submodule(layer.name)
        x = torch.cat([torch.eye(layer.d_model), torch.zeros(1, layer.d_model)])[:, None]
        if getattr(module, "window_area", None) or getattr(module, "relative_position_bias_table", None) is not None:
            # a full window of equal tokens averages to the token
            x = x.expand(-1, module.relative_position_index.shape[0], -1)
        y = module(x)[:, 0]
        torch.testing.assert_close(layer.vp(), y[:-1] - y[-1:], rtol=1e-4, atol=1e-5)


def test_gate_is_a_caveat():
    attention = timm.layers.Attention(D, H, gated=True)
    block = torch.nn.Sequential(attention)
    assert attention_layers(block)[0].caveats == (GATE,)
    assert verify(block, lambda m: m(torch.randn(2, 5, D)))[0].ok


def test_grouped_query_rope_attention():
    attention = timm.layers.AttentionRope(D, H, qkv_fused=False, num_kv_heads=2)
    model = torch.nn.Sequential(attention)
    layer = attention_layers(model)[0]
    assert (layer.num_heads, layer.num_kv_heads) == (4, 2)
    assert verify(model, lambda m: m(torch.randn(2, 5, D)))[0].ok
    swapped = dataclasses.replace(layer, k=layer.k.flip(1))
    assert not verify(model, lambda m: m(torch.randn(2, 5, D)), layers=[swapped])[0].ok


def test_pooling_and_pooled_queries_are_passed_over():
    found = scan(build("siglip"))
    assert list(found.passed_over) == ["attn_pool"] and not found.refused
    assert "max-pooled" in " ".join(scan(build("hiera")).passed_over.values())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xcit_nano_12_p16_224", "mixes channels"),
        ("cait_xxs24_224", "talking heads"),
        ("levit_128s", "batch norm"),
        ("mvitv2_tiny", "pooled"),
        ("mobilevitv2_050", "linear attention"),
        ("convit_tiny", r"blocks\.0\.attn: gated positional attention"),
        ("shvit_s1", "batch norm follows q, k, v and proj"),
        ("iformer_t", "a sigmoid follows v"),
    ],
)
def test_refused_with_a_reason(name, reason):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UnsupportedAttention, match=reason):
        attention_layers(model)


def test_parallel_scaling_block_is_refused():
    with pytest.raises(UnsupportedAttention, match="MLP"):
        attention_layers(VisionTransformer(**VIT, block_fn=ParallelScalingBlock))


def test_no_attention():
    with pytest.raises(UnsupportedAttention, match="no attention layer found in ResNet"):
        attention_layers(timm.create_model("resnet10t"))


def test_meta_model_is_refused():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    with pytest.raises(UnsupportedAttention, match=r"blocks\.0\.attn.*meta tensor"):
        attention_layers(model)


def test_names_are_clean_in_wrapped_models():
    model = build("vit")
    wrapped = torch.nn.DataParallel(model)
    assert [layer.name for layer in attention_layers(wrapped)] == [layer.name for layer in attention_layers(model)]


@pytest.mark.parametrize(
    ("name", "what"),
    [("vit_small_patch16_18x2_224", "ls"), ("efficientformer_l1", "ls1"), ("swinv2_cr_tiny_224", "norm1")],
)
def test_scales_near_0_in_blocks_that_are_not_known_are_warned_of(name, what):
    model = timm.create_model(name)
    model.train()  # without initialisation by a checkpoint
    with pytest.warns(mimetic.MimeticWarning, match=rf"{what}.* beside it, which may scale its output, is about"):
        mimetic.mimetic_init_(model, qk=False)


def test_a_bare_subclass_of_a_block_keeps_its_gains():
    model = build("vit")
    for block in model.blocks:
        block.__class__ = type("My" + type(block).__name__, (type(block),), {})
    assert all(layer.gains_known and layer.in_gain is not None for layer in attention_layers(model))


def test_what_was_put_in_the_place_of_a_dropout_is_seen():
    model = VisionTransformer(**VIT)
    model.blocks[0].attn.proj_drop.register_forward_hook(lambda module, args, output: 2 * output)
    assert [HOOKED in layer.caveats for layer in attention_layers(model)] == [True, False]
    model.blocks[1].attn.proj_drop = nn.Sequential(nn.Dropout(0.1), nn.Linear(D, D))  # an adapter
    with pytest.raises(
        UnsupportedAttention, match=r"blocks\.1\.attn: proj_drop is a Sequential with weights of its own"
    ):
        attention_layers(model)


@pytest.mark.parametrize("part", ["attn_drop", "proj_drop"])
def test_what_is_no_dropout_in_the_place_of_one_is_a_caveat(part):
    model = VisionTransformer(**VIT)
    setattr(model.blocks[0].attn, part, nn.Tanh())
    setattr(model.blocks[1].attn, part, timm.layers.DropPath(0.1))
    assert [NO_DROPOUT in layer.caveats for layer in attention_layers(model)] == [True, False]


def test_a_tied_layers_own_caveats_are_told():
    model = VisionTransformer(**VIT)
    for name in ("qkv", "proj"):
        getattr(model.blocks[1].attn, name).weight = getattr(model.blocks[0].attn, name).weight
    model.blocks[1].ls1 = timm.layers.LayerScale(D, 1e-5)
    with pytest.warns(mimetic.MimeticWarning, match=r"^blocks\.1\.attn: LayerScale, or what else"):
        mimetic.mimetic_init_(model)


@pytest.mark.parametrize("first", [0, 1])
def test_caveats_of_every_place_of_a_shared_layer_are_told(first):
    before, after = Block(D, H), ResPostBlock(D, H)
    after.attn = before.attn
    blocks = [before, after] if first == 0 else [after, before]
    (layer,) = attention_layers(nn.Sequential(*blocks))
    assert OUT_NORM in layer.caveats and not layer.gains_known


@pytest.mark.parametrize("closed", [0, 1])
def test_every_block_around_a_shared_layer_is_looked_at(closed):
    model = VisionTransformer(**VIT)
    model.blocks[1].attn = model.blocks[0].attn
    model.blocks[closed].ls1 = timm.layers.LayerScale(D, 1e-5)
    with pytest.warns(mimetic.MimeticWarning, match=r"^blocks\.0\.attn: .*is about 1e-05"):
        mimetic.mimetic_init_(model)


def test_a_scale_of_ones_own_is_a_caveat_where_it_is_read():
    model = VisionTransformer(**VIT)
    for block in model.blocks:
        block.attn.scale = 1 / (D // H)
    model.blocks[1].attn.fused_attn = False
    assert [UNSCALED in layer.caveats for layer in attention_layers(model)] == [False, True]
    model.blocks[1].attn.scale = 1
    assert [UNSCALED in layer.caveats for layer in attention_layers(model)] == [False, True]
    always_read = timm.models.convit.MHSA(D, H)  # has no fused attention
    assert UNSCALED not in attention_layers(always_read)[0].caveats
    always_read.scale = 1 / (D // H)
    assert UNSCALED in attention_layers(always_read)[0].caveats


def test_what_was_put_in_the_place_of_a_blocks_drop_path_makes_its_gains_unknown():
    model = VisionTransformer(**VIT)
    model.blocks[0].drop_path1.register_forward_hook(lambda module, args, output: 2 * output)
    assert [layer.gains_known for layer in attention_layers(model)] == [False, True]
    assert [HOOKED in layer.caveats for layer in attention_layers(model)] == [True, False]
    model.blocks[0].drop_path1 = nn.Linear(D, D)
    with pytest.raises(UnsupportedAttention, match="drop_path1 is a Linear with weights of its own"):
        attention_layers(model)


def test_subclass_that_computes_something_else_is_refused():
    class Doubled(timm.layers.Attention):
        def forward(self, x, **kwargs):
            return super().forward(x) * 2

    with pytest.raises(UnsupportedAttention, match="Doubled overrides the forward"):
        attention_layers(torch.nn.Sequential(Doubled(D, H)))


class _Wrapped(nn.Module):
    """A norm around another one, whose gain is not its own."""

    def __init__(self, d, **_):
        super().__init__()
        self.ln = nn.LayerNorm(d)

    def forward(self, x):
        return self.ln(x.float()).to(x.dtype)


class _OnePlus(nn.Module):
    def __init__(self, d, **_):
        super().__init__()
        self.weight = nn.Parameter(torch.full((d,), 0.5))

    def forward(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


class _Exponent(nn.LayerNorm):
    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.weight.exp()


@pytest.mark.parametrize("norm", [_Wrapped, _OnePlus, _Exponent, nn.BatchNorm1d, nn.Linear], ids=lambda c: c.__name__)
def test_what_stands_in_the_place_of_a_norm_is_not_taken_for_one(norm):
    model = VisionTransformer(**VIT)
    model.blocks[0].norm1 = norm(D, D) if norm is nn.Linear else norm(D)
    layer, other = attention_layers(model)
    assert not layer.gains_known and layer.in_gain is None and other.gains_known and other.in_gain is not None
    with pytest.raises(UnsupportedAttention, match="which LayerNorm feeds this layer is not known"):
        layer.qk(0, fold=True)
    assert len(mimetic.mimetic_init_(model)) == 2  # which does not need the gain


def test_gains_are_not_known_where_the_block_or_its_norm_was_changed():
    replaced, patched, hooked, scaled = (VisionTransformer(**VIT, init_values=1.0) for _ in range(4))
    replaced.blocks[0].forward = lambda x: x
    assert [layer.gains_known for layer in attention_layers(replaced)] == [False, True]
    hooked.blocks[1].norm1.register_forward_hook(lambda module, args, out: 2 * out)
    assert [layer.gains_known for layer in attention_layers(hooked)] == [True, False]

    class ReZero(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.gamma

    scaled.blocks[0].ls1 = ReZero()
    assert [layer.gains_known for layer in attention_layers(scaled)] == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mimetic.mimetic_init_(scaled)
    original = type(patched.blocks[0]).forward
    try:
        type(patched.blocks[0]).forward = lambda self, x, attn_mask=None: original(self, x)
        assert not any(layer.gains_known for layer in attention_layers(patched))
    finally:
        type(patched.blocks[0]).forward = original


def test_a_branch_that_rounding_hides_is_not_called_wrong():
    model = VisionTransformer(**VIT, init_values=1e-5).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    checks = verify(model, lambda m: m(images))
    assert all(check.ok and math.isnan(check.fold_error) for check in checks)
    model.double()
    assert all(check.ok and check.fold_error < 1e-4 for check in verify(model, lambda m: m(images.double())))


def test_simple_norm_is_verified():
    model = VisionTransformer(**VIT, norm_layer="simplenorm").eval()
    make_generic(model)
    checks = verify(model, lambda m: m(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))))
    assert all(check.ok and check.fold_error < 1e-3 for check in checks)
