"""Whole models of other libraries by name: what a default keeps of a model, what a
control may touch, wherever the weights are.
"""

import copy
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import mimetic
from mimetic import attention_layers, defaults, initializers
from mimetic.models.blocks import SelfAttention
from mimetic.models.vit import ViT, ViTConfig


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vit():
    return ViT(ViTConfig(img_size=8, patch_size=4, d_model=32, depth=2, num_heads=2, num_classes=3))


def initialised(model, name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mimetic.MimeticWarning)
        mimetic.initialize_(model, name, generator=seeded(), **options)
    return model


# --- what is touched -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options",
    [
        ("mimetic", {"qk_rank": 2}),
        ("mimetic-random-directions", {}),
        ("mimetic-untransposed", {}),
        ("timm-rescaled", {}),
    ],
)
def test_controls_leave_cross_attention_alone(name, options):
    plain = initialised(
        nn.TransformerDecoderLayer(16, 2), "timm", **{k: v for k, v in options.items() if k != "qk_rank"}
    )
    model = initialised(nn.TransformerDecoderLayer(16, 2), name, **options)
    for part in ("in_proj_weight", "out_proj.weight"):
        assert torch.equal(model.multihead_attn.get_parameter(part), plain.multihead_attn.get_parameter(part))
        assert not torch.equal(model.self_attn.get_parameter(part), plain.self_attn.get_parameter(part))


@pytest.mark.parametrize("name, options", [("mimetic", {"qk_rank": 4}), ("mimetic-untransposed", {})])
def test_controls_treat_shared_parameters_once(name, options):
    single, tied = initialised(vit(), name, **options), vit()
    for part in ("qkv", "proj"):
        getattr(tied.blocks[1].attn, part).weight = getattr(tied.blocks[0].attn, part).weight
    layer = attention_layers(initialised(tied, name, **options))[0]
    assert torch.linalg.matrix_rank(layer.qk(0)) == torch.linalg.matrix_rank(attention_layers(single)[0].qk(0))
    # a second time round it would be stored as it should be, with a constant diagonal
    assert (layer.vp().diagonal().std() > 0.1) == (name == "mimetic-untransposed")


def test_what_a_control_is_not_for_is_refused_before_anything_is_written():
    wide = SelfAttention(16, 2)
    wide.qkv, wide.proj, wide.head_dim = nn.Linear(16, 192), nn.Linear(64, 16), 32
    before = copy.deepcopy(wide.state_dict())
    with pytest.raises(ValueError, match="heads that are no larger than the model is wide, here 32 and 16"):
        mimetic.initialize_(wide, "mimetic", qk_rank=16)
    for name in initializers.CONTROLS:
        with pytest.raises(ValueError, match=f"{name} is for layers of .* not 2 \\* 32 in width 16"):
            mimetic.initialize_(wide, name)
    assert all(torch.equal(v, before[k]) for k, v in wide.state_dict().items())


@pytest.mark.parametrize("name", defaults.DEFAULTS)
def test_what_a_module_sets_of_its_parts_stays(name):
    timm_cr = pytest.importorskip("timm.models.swin_transformer_v2_cr")
    swin = timm_cr.SwinTransformerV2Cr(
        img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2)
    )
    assert swin.stages[0].blocks[0].norm1.weight.abs().max() == 0  # a residual branch that starts at zero
    if name != "gpt2":
        assert initialised(swin, name).stages[0].blocks[0].norm1.weight.abs().max() == 0
    attention = nn.TransformerEncoderLayer(16, 2)
    assert initialised(attention, name).self_attn.out_proj.bias.abs().max() == 0


def test_other_modules_stay_in_their_mode():
    model = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, batch_first=True) for _ in range(2))).train()
    model[0].eval()
    from mimetic.verify import verify

    verify(model, lambda m: m(torch.randn(2, 5, 16)))
    assert not model[0].training and not model[0].norm1.training and model[1].norm1.training


def test_frozen_layers_are_warned_of():
    model = vit()
    model.blocks[0].requires_grad_(False)
    with pytest.warns(mimetic.MimeticWarning, match=r"blocks\.0\.attn: frozen"):
        mimetic.mimetic_init_(model)


# --- single defaults -------------------------------------------------------------------------------------------------


def residual_std(model, *names):
    return [model.get_parameter(name).std().item() for name in names]


def test_gpt2_finds_the_residual_layers_of_other_libraries():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(128, 4, 256), 8, enable_nested_tensor=False)
    names = ("layers.3.self_attn.out_proj.weight", "layers.3.linear2.weight")
    assert residual_std(initialised(encoder, "gpt2"), *names) == pytest.approx([0.02 / 4] * 2, rel=0.05)
    assert encoder.layers[3].linear1.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("family, names", [
    ("LlamaModel", ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight")),
    ("CLIPVisionModel", ("layers.1.self_attn.out_proj.weight", "layers.1.mlp.fc2.weight")),
    ("BertModel", ("encoder.layer.1.attention.output.dense.weight", "encoder.layer.1.output.dense.weight")),
    ("GPT2Model", ("h.1.attn.c_proj.weight", "h.1.mlp.c_proj.weight")),
])  # fmt: skip
def test_gpt2_finds_those_of_transformers(family, names):
    transformers = pytest.importorskip("transformers")
    config_class = getattr(transformers, family).config_class
    sizes = (
        {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 50}
        if family == "GPT2Model"
        else {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": 50,
            "image_size": 32,
            "patch_size": 16,
        }
    )
    model = initialised(getattr(transformers, family)(config_class(**sizes)), "gpt2")
    every = dict(model.named_parameters())
    names = [next(full for full in every if full.endswith(name)) for name in names]
    assert residual_std(model, *names) == pytest.approx([0.02 / 2] * 2, rel=0.1)
    if family == "BertModel":  # the vector of padding stays 0
        assert model.embeddings.word_embeddings.padding_idx == 0
        assert model.embeddings.word_embeddings.weight[0].abs().max() == 0
        assert initialised(model, "bert").embeddings.word_embeddings.weight[0].abs().max() == 0


def test_gpt2_says_when_it_finds_none():
    model = nn.Sequential(nn.Linear(4, 4))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="found no projection of attention: no layer is called attn.proj, "):
        mimetic.initialize_(model, "gpt2")
    assert torch.equal(model[0].weight, before)


def test_xavier_takes_a_fused_conv1d_apart():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Module()
    model.c_attn = pytorch_utils.Conv1D(3 * 32, 32)
    assert initialised(model, "xavier").c_attn.weight.abs().max().item() == pytest.approx((6 / 64) ** 0.5, rel=0.01)


def test_old_weight_norm_is_named():
    model = nn.Sequential(nn.Linear(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0])
    with pytest.warns(mimetic.MimeticWarning, match="no rule for 0.weight_"):
        mimetic.initialize_(model, "timm")


# --- types, devices, processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "name, options",
    [
        ("mimetic", {"qk_rank": 4}),
        ("mimetic-random-directions", {}),
        ("mimetic-untransposed", {}),
        ("timm-rescaled", {}),
    ],
)
def test_controls_in_any_precision(name, options, dtype):
    layer, reference = (attention_layers(initialised(vit().to(t), name, **options))[0] for t in (dtype, torch.float32))
    assert torch.linalg.matrix_rank(layer.q[:, 0].float(), rtol=0.02) == torch.linalg.matrix_rank(
        reference.q[:, 0], rtol=0.02
    )
    assert layer.vp().float().norm() == pytest.approx(reference.vp().norm().item(), rel=0.2)


def test_the_cuda_generators_are_left_alone(monkeypatch):
    seeded_gpus = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_gpus.append)
    model, state = vit(), torch.get_rng_state()
    initialised(model, "mimetic")
    assert not seeded_gpus and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["timm", "gpt2", "mimetic", "mimetic-random-directions", "timm-rescaled"])
def test_weights_on_another_device_are_made_on_the_cpu(name, monkeypatch):
    """The copy that a device asks for, made without one."""
    reference, model = initialised(vit(), name), vit()
    model.register_buffer("steps", torch.ones(3))
    on_cpu, copies = initializers._on_cpu, []

    def copied(bare):
        with monkeypatch.context() as patch:
            patch.setattr(initializers, "_here", lambda t: False)
            copies.append(on_cpu(bare))
        return copies[-1]

    monkeypatch.setattr(initializers, "_on_cpu", copied)
    before = {n: (p, p.data_ptr()) for n, p in model.named_parameters()}
    initialised(model, name)
    assert copies[0] is not model
    assert {id(p) for p in copies[0].parameters()}.isdisjoint(id(p) for p in model.parameters())
    for n, p in model.named_parameters():
        assert (p, p.data_ptr()) == before[n] and torch.equal(p, reference.get_parameter(n)), n


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # of the generator
@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_the_same_whole_model_on_a_gpu(name, device):
    reference, model = vit(), vit().cuda()
    state = torch.cuda.get_rng_state()
    for m in (reference, model):
        mimetic.initialize_(m, name, generator=torch.Generator(device).manual_seed(0))
    for n, p in model.named_parameters():
        assert torch.equal(p.cpu(), reference.get_parameter(n)), n
    assert torch.equal(state, torch.cuda.get_rng_state())


WORK = """
import os, sys, torch, mimetic, torch._dynamo
from mimetic.models.vit import ViT, ViTConfig
rank = int(os.fork() == 0)  # what takes seconds, once: PyTorch, and what its replicas import
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=rank, world_size=2)
torch.manual_seed(rank)  # the processes' own random numbers differ
replicate = torch.nn.parallel.DistributedDataParallel
layer = replicate(torch.nn.Sequential(torch.nn.MultiheadAttention(32, 4)))
config = ViTConfig(img_size=8, patch_size=4, d_model=32, depth=1, num_heads=2, num_classes=3)
model = replicate(ViT(config))
mimetic.mimetic_init_(layer)
mimetic.initialize_(model, "mimetic")
torch.save([layer.module.state_dict(), model.module.state_dict()], f"{sys.argv[1]}/{rank}.pt")
torch.distributed.destroy_process_group()
sys.exit(rank == 0 and os.wait()[1])
"""


def test_replicas_in_several_processes_stay_equal(tmp_path):
    subprocess.run([sys.executable, "-c", WORK, str(tmp_path)], check=True, timeout=120)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for mine, other in zip(first, second, strict=True):
        assert all(torch.equal(v, other[k]) for k, v in mine.items())
    packed = first[0]["0.in_proj_weight"]
    assert packed.norm() / packed.shape[1] ** 0.5 > 0.5  # not as it was


def test_a_device_without_float64():
    """Apple's MPS: there .double() raises."""
    from mimetic.construct import double

    class Mps:
        device = torch.device("mps")

        def cpu(self):
            return torch.ones(2)

    assert double(Mps()).dtype is torch.float64 and double(torch.ones(2)).dtype is torch.float64


def test_nothing_is_written_where_it_would_fail_later():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.lock = vit().blocks[0].attn, threading.Lock()

    expanded, quantised = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    expanded[0].weight = nn.Parameter(torch.zeros(1, 4).expand(4, 4))
    quantised[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    dynamic = nn.Sequential(vit(), torch.ao.nn.quantized.dynamic.Linear(4, 4))
    wide = nn.MultiheadAttention(48, 3)
    for model, name, options, error, words in (
        (vit(), "mimetic", {"qk_rank": 4.0}, ValueError, "qk_rank must be between 1 and the head size"),
        (vit(), "mimetic", {"qk_rank": "4"}, ValueError, "qk_rank must be between 1 and the head size"),
        (vit(), "mimetic", {"spec": "vision"}, TypeError, "spec must be a MimeticSpec"),
        (Locked(), "timm-rescaled", {}, TypeError, "lock"),
        (expanded, "timm", {}, ValueError, "0.weight is expanded"),
        (quantised, "timm", {}, ValueError, "0.weight has dtype torch.int8"),
        (dynamic, "timm", {}, ValueError, "1 is quantised"),
        (nn.LazyLinear(4), "timm", {}, ValueError, "weight is not initialised yet"),
    ):
        there = {
            n: p.detach().clone() for n, p in model.named_parameters() if not isinstance(p, nn.UninitializedParameter)
        }
        with pytest.raises(error, match=words):
            mimetic.initialize_(model, name, **options)
        assert all(torch.equal(p, there[n]) for n, p in model.named_parameters() if n in there), words
    with pytest.raises(TypeError, match="expected a torch.nn.Module, got NoneType"):
        mimetic.initialize_(None, "timm")
    mimetic.initialize_(wide, "mimetic")


def test_what_a_reset_leaves_is_said():
    class Low(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.A = nn.Parameter(torch.randn(4, 2))

    class Data(nn.Module):
        """Its reset goes around autograd's count of writes."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def reset_parameters(self):
            self.w.data.normal_()

    pruned = nn.Sequential(nn.Linear(4, 4))
    prune.random_unstructured(pruned[0], "weight", 0.5)
    for model, left in ((nn.Sequential(Low()), "0.A"), (pruned, "0.weight_orig")):
        with pytest.warns(mimetic.MimeticWarning, match=f"no rule for {left}: left as they were"):
            mimetic.initialize_(model, "timm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mimetic.initialize_(nn.Sequential(Data(), nn.Linear(4, 4), nn.LayerNorm(4)), "timm")


def test_half_precision_has_no_entries_at_the_cut():
    """PyTorch 2.6's trunc_normal_ puts one in a few hundred at the cut, a hundred standard deviations away."""
    for dtype in (torch.bfloat16, torch.float16):
        layer = nn.Linear(200, 200).to(dtype)
        mimetic.initialize_(layer, "timm")
        assert layer.weight.abs().max() < 0.2


def test_fused_and_residual_layers_by_name():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.mlp = nn.Module(), nn.Module()
            self.attn.to_qkv, self.attn.proj, self.mlp.fc2 = nn.Linear(48, 144), nn.Linear(48, 48), nn.Linear(96, 48)

    model = nn.Module()
    model.blocks, model.head = nn.ModuleList([Block(), Block()]), nn.Module()
    model.head.fc2 = nn.Linear(48, 480)
    mimetic.initialize_(model, "xavier")
    assert model.blocks[0].attn.to_qkv.weight.detach().abs().max().item() == pytest.approx((6 / 96) ** 0.5, rel=0.02)
    mimetic.initialize_(model, "gpt2")
    assert model.head.fc2.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[1].mlp.fc2.weight.std().item() == pytest.approx(0.01, rel=0.05)
