"""The ViT equals timm's, its position embedding is the published one, and bad configs are refused."""

import math

import pytest
import torch

import mimetic
from mimetic.models import Block, SelfAttention, ViT, ViTConfig, parameter_counts
from mimetic.models.positions import sincos2d

TINY = dict(img_size=16, patch_size=4, num_classes=7, d_model=32, depth=3, num_heads=4)


def randomise(model, seed=0):
    """Every parameter away from zeros and ones, so that a missing bias or gain shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.2, generator=generator))


@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize("pos_embed", ["learned", "none"])
def test_output_equals_timm(global_pool, pos_embed):
    timm_vit = pytest.importorskip("timm.models.vision_transformer")
    reference = timm_vit.VisionTransformer(
        img_size=16, patch_size=4, num_classes=7, embed_dim=32, depth=3, num_heads=4, global_pool=global_pool,
        class_token=global_pool == "token", pos_embed={"learned": "learn", "none": "none"}[pos_embed],
    ).eval()  # fmt: skip
    randomise(reference)
    model = ViT(ViTConfig(**TINY, global_pool=global_pool, pos_embed=pos_embed)).eval()
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(model(images), reference(images), atol=1e-2)
    model.load_state_dict(reference.state_dict(), strict=True)
    torch.testing.assert_close(model(images), reference(images), atol=1e-5, rtol=1e-5)
    # and the gradients, so that training is the same too
    model(images).logsumexp(1).sum().backward()
    reference(images).logsumexp(1).sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_sincos2d_is_written_out():
    got, d, width = sincos2d(3, 5, 16), 16, 5
    for row, column in [(0, 0), (1, 0), (0, 1), (2, 4)]:
        for i in range(4):
            omega = 10_000 ** (-i / 4)
            token = got[row * width + column]
            want = [math.sin(column * omega), math.cos(column * omega), math.sin(row * omega), math.cos(row * omega)]
            torch.testing.assert_close(token[i::4], torch.tensor(want), atol=1e-6, rtol=0)
    assert got.shape == (15, d)


def test_sincos2d_equals_timm():
    timm_layers = pytest.importorskip("timm.layers")
    theirs = timm_layers.pos_embed_sincos.build_sincos2d_pos_embed([4, 6], dim=32)
    sin_x, cos_x, sin_y, cos_y = sincos2d(4, 6, 32).chunk(4, dim=1)
    torch.testing.assert_close(torch.cat([sin_y, sin_x, cos_y, cos_x], 1), theirs, atol=1e-5, rtol=0)  # timm's order


def test_position_embedding_kinds():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shuffled = images.roll(4, dims=-1)  # the patches of every row move on by one
    for kind, invariant in [("none", True), ("sincos2d", False), ("learned", False)]:
        model = ViT(ViTConfig(**TINY, global_pool="avg", pos_embed=kind)).eval()
        randomise(model)
        assert torch.allclose(model(images), model(shuffled), atol=1e-5) == invariant
    fixed = ViT(ViTConfig(**TINY, global_pool="token", pos_embed="sincos2d"))
    assert "pos_embed" not in dict(fixed.named_parameters()) and "pos_embed" in fixed.state_dict()
    assert fixed.pos_embed.shape == (1, 17, 32) and not fixed.pos_embed[0, 0].any()


def test_fixed_noise_is_what_the_learned_positions_from_noise_start_from():
    fixed, started = (ViT(ViTConfig(**TINY, global_pool="token", pos_embed=kind)) for kind in ("noise", "from-noise"))
    assert torch.equal(fixed.pos_embed, started.pos_start) and "pos_embed" not in dict(fixed.named_parameters())
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fixed.embed(images)[:, 1:], fixed.patch_embed(images) + started.pos_start[:, 1:])


@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize("kind", ["from-sincos", "from-noise"])
def test_positions_that_start_somewhere_are_learned_ones_with_other_first_values(kind, global_pool):
    prefix = int(global_pool == "token")
    started, learned = (
        ViT(ViTConfig(**TINY, global_pool=global_pool, pos_embed=pos)).eval() for pos in (kind, "learned")
    )
    mimetic.initialize_(started, "timm", generator=torch.Generator().manual_seed(0))
    assert started.pos_embed.requires_grad
    assert not started.pos_start.requires_grad
    assert 0.015 < started.pos_embed.std() < 0.025
    rows = started.pos_start[0, prefix:]
    assert rows.square().mean().sqrt().item() == pytest.approx(0.5**0.5, abs=0.03)
    assert not started.pos_start[0, :prefix].any()
    assert torch.equal(rows, sincos2d(4, 4, 32)) == (kind == "from-sincos")
    state = started.state_dict()
    learned.load_state_dict(
        {name: t for name, t in state.items() if name != "pos_start"}
        | {"pos_embed": state["pos_embed"] + state["pos_start"]}
    )
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(started(images), learned(images))
    started(images).square().sum().backward()
    learned(images).square().sum().backward()
    torch.testing.assert_close(started.pos_embed.grad, learned.pos_embed.grad)
    assert parameter_counts(started) == parameter_counts(learned)
    assert torch.equal(ViT(started.config).pos_start, started.pos_start)  # the same in every model


def test_causal_block_does_not_see_the_future():
    block = Block(16, 2, causal=True).eval()
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 4:] *= -1  # not += 1: LayerNorm would take that away
    torch.testing.assert_close(block(x)[:, :4], block(changed)[:, :4])
    assert not torch.allclose(block(x)[:, 4:], block(changed)[:, 4:])
    full = Block(16, 2).eval()
    assert not torch.allclose(full(x)[:, :4], full(changed)[:, :4])


def test_post_norm_block_is_the_formula_and_padding_mask_hides_tokens():
    block = Block(16, 2, norm_first=False).eval()
    randomise(block)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    y = block.norm1(x + block.attn(x))
    torch.testing.assert_close(block(x), block.norm2(y + block.mlp(y)))
    keep = torch.tensor([True, True, True, False, False]).view(1, 1, 1, 5)
    changed = x.clone()
    changed[:, 3:] += 1
    torch.testing.assert_close(block(x, keep)[:, :3], block(changed, keep)[:, :3])


def test_attention_is_softmax_of_the_product():
    layer = SelfAttention(12, 3).double().eval()
    randomise(layer)
    x = torch.randn(1, 4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).split(12, dim=-1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        heads.append(torch.softmax(q[..., part] @ k[..., part].mT / 2, -1) @ v[..., part])  # sqrt(head_dim) = 2
    torch.testing.assert_close(layer(x), torch.cat(heads, -1) @ layer.proj.weight.T + layer.proj.bias)


def test_parameter_counts():
    model = ViT(ViTConfig(**TINY, global_pool="token", pos_embed="learned"))
    counts = parameter_counts(model)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["attention_qkv"] == 3 * (32 * 96 + 96)
    assert counts["attention_proj"] == 3 * (32 * 32 + 32)
    assert counts["mlp"] == 3 * (2 * 32 * 128 + 128 + 32)
    assert counts["norm"] == (2 * 3 + 1) * 64
    assert counts["head"] == 32 * 7 + 7
    assert counts["embedding"] == 3 * 16 * 32 + 32 + 32 + 17 * 32
    assert counts["other"] == 0


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(patch_size=5), "patch_size=5 does not divide img_size=16"),
        (dict(num_heads=3), "num_heads=3 does not divide d_model=32"),
        (dict(global_pool="mean"), "one of token, avg"),
        (dict(pos_embed="rope"), "one of sincos2d, learned, none, shuffled, noise, from-sincos, from-noise"),
        (dict(pos_embed="sincos2d", d_model=30, num_heads=2), "divisible by 4"),
        (dict(pos_embed="from-sincos", d_model=30, num_heads=2), "divisible by 4"),
        (dict(depth=0), "depth must be"),
        (dict(mlp_ratio=0.0), "mlp_ratio must be"),
    ],
)
def test_bad_configs_name_the_choices(change, words):
    with pytest.raises(ValueError, match=words):
        ViTConfig(**TINY | change)
