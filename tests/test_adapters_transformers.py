"""transformers: every named family from a small config with random weights, checked through its own forward."""

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import mimetic
from mimetic.adapters.views import (
    BIAS_GATE,
    CLAMPED,
    HOOKED,
    NO_DROPOUT,
    OTHER_QUERIES,
    OUT_NORM,
    QK_NORM,
    ROPE,
    SINKS,
    UNSCALED,
)
from mimetic.attention import UnsupportedAttention
from mimetic.coverage.build import make_generic
from mimetic.coverage.transformers_models import plan_transformers
from mimetic.scan import attention_layers
from mimetic.verify import verify

transformers = pytest.importorskip("transformers")

D, H, G, LAYERS = 32, 4, 2, 2
IDS = dict(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
TEXT = dict(hidden_size=D, num_attention_heads=H, num_hidden_layers=LAYERS, intermediate_size=48, **IDS)
IMAGE = dict(
    hidden_size=D, num_attention_heads=H, num_hidden_layers=LAYERS, intermediate_size=48, image_size=8, patch_size=4
)
DECODER = dict(TEXT, num_key_value_heads=G, head_dim=8, max_position_embeddings=64)


def ids(model, batch=2, tokens=1):
    g = torch.Generator().manual_seed(0)
    return model(input_ids=torch.randint(3, 60, (batch, tokens), generator=g))


def after_an_encoder(model, batch=2, tokens=1):
    g = torch.Generator().manual_seed(0)
    text = torch.randint(3, 60, (batch, tokens), generator=g)
    # ImageGPT fails with a cache
    return model(input_ids=text, encoder_hidden_states=torch.randn(batch, 5, D, generator=g), use_cache=False)


def two_texts(model, batch=2, tokens=1):
    g = torch.Generator().manual_seed(0)
    text = torch.randint(3, 60, (batch, tokens), generator=g)
    return model(input_ids=text, decoder_input_ids=text)


def images(model, batch=2, tokens=None):
    return model(pixel_values=torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def clip_inputs(model, batch=2, tokens=4):
    g = torch.Generator().manual_seed(0)
    return model(
        input_ids=torch.randint(3, 60, (batch, tokens), generator=g),
        pixel_values=torch.randn(batch, 3, 8, 8, generator=g),
    )


def audio(model, batch=2, tokens=1):
    g = torch.Generator().manual_seed(0)
    return model(
        input_features=torch.randn(batch, 8, 16, generator=g),
        decoder_input_ids=torch.randint(3, 60, (batch, tokens), generator=g),
    )


def build(name, attention=None):
    """(model, run) of a family; every norm, scale and bias is random."""
    t = transformers
    clip = dict(hidden_size=D, num_attention_heads=H, num_hidden_layers=LAYERS, intermediate_size=48, projection_dim=16)
    whisper = dict(
        d_model=D, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=H, decoder_attention_heads=H,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=8, max_target_positions=16,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, **IDS,
    )  # fmt: skip
    seq2seq = {
        k: v for k, v in whisper.items() if k not in ("num_mel_bins", "max_source_positions", "max_target_positions")
    }
    gpt2 = dict(n_embd=D, n_head=H, n_layer=LAYERS, n_positions=32, **IDS)
    table = {
        "vit": (t.ViTConfig(**IMAGE), t.ViTModel, images),
        "deit": (t.DeiTConfig(**IMAGE), t.DeiTModel, images),
        "dinov2": (t.Dinov2Config(**IMAGE), t.Dinov2Model, images),
        "dinov2-registers": (
            t.Dinov2WithRegistersConfig(**IMAGE, num_register_tokens=2),
            t.Dinov2WithRegistersModel,
            images,
        ),
        "beit": (t.BeitConfig(**IMAGE, use_relative_position_bias=True), t.BeitModel, images),
        "clip": (
            t.CLIPConfig(
                text_config=dict(clip, max_position_embeddings=16, **IDS),
                vision_config=dict(clip, image_size=8, patch_size=4),
            ),
            t.CLIPModel,
            clip_inputs,
        ),
        "siglip": (t.SiglipVisionConfig(**IMAGE), t.SiglipVisionModel, images),
        "bert": (t.BertConfig(**TEXT), t.BertModel, ids),
        "roberta": (t.RobertaConfig(**TEXT), t.RobertaModel, ids),
        "distilbert": (
            t.DistilBertConfig(dim=D, n_heads=H, n_layers=LAYERS, hidden_dim=48, vocab_size=64),
            t.DistilBertModel,
            ids,
        ),
        "gpt2": (t.GPT2Config(**gpt2), t.GPT2Model, ids),
        "gpt2-decoder": (t.GPT2Config(**gpt2, add_cross_attention=True), t.GPT2Model, after_an_encoder),
        "imagegpt-decoder": (t.ImageGPTConfig(**gpt2, add_cross_attention=True), t.ImageGPTModel, after_an_encoder),
        "opt": (
            t.OPTConfig(
                hidden_size=D, num_attention_heads=H, num_hidden_layers=LAYERS, ffn_dim=48, word_embed_proj_dim=D, **IDS
            ),
            t.OPTModel,
            ids,
        ),
        "gpt-neox": (t.GPTNeoXConfig(**TEXT), t.GPTNeoXModel, ids),
        "gptj": (t.GPTJConfig(**gpt2, rotary_dim=4), t.GPTJModel, ids),
        "llama": (t.LlamaConfig(**DECODER), t.LlamaModel, ids),
        "mistral": (t.MistralConfig(**DECODER), t.MistralModel, ids),
        "qwen2": (t.Qwen2Config(**{k: v for k, v in DECODER.items() if k != "head_dim"}), t.Qwen2Model, ids),
        "qwen3": (t.Qwen3Config(**DECODER), t.Qwen3Model, ids),
        "gemma": (t.GemmaConfig(**DECODER), t.GemmaModel, ids),
        "gemma2": (t.Gemma2Config(**DECODER, query_pre_attn_scalar=64), t.Gemma2Model, ids),
        "phi": (t.PhiConfig(**{k: v for k, v in DECODER.items() if k != "head_dim"}), t.PhiModel, ids),
        "phi3": (t.Phi3Config(**DECODER), t.Phi3Model, ids),
        "bloom": (t.BloomConfig(hidden_size=D, n_head=H, n_layer=LAYERS, **IDS), t.BloomModel, ids),
        "falcon-multi-query": (
            t.FalconConfig(**TEXT, multi_query=True, new_decoder_architecture=False),
            t.FalconModel,
            ids,
        ),
        "gpt-bigcode-multi-query": (t.GPTBigCodeConfig(**gpt2, multi_query=True), t.GPTBigCodeModel, ids),
        "gpt-bigcode-multi-head": (t.GPTBigCodeConfig(**gpt2, multi_query=False), t.GPTBigCodeModel, ids),
        "falcon-multi-head": (
            t.FalconConfig(**TEXT, multi_query=False, new_decoder_architecture=False),
            t.FalconModel,
            ids,
        ),
        "whisper": (t.WhisperConfig(**whisper), t.WhisperModel, audio),
        "bart": (t.BartConfig(**seq2seq, max_position_embeddings=32), t.BartModel, two_texts),
        "t5": (
            t.T5Config(
                d_model=D, d_kv=8, d_ff=48, num_heads=H, num_layers=LAYERS, decoder_start_token_id=0, vocab_size=64
            ),
            t.T5Model,
            two_texts,
        ),
    }
    config, cls, run = table[name]
    if attention:
        config._attn_implementation = attention
    torch.manual_seed(0)
    model = cls(config).eval()
    make_generic(model)
    with torch.no_grad():  # no bias is left at zero: the products must not depend on them
        for p in model.parameters():
            if p.ndim == 1 and not p.any():
                p.normal_(std=0.2)
    return model, run


FAMILIES = (
    "vit",
    "deit",
    "dinov2",
    "dinov2-registers",
    "beit",
    "clip",
    "siglip",
    "bert",
    "roberta",
    "distilbert",
    "gpt2",
    "gpt2-decoder",
    "imagegpt-decoder",
    "opt",
    "gpt-neox",
    "gptj",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "bloom",
    "falcon-multi-query",
    "falcon-multi-head",
    "gpt-bigcode-multi-query",
    "gpt-bigcode-multi-head",
    "whisper",
    "bart",
    "t5",
)
ELEMENTWISE = (  # those whose attention is called with one tensor of tokens
    "vit",
    "deit",
    "dinov2",
    "dinov2-registers",
    "clip",
    "siglip",
    "bert",
    "roberta",
    "distilbert",
    "gpt2",
    "opt",
    "gpt-neox",
    "llama",
    "mistral",
    "qwen2",
    "gemma",
    "phi",
    "phi3",
    "whisper",
    "t5",
)
SELF_PER_MODEL = {"clip": 4, "whisper": 4, "bart": 4, "t5": 4}  # LAYERS for the others
CROSS_PER_MODEL = {"gpt2-decoder": 2, "imagegpt-decoder": 2, "whisper": 2, "bart": 2, "t5": 2}
CAVEATS = {
    "gpt-neox": {ROPE},
    "gptj": {ROPE},
    "llama": {ROPE},
    "mistral": {ROPE},
    "qwen2": {ROPE},
    "qwen3": {ROPE, QK_NORM},
    "gemma": {ROPE},
    "gemma2": {ROPE, UNSCALED, OUT_NORM},
    "phi": {ROPE},
    "phi3": {ROPE},
    "falcon-multi-query": {ROPE},
    "falcon-multi-head": {ROPE},
    "t5": {UNSCALED},
}
GAINS_UNKNOWN = {"gemma2"}


@pytest.mark.parametrize("name", FAMILIES)
def test_products_are_those_of_the_forward(name):
    model, run = build(name)
    layers = attention_layers(model)
    assert sum(layer.kind == "self" for layer in layers) == SELF_PER_MODEL.get(name, LAYERS)
    assert sum(layer.kind == "cross" for layer in layers) == CROSS_PER_MODEL.get(name, 0)
    for check, layer in zip(verify(model, lambda m: run(m, tokens=6)), layers):
        assert check.ok, check
        assert check.qk_error < 1e-4 and check.vp_error < 1e-4
        assert set(layer.caveats) == CAVEATS.get(name, set())
        if layer.kind == "self" and name not in GAINS_UNKNOWN:
            assert layer.gains_known and check.fold_error < 1e-4, check


# --- an independent check, with no use of mimetic ---------------------------------------------------------------------


class _Stop(Exception):
    pass


def _first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


@torch.no_grad()
def forward_products(model, run, path, heads, d_model, output_path=None):
    """(logits (heads, d, d), vp (d, d)) of the module at `path`, elementwise,
    from one-token sequences of basis vectors.

    run(model, batch) calls the model on `batch` sequences; the tokens that reach the module are replaced by the d basis
    vectors and a zero vector, one token a sequence. Softmax over one token is 1, so the output is V.proj exactly; what
    reaches scaled_dot_product_attention is the queries and keys of the basis vectors. The zero vector takes the biases
    out.
    """
    module = model.get_submodule(path)
    out_module = model.get_submodule(output_path) if output_path else module
    tokens = torch.cat([torch.eye(d_model), torch.zeros(1, d_model)])[:, None]
    seen = {}
    real = F.scaled_dot_product_attention

    def enter(module, args, kwargs):
        seen["inside"] = True
        if "hidden_states" in kwargs:
            kwargs = {**kwargs, "hidden_states": tokens}
        if args and isinstance(args[0], torch.Tensor):
            args = (tokens, *args[1:])
        return args, kwargs

    def capture(query, key, value, **kwargs):
        if "inside" not in seen:
            return real(query, key, value, **kwargs)
        # with a single query transformers packs the query heads of a group into the token axis
        seen.setdefault("q", query.reshape(query.shape[0], heads, -1))
        seen.setdefault("scale", kwargs.get("scale") or query.shape[-1] ** -0.5)
        seen.setdefault("k", key.reshape(key.shape[0], -1, key.shape[-1]))
        return real(query, key, value, **{k: v for k, v in kwargs.items() if k != "attn_mask"})

    def leave(module, args, output):
        seen["y"] = _first(output)
        raise _Stop

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True), out_module.register_forward_hook(leave)]
    F.scaled_dot_product_attention = capture
    try:
        run(model, d_model + 1)
    except _Stop:
        pass
    finally:
        F.scaled_dot_product_attention = real
        for handle in handles:
            handle.remove()
    y = seen["y"].reshape(d_model + 1, -1)
    q, k = (seen[n][:-1] - seen[n][-1:] for n in "qk")  # (d, heads, K)
    k = k.repeat_interleave(heads // k.shape[1], dim=1)
    return seen["scale"] * torch.einsum("ihk,jhk->hij", q, k), y[:-1] - y[-1:]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_from_basis_vectors(name):
    """One token gives V.proj exactly; the queries and keys of basis vectors give QK: no probe, no replaced softmax."""
    model, run = build(name)
    for layer in attention_layers(model):
        if layer.kind == "cross":
            continue
        output = layer.name.removesuffix("self") + "output.dense" if layer.name.endswith(".self") else None  # BERT
        logits, vp = forward_products(model, run, layer.name, H, layer.d_model, output)
        torch.testing.assert_close(layer.vp(), vp, rtol=1e-4, atol=1e-5 * vp.abs().max().item())
        scale = 1 if name == "t5" else layer.head_dim**-0.5
        for h in range(H):
            torch.testing.assert_close(scale * layer.qk(h), logits[h], rtol=1e-4, atol=1e-5 * logits.abs().max().item())


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "gpt-neox", "llama", "gptj", "whisper"])
def test_eager_attention_agrees(name):
    model, run = build(name, attention="eager")
    assert all(check.ok for check in verify(model, lambda m: run(m, tokens=6), fold=False))


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "llama", "bert", "t5"])
def test_initialisation_reaches_the_forward(name):
    """What mimetic_init_ writes is what the forward then computes."""
    model, run = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mimetic.MimeticWarning)
        reports = mimetic.mimetic_init_(
            model, mimetic.MimeticSpec(vp_alpha=0.4, vp_beta=-0.4), generator=torch.Generator().manual_seed(0)
        )
    assert all(check.ok for check in verify(model, lambda m: run(m, tokens=6)))
    layers = {layer.name: layer for layer in attention_layers(model)}
    for report in reports:
        diagonal = layers[report.name].vp().diagonal().mean().item()
        assert abs(diagonal - report.vp_diagonal) < 1e-4 and diagonal < -0.15


# --- the check itself: each defect must be seen -----------------------------------------------------------------------


def _swap_heads(t, axis, a=0, b=1):
    order = list(range(t.shape[axis]))
    order[a], order[b] = order[b], order[a]
    return t.index_select(axis, torch.tensor(order))


DEFECTS = {
    "untransposed q": lambda a: dict(q=a.q.flatten(1).mT.unflatten(1, a.q.shape[1:])),
    "untransposed v": lambda a: dict(v=a.v.flatten(1).mT.unflatten(1, a.v.shape[1:])),
    "untransposed proj": lambda a: dict(proj=a.proj.flatten(0, 1).mT.unflatten(0, a.proj.shape[:2])),
    "q and k swapped": lambda a: dict(q=a.k, k=a.q),
    "q and v swapped": lambda a: dict(q=a.v, v=a.q),
    "k and v swapped": lambda a: dict(k=a.v, v=a.k),
    "heads interleaved": lambda a: dict(q=a.q.flatten(1).unflatten(1, (a.head_dim, -1)).mT),
    "q heads in another order": lambda a: dict(q=_swap_heads(a.q, 1)),
    "rows of proj in another order": lambda a: dict(proj=_swap_heads(a.proj, 0)),
    "v and proj in another order than q and k": lambda a: dict(v=_swap_heads(a.v, 1), proj=_swap_heads(a.proj, 0)),
    "sign of q": lambda a: dict(q=-a.q),
    "one head scaled": lambda a: dict(q=torch.cat([2 * a.q[:, :1], a.q[:, 1:]], 1)),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("name", ["vit", "bert", "gpt-neox", "gptj"])
def test_the_check_sees_a_wrong_reading(name, defect):
    model, run = build(name)
    layers = attention_layers(model)
    wrong = dataclasses.replace(layers[0], **DEFECTS[defect](layers[0]))
    check, other = verify(model, lambda m: run(m, tokens=6), layers=[wrong, layers[1]], fold=False)
    assert check.problem.startswith("wrong"), check
    assert other.ok


def test_the_check_sees_a_wrong_group():
    """Grouped-query attention: a query head that is said to read another key head."""
    model, run = build("llama")
    layer = attention_layers(model)[0]
    for wrong in (
        dataclasses.replace(layer, k=_swap_heads(layer.k, 1)),
        dataclasses.replace(layer, v=_swap_heads(layer.v, 1)),
        # head h reads h % G
        dataclasses.replace(layer, q=_swap_heads(layer.q, 1, 1, 2), proj=_swap_heads(layer.proj, 0, 1, 2)),
    ):
        assert verify(model, lambda m: run(m, tokens=6), layers=[wrong], fold=False)[0].problem.startswith("wrong")


def test_the_check_sees_a_wrong_or_missing_gain():
    model, run = build("dinov2")
    layer = attention_layers(model)[0]
    for wrong in (
        dataclasses.replace(layer, in_gain=None),
        dataclasses.replace(layer, in_gain=layer.in_gain.flip(0)),
        dataclasses.replace(layer, out_gain=None),
        dataclasses.replace(layer, in_gain=layer.out_gain, out_gain=layer.in_gain),
    ):
        check = verify(model, images, layers=[wrong])[0]
        assert "folded" in check.problem, check


@pytest.mark.parametrize(("name", "caveat"), [("llama", ROPE), ("qwen3", QK_NORM), ("t5", UNSCALED)])
def test_the_check_sees_a_missing_caveat(name, caveat):
    model, run = build(name)
    layer = next(x for x in attention_layers(model) if x.kind == "self")
    silent = dataclasses.replace(layer, caveats=tuple(c for c in layer.caveats if c != caveat))
    assert caveat in verify(model, lambda m: run(m, tokens=6), layers=[silent], fold=False)[0].problem


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_what_was_put_in_the_place_of_a_dropout_is_seen(kind):
    model, _ = build(kind)

    def place():
        return model.h[0].attn if kind == "gpt2" else model.encoder.layer[0].attention.output

    name = "resid_dropout" if kind == "gpt2" else "dropout"
    assert not any(layer.caveats for layer in attention_layers(model))
    getattr(place(), name).register_forward_hook(lambda module, args, output: 2 * output)
    assert [HOOKED in layer.caveats for layer in attention_layers(model)] == [True, False]
    setattr(place(), name, nn.Tanh())
    assert [NO_DROPOUT in layer.caveats for layer in attention_layers(model)] == [True, False]
    setattr(place(), name, nn.Sequential(nn.Linear(D, D), nn.Tanh()))
    with pytest.raises(UnsupportedAttention, match=f"{name} is a Sequential with weights of its own"):
        attention_layers(model)


def test_what_was_put_in_the_place_of_a_blocks_dropout_is_seen():
    model, _ = build("t5")
    part = model.encoder.block[0].layer[0]
    part.dropout = nn.Tanh()
    first, *others = attention_layers(model)
    assert NO_DROPOUT in first.caveats and not first.gains_known
    assert not any(NO_DROPOUT in layer.caveats for layer in others)
    part.dropout = nn.Linear(D, D)
    with pytest.raises(UnsupportedAttention, match="dropout is a Linear with weights of its own"):
        attention_layers(model)


def test_a_hook_within_a_compiled_output_is_seen():
    model, _ = build("bert")
    output = model.encoder.layer[0].attention.output
    output.register_forward_hook(lambda module, args, out: 2 * out)
    model.encoder.layer[0].attention.output = torch.compile(output)
    assert [HOOKED in layer.caveats for layer in attention_layers(model)] == [True, False]


def test_nothing_seen_is_not_fine():
    """A layer that the run does not reach is unverified, not right."""
    model, run = build("clip")
    checks = verify(model, lambda m: m.get_image_features(pixel_values=torch.randn(1, 3, 8, 8)))
    text = [c for c in checks if c.name.startswith("text_model")]
    assert text and all(c.problem.startswith("unverified") for c in text)
    assert all(c.ok for c in checks if c.name.startswith("vision_model"))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_falcon_grouped_is_refused_by_name():
    t = transformers
    config = t.FalconConfig(**TEXT, new_decoder_architecture=True, num_kv_heads=2)
    with pytest.raises(UnsupportedAttention, match=r"h\.0\.self_attention.*stored group by group"):
        attention_layers(t.FalconModel(config))


def test_a_block_with_other_norms_is_not_taken_for_one_without_gain():
    """Falcon's new decoder has ln_attn where the tables know input_layernorm."""
    config = transformers.FalconConfig(**TEXT, num_kv_heads=H, new_decoder_architecture=True)
    layers = attention_layers(transformers.FalconModel(config))
    assert not any(layer.gains_known for layer in layers)
    with pytest.raises(UnsupportedAttention, match="fold=True is refused"):
        mimetic.measure(layers, fold=True)


@pytest.mark.parametrize(
    ("kind", "crosses"),
    [
        ("pix2struct", "encoder_decoder_attention.attention"),
        ("kosmos-2", "image_to_text_projection.x_attn"),
        ("edgetam", "final_attn_token_to_image"),
    ],
)
def test_cross_attention_under_other_names_is_left_alone(kind, crosses):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = plan_transformers(kind).make()
        kinds = {layer.name: layer.kind for layer in attention_layers(model)}
        named = [name for name in kinds if name.endswith(crosses)]
        assert named and all(kinds[name] == "cross" for name in named)
        assert not set(named) & {layer.name for layer in mimetic.mimetic_init_(model)}


def test_attention_in_a_projection_around_a_known_layer_is_refused():
    """Aria's has q_proj, k_proj and v_proj in front of an nn.MultiheadAttention: neither alone is the layer."""
    from transformers.models.aria.modeling_aria import AriaCrossAttention

    small = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, intermediate_size=64)
    config = transformers.AriaConfig(
        text_config=small | {"vocab_size": 50}, vision_config=small | {"model_type": "idefics3_vision"}
    )
    with pytest.raises(UnsupportedAttention, match="AriaCrossAttention is not a known attention class"):
        mimetic.mimetic_init_(AriaCrossAttention(config), cross=True)


def test_latent_attention_is_refused_by_name():
    t = transformers
    config = t.DeepseekV3Config(
        **{**TEXT, "num_key_value_heads": H},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    )
    with pytest.raises(UnsupportedAttention, match=r"layers\.0\.self_attn.*DeepseekV3Attention"):
        attention_layers(t.DeepseekV3Model(config))


def clvp_encoder(rotary=True):
    small = dict(
        hidden_size=256,
        projection_dim=256,
        num_attention_heads=4,
        num_hidden_layers=1,
        intermediate_size=64,
        vocab_size=50,
    )
    return transformers.models.clvp.modeling_clvp.ClvpEncoder(
        transformers.ClvpEncoderConfig(use_rotary_embedding=rotary, **small)
    )


def test_rotated_values_are_refused():
    encoder = clvp_encoder()
    for part in (encoder, encoder.layers[0]):  # in the block alone it is not known whether there is a rotation
        with pytest.raises(UnsupportedAttention, match="self_attn: RoPE rotates the values, too"):
            mimetic.mimetic_init_(part)
    plain = clvp_encoder(rotary=False).eval()
    (check,) = verify(plain, lambda m: m(inputs_embeds=torch.randn(2, 6, 256)))
    assert check.ok and not check.caveats


@pytest.mark.parametrize("kind", ["Wav2Vec2Conformer", "Wav2Vec2Bert", "SeamlessM4T"])
def test_tokens_rotated_before_the_weights_are_refused(kind):
    t = transformers
    small = dict(hidden_size=D, num_attention_heads=H, num_hidden_layers=1, intermediate_size=48)
    small |= (
        dict(speech_encoder_attention_heads=H, speech_encoder_layers=1, speech_encoder_intermediate_size=48)
        if kind == "SeamlessM4T"
        else {}
    )
    config = getattr(t, f"{kind}Config")(**small, position_embeddings_type="rotary")
    cls = (
        t.models.seamless_m4t.modeling_seamless_m4t.SeamlessM4TConformerEncoder
        if kind == "SeamlessM4T"
        else getattr(t, f"{kind}Model")
    )
    with pytest.raises(UnsupportedAttention, match="self_attn: RoPE rotates the tokens by position before W_Q and W_K"):
        attention_layers(cls(config))


def test_queries_and_keys_that_are_pooled_apart_are_passed_over():
    model = transformers.EfficientLoFTRModel(
        transformers.EfficientLoFTRConfig(hidden_size=256, num_attention_heads=H, num_attention_layers=1)
    )
    with pytest.raises(UnsupportedAttention, match="no attention layer found .*pooled in different ways"):
        mimetic.mimetic_init_(model)


def caveats_of(model):
    return {caveat for layer in attention_layers(model) if layer.kind == "self" for caveat in layer.caveats}


@pytest.mark.parametrize("kind", ["mpt", "olmo"])
def test_clamped_projections_are_verified_without_the_clamp(kind):
    t = transformers
    if kind == "mpt":
        sizes = dict(d_model=D, n_heads=H, n_layers=1, vocab_size=64)
        model = t.MptModel(t.MptConfig(**sizes, attn_config={"clip_qkv": 1e-3}))
    else:
        model = t.OlmoModel(t.OlmoConfig(**TEXT, clip_qkv=1e-3))
    run = lambda m: m(torch.arange(8)[None], use_cache=False)  # noqa: E731
    for check in verify(model, run):
        assert check.ok and CLAMPED in check.needs, check
    layers = [dataclasses.replace(layer, caveats=()) for layer in attention_layers(model)]
    assert not any(check.ok for check in verify(model, run, layers=layers))


def test_caveats_that_a_config_asks_for():
    t = transformers
    gpt = dict(n_embd=D, n_head=H, n_layer=LAYERS, n_positions=32, **IDS)
    deberta = lambda kinds: t.DebertaV2Model(t.DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=kinds))  # noqa: E731
    mpt = lambda **more: t.MptModel(t.MptConfig(d_model=D, n_heads=H, n_layers=1, vocab_size=64, attn_config=more))  # noqa: E731
    olmo = lambda **more: t.OlmoModel(t.OlmoConfig(**TEXT, **more))  # noqa: E731
    assert caveats_of(deberta(["c2p", "p2c"])) == caveats_of(deberta(["p2c"])) == {UNSCALED}
    assert not caveats_of(deberta([]))
    assert caveats_of(mpt(softmax_scale=0.9)) == {UNSCALED}
    assert caveats_of(mpt(clip_qkv=6.0)) == {CLAMPED}
    assert not caveats_of(mpt())
    assert caveats_of(t.ImageGPTModel(t.ImageGPTConfig(**gpt, scale_attn_weights=False))) == {UNSCALED}
    layers = attention_layers(t.ImageGPTModel(t.ImageGPTConfig(**gpt, scale_attn_by_inverse_layer_idx=True)))
    assert [layer.caveats for layer in layers] == [(), (UNSCALED,)]  # the first is divided by 1
    assert caveats_of(olmo(clip_qkv=6.0)) == {ROPE, CLAMPED} and caveats_of(olmo()) == {ROPE}
    falcon = lambda alibi: t.FalconModel(t.FalconConfig(**TEXT, alibi=alibi, multi_query=False))  # noqa: E731
    assert caveats_of(falcon(False)) == {ROPE} and not caveats_of(falcon(True))


def test_the_scale_of_disentangled_attention_is_that_of_its_forward():
    model = transformers.DebertaV2Model(
        transformers.DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ).eval()
    make_generic(model)
    check = verify(model, lambda m: ids(m, tokens=6))[0]
    assert check.ok and check.scale == pytest.approx(3**-0.5, rel=1e-3), check


def test_idefics_rotates_and_gpt_oss_has_sinks():
    t = transformers
    vision = dict(
        embed_dim=16, image_size=8, patch_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    idefics = t.IdeficsConfig(
        **TEXT, additional_vocab_size=0, vision_config=vision, use_resampler=False, cross_layer_interval=1
    )
    assert caveats_of(t.models.idefics.modeling_idefics.IdeficsDecoderLayer(idefics, layer_idx=0)) == {ROPE}
    assert caveats_of(t.GptOssModel(t.GptOssConfig(**DECODER, num_local_experts=2))) == {ROPE, SINKS}


def test_the_gate_of_a_position_bias_is_not_one_of_the_heads():
    config = transformers.WavLMConfig(
        **TEXT, conv_dim=(8,), conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1
    )
    assert caveats_of(transformers.WavLMModel(config)) == {BIAS_GATE}


def test_bare_bert_attention_is_refused():
    """The output matrix lies in a sibling: without the block there is no V.proj."""
    model, _ = build("bert")
    with pytest.raises(UnsupportedAttention, match="beside this one"):
        attention_layers(model.encoder.layer[0].attention.self)


def test_in_a_block_of_ones_own_nothing_is_taken_for_the_output_matrix():
    bert = transformers.models.bert.modeling_bert

    class Mine(torch.nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.attention, self.output = attention, torch.nn.Linear(D, D)

    model, _ = build("bert")
    mine = Mine(model.encoder.layer[0].attention.self)
    before = mine.output.weight.clone()
    with pytest.raises(
        UnsupportedAttention,
        match=(
            "attention: the output matrix lies in a module beside this one, and Mine, which uses it, is none of"
            " transformers"
        ),
    ):
        mimetic.mimetic_init_(mine)
    assert torch.equal(before, mine.output.weight)

    class Around(bert.BertAttention):  # the block itself may be one's own, if it computes what BERT's does
        pass

    model.encoder.layer[0].attention.__class__ = Around
    assert len(attention_layers(model)) == LAYERS


def subclassed(module):
    """The module, its class now a bare subclass of its own."""
    module.__class__ = type("My" + type(module).__name__, (type(module),), {})
    return module


def _bert():
    return transformers.BertModel(transformers.BertConfig(**TEXT)).eval()


def _subclassed(attention):
    class Negative(type(attention.output)):
        def forward(self, hidden_states, input_tensor):
            return self.LayerNorm(input_tensor - self.dense(hidden_states))

    attention.output.__class__ = Negative


def _exchanged(attention):
    class Bottleneck(torch.nn.Module):
        def __init__(self, dense):
            super().__init__()
            self.dense, self.after = dense, torch.nn.Linear(D, D)

        def forward(self, hidden_states, input_tensor):
            return input_tensor + self.after(self.dense(hidden_states))

    attention.output = Bottleneck(attention.output.dense)


@pytest.mark.parametrize("change", [
    _subclassed, _exchanged, lambda a: setattr(a.output, "forward", lambda hidden_states, input_tensor: input_tensor),
    lambda a: setattr(a, "forward", lambda hidden_states, *args, **kwargs: (hidden_states,)),
], ids=["a subclass", "another module", "its forward replaced", "that of the block replaced"])  # fmt: skip
def test_an_output_matrix_in_a_changed_module_is_refused(change):
    model = _bert()
    change(model.encoder.layer[1].attention)
    with pytest.raises(
        UnsupportedAttention,
        match=(
            r"encoder\.layer\.1\.attention\.self: the output matrix lies in a module beside this one, and .* is not"
            r" known"
        ),
    ):
        mimetic.mimetic_init_(model)
    assert len(attention_layers(model.encoder.layer[0])) == 1


def test_the_output_matrix_of_bert_is_read_where_it_lies_or_refused_for_what_it_is():
    pruned, compiled, hooked = _bert(), _bert(), _bert()
    prune.l1_unstructured(pruned.encoder.layer[0].attention.output.dense, "weight", 0.5)
    with pytest.raises(UnsupportedAttention, match="proj is parametrised or has no plain weight"):
        attention_layers(pruned)
    compiled.encoder.layer[0].attention.output.dense = torch.compile(compiled.encoder.layer[0].attention.output.dense)
    compiled.encoder.layer[0].attention.output = torch.compile(compiled.encoder.layer[0].attention.output)
    assert len(attention_layers(compiled)) == LAYERS
    hooked.encoder.layer[0].attention.output.register_forward_hook(lambda module, args, out: 2 * out)
    assert [layer.caveats for layer in attention_layers(hooked)] == [(HOOKED,), ()]
    hooked.encoder.layer[0].attention.output.dense.register_forward_hook(lambda module, args, out: 2 * out)
    assert attention_layers(hooked)[0].caveats == (HOOKED,)


def test_a_bare_subclass_keeps_what_is_known_of_its_class():
    llama, run = build("llama")
    gains = [layer.in_gain is not None for layer in attention_layers(llama)]
    for block in llama.layers:
        subclassed(block), subclassed(block.self_attn)
    assert caveats_of(llama) == {ROPE}
    assert [layer.in_gain is not None for layer in attention_layers(llama)] == gains == [True] * LAYERS
    gemma = transformers.Gemma2Model(transformers.Gemma2Config(**DECODER, query_pre_attn_scalar=8))
    subclassed(gemma.layers[0])
    assert all(OUT_NORM in layer.caveats for layer in attention_layers(gemma))
    encoder = clvp_encoder()
    subclassed(encoder.layers[0]), subclassed(encoder.layers[0].self_attn)
    with pytest.raises(UnsupportedAttention, match="rotates the values, too"):
        attention_layers(encoder)


def test_settings_that_change_the_products_are_refused_or_said():
    small = dict(TEXT, embedding_size=D, max_position_embeddings=64)
    with pytest.raises(UnsupportedAttention, match="rotates the values, too"):
        attention_layers(transformers.RoFormerModel(transformers.RoFormerConfig(**small, rotary_value=True)))
    assert caveats_of(transformers.RoFormerModel(transformers.RoFormerConfig(**small))) == {ROPE}
    luke = dict(TEXT, entity_vocab_size=8, entity_emb_size=D)
    assert caveats_of(transformers.LukeModel(transformers.LukeConfig(**luke))) == {OTHER_QUERIES}
    assert (
        caveats_of(transformers.LukeModel(transformers.LukeConfig(**luke, use_entity_aware_attention=False))) == set()
    )


def test_a_part_of_the_forward_that_was_replaced_is_seen():
    own = transformers.models.gpt_neo.modeling_gpt_neo.GPTNeoSelfAttention
    model = plan_transformers("gpt_neo").make()
    attention = model.h[0].attn.attention
    attention._attn = lambda *args, **kwargs: None
    with pytest.raises(UnsupportedAttention, match=r"h\.0\.attn\.attention: its forward was replaced"):
        attention_layers(model)
    del attention._attn
    attention_layers(model)
    attention.__class__ = type("Other", (own,), {"_attn": lambda self, *args, **kwargs: None})
    says = "Other overrides the forward of GPTNeoSelfAttention, or a part of it"
    with pytest.raises(UnsupportedAttention, match=says):
        attention_layers(model)
    attention.__class__ = type("Same", (own,), {"helper": lambda self: None})
    attention_layers(model)


def test_pooling_head_is_passed_over():
    model, _ = build("siglip")
    names = [layer.name for layer in attention_layers(model)]
    assert len(names) == LAYERS and not any("head" in n for n in names)


def test_hooks_that_only_record_are_no_caveat():
    """transformers keeps attention maps by hooks, which a backbone has from the start."""
    config = transformers.VitPoseBackboneConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=[32, 32], patch_size=[8, 8]
    )
    model = transformers.VitPoseBackbone(config)
    layers = attention_layers(model)
    assert len(layers) == 2 and not any(layer.caveats for layer in layers)
    model.encoder.layer[0].attention.attention.register_forward_hook(lambda *_: None)
    assert [HOOKED in layer.caveats for layer in attention_layers(model)] == [True, False]
