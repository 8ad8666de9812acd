"""Our GPT computes what transformers' GPT-2 computes, looks at no later token, and starts as GPT-2 starts."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import mimetic
from mimetic.models.blocks import SelfAttention, parameter_counts
from mimetic.models.gpt import GPT, GPTConfig, generate
from mimetic.models.positions import rotate, rotations, sincos
from mimetic.verify import verify

SMALL = GPTConfig(vocab_size=61, context=24, d_model=48, depth=3, num_heads=4)


def initialised(init="gpt2", config=SMALL, seed=0, **options):
    model = GPT(config)
    mimetic.initialize_(model, init, default="gpt2", generator=torch.Generator().manual_seed(seed), **options)
    return model


def test_logits_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=61, n_positions=24, n_embd=48, n_layer=3, n_head=4)
    ).eval()
    for p in theirs.parameters():  # also biases and gains away from where they start
        p.data += 0.1 * torch.randn_like(p)
    ours, state = GPT(SMALL).eval(), theirs.state_dict()
    names = {
        "ln_1": "norm1",
        "attn.c_attn": "attn.qkv",
        "attn.c_proj": "attn.proj",
        "ln_2": "norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    copied = {"token_embed.weight": state["transformer.wte.weight"], "pos_embed": state["transformer.wpe.weight"]}
    copied |= {f"norm.{p}": state[f"transformer.ln_f.{p}"] for p in ("weight", "bias")}
    for i in range(3):
        for their, our in names.items():
            for p in ("weight", "bias"):
                value = state[f"transformer.h.{i}.{their}.{p}"]
                # GPT-2's Conv1D keeps (in, out)
                copied[f"blocks.{i}.{our}.{p}"] = value.T if value.ndim == 2 else value
    ours.load_state_dict(copied)
    ids = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (ours(ids) - theirs(ids).logits).abs().max()
        exact = GPT(SMALL).eval()
        exact.load_state_dict(copied)
        for block in exact.blocks:
            block.mlp.act = torch.nn.GELU()
        assert (exact(ids) - theirs(ids).logits).abs().max() > 2e-4  # the check would notice the other GELU
    assert difference < 1e-4


def test_no_token_sees_a_later_one():
    model = initialised().eval()
    ids = torch.randint(61, (1, 20), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 61
    a, b = model(ids), model(changed)
    assert torch.equal(a[:, :12], b[:, :12]) and not torch.allclose(a[:, 12], b[:, 12])


def test_the_explicit_causal_path_of_bfloat16_is_the_same_attention():
    torch.manual_seed(0)
    attention = SelfAttention(32, 4, causal=True)
    x = torch.randn(2, 17, 32, requires_grad=True)
    outputs, gradients = [], []
    for precision in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            y = attention(x)
        outputs.append(y.float())
        gradients.append(torch.autograd.grad(y.float().square().sum(), x)[0])
    for ours, exact in (outputs, gradients):
        assert torch.isfinite(ours).all() and (ours - exact).norm() < 0.02 * exact.norm()


def test_the_head_is_the_embedding_and_counts_once():
    model = initialised()
    counts = parameter_counts(model)
    assert counts["head"] == counts["other"] == 0 and counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["embedding"] == (61 + 24) * 48
    assert counts["attention_qkv"] + counts["attention_proj"] == 3 * (4 * 48 * 48 + 4 * 48)
    gpt2 = GPTConfig()
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(gpt2).parameters()) == 124_439_808  # GPT-2 small, as published


def test_gpt2_initialization():
    model = initialised(config=GPTConfig(vocab_size=500, context=64, d_model=192, depth=4, num_heads=3))
    for name, p in model.named_parameters():
        if p.ndim < 2:
            assert torch.equal(p, torch.full_like(p, float("norm" in name and name.endswith("weight")))), name
        else:
            residual = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
            assert p.std().item() == pytest.approx(0.02 / 8**0.5 if residual else 0.02, rel=0.05), name
            assert abs(p.mean().item()) < 0.001


def test_arms_share_what_they_do_not_set():
    default, ours = initialised().state_dict(), initialised("mimetic", spec=mimetic.LANGUAGE).state_dict()
    differs = {name for name in default if not torch.equal(default[name], ours[name])}
    assert differs == {f"blocks.{i}.attn.{part}.weight" for i in range(3) for part in ("qkv", "proj")}


@pytest.mark.parametrize("spec", [mimetic.VISION, mimetic.LANGUAGE])
def test_mimetic_writes_the_products(spec):
    model = initialised("mimetic", GPTConfig(vocab_size=10, context=8, d_model=128, depth=2, num_heads=4), spec=spec)
    for layer in mimetic.attention_layers(model):
        assert layer.in_gain is not None
        assert layer.vp().diagonal().mean().item() == pytest.approx(spec.vp_beta, abs=0.02)
        assert layer.qk(0).diagonal().mean().item() > 0.2


def test_fixed_positions_are_those_of_transformers():
    marian = pytest.importorskip("transformers.models.marian.modeling_marian")
    theirs = marian.MarianSinusoidalPositionalEmbedding(50, 32)
    theirs.weight = torch.nn.Parameter(theirs.create_weight(), requires_grad=False)
    torch.testing.assert_close(sincos(50, 32), theirs(torch.Size([1, 50])).view(50, 32), atol=1e-6, rtol=0)


def test_fixed_positions_stand_beside_tokens_times_the_root_of_the_width():
    fixed = initialised(config=dataclasses.replace(SMALL, pos_embed="sincos"))
    assert "pos_embed" not in dict(fixed.named_parameters()) and torch.equal(fixed.pos_embed, sincos(24, 48))
    assert parameter_counts(fixed)["embedding"] == 61 * 48
    # the blocks see what those of a GPT with learned positions see whose table has these values and whose tokens are so
    # large
    learned = initialised()
    learned.load_state_dict(fixed.state_dict())
    with torch.no_grad():
        learned.token_embed.weight *= 48**0.5
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fixed.features(ids), learned.features(ids))
    torch.testing.assert_close(fixed(ids), learned(ids) / 48**0.5)  # the head has the tokens as they are
    assert len(generate(fixed, [1], 30)) == 30


def test_scaled_embeddings_are_those_of_a_gpt_with_larger_ones():
    scaled, learned = initialised(config=dataclasses.replace(SMALL, pos_embed="scaled")), initialised()
    assert all(torch.equal(p, learned.get_parameter(name)) for name, p in scaled.named_parameters())
    with torch.no_grad():
        learned.pos_embed *= 48**0.5
        learned.token_embed.weight *= 48**0.5
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scaled.features(ids), learned.features(ids))


@pytest.mark.parametrize("kind", ["from-sincos", "from-noise"])
def test_positions_that_start_somewhere_are_learned_ones_with_other_first_values(kind):
    started, learned = initialised(config=dataclasses.replace(SMALL, pos_embed=kind)), initialised()
    assert all(torch.equal(p, learned.get_parameter(name)) for name, p in started.named_parameters())
    assert started.pos_start.square().mean().sqrt().item() == pytest.approx(0.5**0.5, abs=0.03)
    assert torch.equal(started.pos_start, sincos(24, 48)) == (kind == "from-sincos")
    with torch.no_grad():
        learned.pos_embed += started.pos_start
        learned.token_embed.weight *= 48**0.5
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(started.features(ids), learned.features(ids))
    assert torch.equal(GPT(started.config).pos_start, started.pos_start) and len(generate(started, [1], 30)) == 30


def test_shuffled_positions_are_the_same_ones_in_another_order():
    rows, shuffled = sincos(24, 48), GPT(dataclasses.replace(SMALL, pos_embed="shuffled")).pos_embed
    match = (shuffled[:, None] == rows).all(-1)
    assert match.sum(0).tolist() == match.sum(1).tolist() == [1] * 24 and not torch.equal(shuffled, rows)
    torch.rand(3)  # whatever was drawn before
    assert torch.equal(shuffled, GPT(dataclasses.replace(SMALL, pos_embed="shuffled")).pos_embed)
    neighbours = [F.cosine_similarity(table[1:], table[:-1]).mean().item() for table in (rows, shuffled)]
    assert neighbours[0] > 0.9 > neighbours[1] + 0.1


def test_centred_positions_have_nothing_in_common_and_the_same_size():
    rows, apart = (
        sincos(128, 128),
        GPT(GPTConfig(vocab_size=5, context=128, d_model=128, depth=1, num_heads=4, pos_embed="centred")).pos_embed,
    )
    # most of the energy is the same for every place
    assert rows.mean(0).square().sum() > 0.5 * rows.square().sum(1).mean()
    torch.testing.assert_close(apart.mean(0), torch.zeros(128), atol=1e-6, rtol=0)
    torch.testing.assert_close(apart.square().mean(), rows.square().mean())
    torch.testing.assert_close(apart / apart.norm(), (rows - rows.mean(0)) / (rows - rows.mean(0)).norm())


def test_rotary_positions_are_those_of_llama_and_know_distances_only():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = dataclasses.replace(SMALL, pos_embed="rotary")
    K = config.d_model // config.num_heads
    table = rotations(24, K)
    theirs = llama.LlamaRotaryEmbedding(llama.LlamaConfig(hidden_size=K, num_attention_heads=1, head_dim=K))
    q, k = torch.randn(2, 3, 4, 24, K, generator=torch.Generator().manual_seed(0))
    expected = llama.apply_rotary_pos_emb(q, k, *theirs(q, torch.arange(24)[None]))
    torch.testing.assert_close((rotate(q, table), rotate(k, table)), tuple(expected))
    scores = rotate(q[:1, :1, :1].expand(1, 1, 24, K), table) @ rotate(k[:1, :1, :1].expand(1, 1, 24, K), table).mT
    for back in (0, 1, 7):  # the same query and key everywhere: the score follows from the distance
        along = scores[0, 0].diagonal(-back)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-4, rtol=1e-4)
    model = initialised(config=config)
    assert model.pos_embed is None
    assert parameter_counts(model)["embedding"] == 61 * 48
    assert not any("rotary" in name for name in model.state_dict())
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(10)  # so that it looks somewhere
    ids = torch.randint(61, (1, 20), generator=torch.Generator().manual_seed(0))
    # the order matters
    assert (
        model(ids[:, 1:])[0, -1] - model(torch.cat([ids[:, :1], ids[:, 2:3], ids[:, 1:2], ids[:, 3:]], 1))[0, -1]
    ).abs().max() > 1e-3
    assert len(generate(model, [1], 30)) == 30


@pytest.mark.filterwarnings("ignore::mimetic.MimeticWarning")
def test_rotary_positions_are_said_to_change_the_effect():
    model = initialised("mimetic", dataclasses.replace(SMALL, pos_embed="rotary"))
    assert all("RoPE" in layer.caveats[0] for layer in mimetic.attention_layers(model))
    assert all(check.ok for check in verify(model, lambda model: model(torch.arange(20)[None])))
    assert not any(layer.caveats for layer in mimetic.attention_layers(initialised()))


def test_generation_follows_from_the_seed_and_leaves_the_model_alone():
    model = initialised().train()
    a, b, c = (generate(model, [1, 2], 40, seed=s) for s in (0, 0, 1))  # longer than the context
    assert a == b != c and len(a) == 40 and model.training and all(0 <= i < 61 for i in a)
    with torch.no_grad():
        model.token_embed.weight[:] = 0
        model.token_embed.weight[7] = F.normalize(torch.ones(48), dim=0) * 100
        model.norm.weight[:], model.norm.bias[:] = 0, 1
    assert generate(model, [1], 5) == [7] * 5  # a model that is sure of itself


def test_generation_sees_the_last_tokens():
    model, seen = initialised(), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].tolist()))
    ids = list(range(30))
    out = generate(model, ids, 2)
    assert seen == [ids[-24:], [*ids, out[0]][-24:]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GPTConfig(num_heads=5), "num_heads=5 does not divide d_model=768"),
        (lambda: GPTConfig(context=0), "context must be a whole number of at least 1"),
        (lambda: GPTConfig(mlp_ratio=0), "mlp_ratio must be finite and give at least one hidden unit"),
        (
            lambda: GPTConfig(pos_embed="rope"),
            (
                "pos_embed must be one of learned, scaled, sincos, shuffled, centred, rotary, from-sincos, from-noise,"
                " not 'rope'"
            ),
        ),
        (lambda: GPTConfig(d_model=6, num_heads=2, pos_embed="rotary"), "needs an even d_model / num_heads, not 6 / 2"),
        (lambda: rotations(4, 3), "rotary positions need an even head_dim, not 3"),
        (
            lambda: GPTConfig(d_model=9, num_heads=3, pos_embed="sincos"),
            "pos_embed='sincos' needs an even d_model, not 9",
        ),
        (
            lambda: GPTConfig(d_model=9, num_heads=3, pos_embed="from-sincos"),
            "pos_embed='from-sincos' needs an even d_model, not 9",
        ),
        (lambda: sincos(4, 9), "d_model must be even, not 9"),
        (lambda: GPT(SMALL)(torch.zeros(1, 25, dtype=torch.long)), "25 tokens are more than the context of 24"),
        (lambda: generate(GPT(SMALL), [], 3), "no tokens to begin with"),
        (lambda: generate(GPT(SMALL), [1], 3, temperature=0), "temperature must be greater than 0"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
