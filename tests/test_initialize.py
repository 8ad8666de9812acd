"""mimetic_init_: what it writes, elementwise; what it leaves; what it refuses; reproducibility."""

import copy
import functools
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import mimetic
from mimetic import (
    LANGUAGE,
    VISION,
    MimeticSpec,
    MimeticWarning,
    UnsupportedAttention,
    attention_layers,
    mimetic_init_,
    semi_diagonal,
)
from mimetic.adapters import READERS
from mimetic.adapters.torch_nn import ZERO
from mimetic.adapters.views import HOOKED
from mimetic.models.blocks import Block, SelfAttention
from mimetic.models.vit import ViT, ViTConfig
from mimetic.plan import plan

CONFIG = ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=3, d_model=48, depth=2, num_heads=3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vit():
    torch.manual_seed(1)
    return ViT(CONFIG)


def best_rank_k(A, k):
    U, S, Vt = np.linalg.svd(A.double().numpy())
    return torch.from_numpy((U[:, :k] * S[:k]) @ Vt[:k]).float()


def check_targets(layers, generator, spec=VISION, atol=2e-6):
    """Every product, elementwise, against targets drawn here from the same generator in the documented order."""
    for layer in layers:
        d = layer.d_model
        for h in range(layer.num_heads):
            target = semi_diagonal(d, spec.qk_alpha, spec.qk_beta, generator=generator)
            torch.testing.assert_close(layer.qk(h), best_rank_k(target, layer.head_dim), atol=atol, rtol=0)
        target = semi_diagonal(d, spec.vp_alpha, spec.vp_beta, generator=generator)
        torch.testing.assert_close(layer.vp(), target, atol=atol, rtol=0)


def test_products_are_the_targets_elementwise():
    model = vit()
    mimetic_init_(model, generator=seeded())
    check_targets(attention_layers(model), seeded())


def test_the_forward_pass_sees_them():
    """One token gives V.proj: attention over one token is the identity."""
    model = vit()
    mimetic_init_(model, generator=seeded())
    attn = model.blocks[0].attn
    basis = torch.eye(48)[:, None]  # 48 sequences of one token
    torch.testing.assert_close(attn(basis)[:, 0], attention_layers(model)[0].vp(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("qk, vp", [(True, False), (False, True)])
def test_only_what_was_asked_for_is_written(qk, vp):
    model = vit()
    for p in model.parameters():  # so that zeroed biases show
        nn.init.normal_(p)
    before = copy.deepcopy(model.state_dict())
    mimetic_init_(model, qk=qk, vp=vp, generator=seeded())
    d = 48
    for name, after in model.state_dict().items():
        same = after == before[name]
        if name.endswith("attn.qkv.weight") or name.endswith("attn.qkv.bias"):
            assert same[: 2 * d].all().item() is not qk and same[2 * d :].all().item() is not vp
            assert same[: 2 * d].any().item() is not qk and same[2 * d :].any().item() is not vp
        elif ".attn.proj." in name:
            assert same.all().item() is not vp
        else:
            assert same.all(), name


def test_biases():
    model = vit()
    nn.init.ones_(model.blocks[0].attn.qkv.bias)
    mimetic_init_(model, biases="keep")
    assert model.blocks[0].attn.qkv.bias.eq(1).all()
    written = mimetic_init_(model, biases="zero")
    assert not model.blocks[0].attn.qkv.bias.any() and not model.blocks[0].attn.proj.bias.any()
    assert written[0].zeroed_biases == ("q_bias", "k_bias", "v_bias", "proj_bias")


def test_returns_what_it_wrote():
    model = vit()
    written = mimetic_init_(model, generator=seeded())
    table = pd.DataFrame(written)
    assert list(table.name) == ["blocks.0.attn", "blocks.1.attn"]
    for row, layer in zip(written, attention_layers(model)):
        qk = torch.stack([layer.qk(h).diagonal().mean() for h in range(3)]).mean().item()
        assert row.qk_diagonal == pytest.approx(qk, abs=1e-5) and row.qk_target == (0.7, 0.7)
        assert row.vp_diagonal == pytest.approx(layer.vp().diagonal().mean().item(), abs=1e-5)
        assert row.vp_target == (
            0.4,
            -0.4,
        )
    assert mimetic_init_(vit(), qk=False)[0].qk_target is None


def test_generator_makes_it_reproducible_and_nothing_else_is_used():
    one, two, other = vit(), vit(), vit()
    state = torch.get_rng_state()
    mimetic_init_(one, generator=seeded(5))
    assert torch.equal(state, torch.get_rng_state())
    mimetic_init_(two, generator=seeded(5))
    mimetic_init_(other, generator=seeded(6))
    weights = [m.blocks[1].attn.qkv.weight for m in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    torch.manual_seed(9)
    mimetic_init_(one)
    torch.manual_seed(9)
    mimetic_init_(two)
    assert torch.equal(one.blocks[1].attn.qkv.weight, two.blocks[1].attn.qkv.weight)


def test_one_value_a_layer():
    model = vit()
    mimetic_init_(model, MimeticSpec(vp_alpha=0.1, vp_beta=(-0.2, 0.6)), generator=seeded())
    means = [layer.vp().diagonal().mean().item() for layer in attention_layers(model)]
    assert means == pytest.approx([-0.2, 0.6], abs=0.02)
    with pytest.raises(ValueError, match="vp_beta has 3 values, the model has 2 layers"):
        mimetic_init_(model, MimeticSpec(vp_beta=(1, 2, 3)))


def test_presets():
    assert VISION == MimeticSpec(qk_alpha=0.7, qk_beta=0.7, vp_alpha=0.4, vp_beta=-0.4, noise="normal")
    assert LANGUAGE == MimeticSpec(qk_alpha=0.7, qk_beta=0.7, vp_alpha=0.4, vp_beta=0.4)


def test_truncated_diagonal_is_smaller_than_beta():
    torch.manual_seed(0)
    model = nn.Sequential(Block(192, 3))
    row = mimetic_init_(model, generator=seeded())[0]
    assert row.qk_diagonal == pytest.approx(0.39, abs=0.015)
    assert row.vp_diagonal == pytest.approx(-0.40, abs=0.01)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 2e-6)])
def test_dtypes(dtype, tolerance):
    model = vit().to(dtype)
    mimetic_init_(model, generator=seeded())
    assert model.blocks[0].attn.qkv.weight.dtype == dtype
    reference = vit()
    mimetic_init_(reference, generator=seeded())
    # factorised in float32, cast once at the end
    assert torch.equal(model.blocks[0].attn.qkv.weight, reference.blocks[0].attn.qkv.weight.to(dtype))
    torch.testing.assert_close(
        attention_layers(model)[0].vp().float(), attention_layers(reference)[0].vp(), atol=tolerance, rtol=0
    )


def test_alpha_zero_does_not_give_all_heads_the_same_directions():
    model = vit()
    mimetic_init_(model, MimeticSpec(qk_alpha=0.0), generator=seeded())
    layer = attention_layers(model)[0]
    assert layer.qk(0).diagonal().mean().item() == pytest.approx(0.7 / 3, abs=0.01)
    overlap = torch.trace(layer.qk(0) @ layer.qk(1)) / torch.trace(layer.qk(0) @ layer.qk(0))
    assert overlap < 0.6  # two random 16-dimensional subspaces of 48 share a third


# --- wrappers and sharing ---


def test_compiled_and_wrapped_models_have_plain_names():
    compiled = torch.compile(vit())
    assert [layer.name for layer in attention_layers(compiled)] == ["blocks.0.attn", "blocks.1.attn"]
    mimetic_init_(compiled, generator=seeded())
    check_targets(attention_layers(compiled), seeded())

    wrapped = nn.Module()
    wrapped.module = vit()  # what DDP and DataParallel do
    assert attention_layers(wrapped)[0].name == "blocks.0.attn"


def test_a_part_that_is_called_like_a_wrapper():
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(32, 4)})
    model.module = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 2)})
    written = mimetic_init_(model, generator=seeded())
    assert [layer.name for layer in written] == ["attn", "module.attn"]
    assert written[0].qk_diagonal != written[1].qk_diagonal


def test_constants_may_be_numpys():
    assert MimeticSpec(qk_alpha=np.float32(0.5)).layer(0, 1)["qk_alpha"] == 0.5
    assert MimeticSpec(qk_alpha=torch.tensor(0.5)) == MimeticSpec(qk_alpha=0.5)
    assert (
        MimeticSpec(qk_alpha=np.array([0.5, 0.25])).layer(1, 2)["qk_alpha"]
        == 0.25
        == MimeticSpec(qk_alpha=torch.tensor([0.5, 0.25])).layer(1, 2)["qk_alpha"]
    )


@pytest.mark.parametrize("value", [None, "0.7", float("nan"), True, (0.7, False), b"\x01", 10**400, np.ones((1, 2))])
def test_constants_that_are_none_are_named(value):
    with pytest.raises(ValueError, match="qk_beta must be a finite number or a sequence of them, one a layer; got"):
        MimeticSpec(qk_beta=value)


def test_a_forward_that_was_put_back_is_none_that_was_replaced():
    model = vit()
    qkv = model.blocks[0].attn.qkv
    qkv.forward = qkv.forward  # what restoring after a hook leaves: the class's own, in the instance
    model.blocks[1].attn.qkv._hf_hook = object()  # accelerate's: the forward before is the class's
    model.blocks[1].attn.qkv._old_forward, model.blocks[1].attn.qkv.forward = (
        model.blocks[1].attn.qkv.forward,
        lambda x: x,
    )
    assert len(attention_layers(model)) == 2
    model.blocks[0].attn.forward = model.blocks[1].attn.forward  # computes with the other's weights
    with pytest.raises(UnsupportedAttention, match=r"blocks\.0\.attn: its forward was replaced"):
        attention_layers(model)
    del model.blocks[0].attn.forward
    model.blocks[1].attn.qkv._old_forward = lambda x: x  # a LoRA below the hook
    with pytest.raises(UnsupportedAttention, match=r"blocks\.1\.attn: the forward of qkv was replaced"):
        attention_layers(model)


def test_other_tensors_of_a_model_may_be_of_any_kind():
    model = vit()
    model.register_buffer("graph", torch.eye(4).to_sparse())
    assert len(mimetic_init_(model, generator=seeded())) == 2


def test_a_registered_base_without_a_forward_stands_for_its_subclasses(monkeypatch):
    from mimetic.adapters import linear_in, linear_out

    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    class First(Base):
        def forward(self, x):
            return x

    class Second(First):
        def forward(self, x):
            return 2 * x

    def read(module, name, ancestors):
        parts = [linear_out(getattr(module, part), 2, name) for part in "qkv"]
        proj, bias = linear_in(module.o, 2, name)
        return mimetic.AttentionLayer(name, *(w for w, _ in parts), proj, *(b for _, b in parts), bias)

    monkeypatch.setattr("mimetic.adapters._CUSTOM", {})
    mimetic.register_adapter(Base, read)
    assert len(attention_layers(First())) == len(attention_layers(Second())) == 1
    monkeypatch.setattr("mimetic.adapters._CUSTOM", {})
    mimetic.register_adapter(First, read)
    with pytest.raises(UnsupportedAttention, match="overrides the forward of"):
        attention_layers(Second())


def test_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(vit())
        mimetic_init_(model, generator=seeded())
        check_targets(attention_layers(model), seeded())
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_what_fsdp_has_gathered_is_refused(one_process):
    """What is written there lies in copies, which the next pass makes anew from the shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def sharded():
        model = vit()
        for part in (*model.blocks, model):
            fully_shard(part, mesh=init_device_mesh("cpu", (1,)))
        return model

    model = sharded()
    model.unshard()
    for block in model.blocks:
        block.unshard()
    with pytest.raises(
        UnsupportedAttention, match=r"blocks\.0\.attn: FSDP has gathered .*: initialise before sharding"
    ):
        mimetic_init_(model)
    assert len(attention_layers(model)) == 2  # can be read
    with pytest.raises(UnsupportedAttention, match="DTensor"):
        mimetic_init_(sharded())


def test_parameters_of_the_older_fsdp_are_written_within_summon_only():
    inner = vit()

    class FullyShardedDataParallel(nn.Module):  # what is asked of torch's, which shards among several processes only
        def __init__(self, state):
            super().__init__()
            self.module, self.training_state = inner, SimpleNamespace(name=state)
            self._handle = SimpleNamespace(uses_sharded_strategy=True)

    with pytest.raises(UnsupportedAttention, match=r"blocks\.0\.attn: FSDP has gathered .* summon_full_params"):
        plan(FullyShardedDataParallel("IDLE"), MimeticSpec())
    assert len(plan(FullyShardedDataParallel("SUMMON_FULL_PARAMS"), MimeticSpec()).layers) == 2


@pytest.mark.parametrize("state", [SimpleNamespace(), SimpleNamespace(_fsdp_param_group=SimpleNamespace())])
def test_a_sharded_state_that_cannot_be_read_counts_as_gathered(state):
    model = vit()
    model._get_fsdp_state = lambda: state
    with pytest.raises(UnsupportedAttention, match=r"blocks\.0\.attn: FSDP has gathered its parameters"):
        mimetic_init_(model)
    state._fsdp_param_group = SimpleNamespace(is_unsharded=False)
    assert len(mimetic_init_(model)) == len(model.blocks)


def test_what_is_written_is_seen_by_autograd():
    """What a pass has kept for its backward pass is not what is there any more."""
    model = nn.MultiheadAttention(16, 2)
    x = torch.randn(3, 1, 16)
    loss = model(x, x, x)[0].square().sum()
    mimetic_init_(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tied_layers_are_written_once():
    model = vit()
    for name in ("qkv", "proj"):  # two modules, the same Parameters
        for part in ("weight", "bias"):
            setattr(getattr(model.blocks[1].attn, name), part, getattr(getattr(model.blocks[0].attn, name), part))
    written = mimetic_init_(model, generator=seeded())
    assert written[1].tied_to == "blocks.0.attn" and written[1].vp_diagonal == written[0].vp_diagonal
    check_targets(attention_layers(model)[:1], seeded())
    assert torch.equal(attention_layers(model)[1].vp(), attention_layers(model)[0].vp())


def test_half_shared_layers_are_refused_before_anything_is_written():
    model = vit()
    model.blocks[1].attn.proj.weight = model.blocks[0].attn.proj.weight
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedAttention, match=r"blocks\.1\.attn: shares some but not all .* blocks\.0\.attn"):
        mimetic_init_(model)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_one_weight_read_with_two_numbers_of_heads_is_refused():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(32, 4), "b": nn.MultiheadAttention(32, 8)})
    model["b"].in_proj_weight, model["b"].out_proj.weight = model["a"].in_proj_weight, model["a"].out_proj.weight
    with pytest.raises(UnsupportedAttention, match="b: shares some but not all .* or reads them in another way"):
        mimetic_init_(model)


def test_what_was_written_is_reported_in_the_models_order():
    model = nn.Sequential(*(Block(48, 3) for _ in range(3)))
    model[1].attn.qkv.weight, model[1].attn.proj.weight = model[0].attn.qkv.weight, model[0].attn.proj.weight
    written = mimetic_init_(model, generator=seeded())
    assert [(layer.name, layer.tied_to) for layer in written] == [
        ("0.attn", None),
        ("1.attn", "0.attn"),
        ("2.attn", None),
    ]


def test_tied_weights_with_biases_of_their_own():
    model = vit()
    for name in ("qkv", "proj"):
        getattr(model.blocks[1].attn, name).weight = getattr(model.blocks[0].attn, name).weight
        nn.init.normal_(getattr(model.blocks[1].attn, name).bias)
    written = mimetic_init_(model, generator=seeded())
    assert written[1].tied_to == "blocks.0.attn" and "q_bias" in written[1].zeroed_biases
    assert not model.blocks[1].attn.qkv.bias.any() and not model.blocks[1].attn.proj.bias.any()


def test_constants_of_tied_layers_are_counted_and_must_agree():
    model = vit()
    for name in ("qkv", "proj"):
        getattr(model.blocks[1].attn, name).weight = getattr(model.blocks[0].attn, name).weight
    mimetic_init_(model, mimetic.fit(model), generator=seeded())  # one value a layer, tied ones included
    with pytest.raises(ValueError, match=r"blocks\.1\.attn has the parameters of blocks\.0\.attn"):
        mimetic_init_(model, MimeticSpec(qk_alpha=(0.7, 0.3)))
    nn.init.normal_(model.blocks[1].norm1.weight)
    with pytest.raises(ValueError, match="fold=True\\) differ where their norms do"):
        mimetic_init_(model, mimetic.fit(model, fold=True))


def test_self_attention_tied_to_cross_attention_is_refused():
    layer = nn.TransformerDecoderLayer(32, 4)
    layer.multihead_attn.in_proj_weight, layer.multihead_attn.out_proj.weight = (
        layer.self_attn.in_proj_weight,
        layer.self_attn.out_proj.weight,
    )
    with pytest.raises(UnsupportedAttention, match="multihead_attn: cross-attention that shares its projections"):
        mimetic_init_(layer)


def test_a_weight_that_is_also_another_modules_is_refused():
    model = nn.Sequential(nn.MultiheadAttention(32, 4), nn.Linear(32, 32))
    model[1].weight = model[0].out_proj.weight
    assert unchanged_by(model, mimetic_init_, UnsupportedAttention)
    with pytest.raises(UnsupportedAttention, match=r"0: one of its weights is also 1\.weight, outside of attention"):
        mimetic_init_(model)
    assert len(mimetic_init_(model, vp=False)) == len(attention_layers(model)) == 1


def test_an_output_matrix_beside_its_layer_is_no_other_modules():
    """BERT's; tied to another layer's it has two holders for two layers, and a third is another module's."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=30
    )
    layers = transformers.BertModel(config).encoder.layer
    first, second = (layer.attention for layer in layers)
    for part in ("query", "key", "value"):
        getattr(second.self, part).weight = getattr(first.self, part).weight
    second.output.dense.weight = first.output.dense.weight
    # a further name from where the output matrix is not seen
    layers.attentions = nn.ModuleList([first.self, second.self])
    assert [w.tied_to for w in mimetic_init_(layers)] == [None, "0.attention.self"]
    layers[1].output.dense.weight = first.output.dense.weight
    with pytest.raises(UnsupportedAttention, match=r"and 1 more, outside of attention"):
        mimetic_init_(layers)


def test_a_self_attention_shared_beside_two_output_matrices_is_refused_by_name():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=30
    )
    model = transformers.BertModel(config)
    first, second = (layer.attention for layer in model.encoder.layer)
    second.self = first.self
    with pytest.raises(UnsupportedAttention) as refused:
        mimetic_init_(model)
    lines = str(refused.value).splitlines()
    assert len(lines) == 1 and "encoder.layer.0.attention.self: it is registered in several blocks" in lines[0]
    with_own = nn.Module()  # another class's output matrix beside it, found after the model's own and before
    with_own.attn, with_own.out = first.self, nn.Linear(32, 32)
    for place in ("last", "first"):
        pair = nn.ModuleDict({"bert": transformers.BertModel(config), "own": with_own})
        with_own.attn = pair["bert"].encoder.layer[0].attention.self
        if place == "first":
            pair._modules = {"own": pair._modules.pop("own"), **pair._modules}
        assert unchanged_by(pair, mimetic_init_, UnsupportedAttention)
    model = transformers.BertModel(config)  # a further name, with nothing beside it, is none of another layer
    model.watched = model.encoder.layer[0].attention.self
    model.all = nn.Sequential(*(layer.attention.self for layer in model.encoder.layer))
    assert len(mimetic_init_(model)) == 2
    model = transformers.BertModel(config)
    first, second = (layer.attention for layer in model.encoder.layer)
    second.self = first.self
    second.output = first.output  # one layer, used twice
    assert [w.name for w in mimetic_init_(model)] == ["encoder.layer.0.attention.self"]


def test_one_module_under_two_names():
    attention = nn.MultiheadAttention(32, 4)
    assert [w.name for w in mimetic_init_(nn.ModuleList([attention, nn.Sequential(attention)]))] == ["0"]
    block = nn.Module()
    block.self_attn = block.cross_attn = attention
    with pytest.raises(
        UnsupportedAttention,
        match="self_attn: one module, called cross_attn and self_attn, is cross and self attention at once",
    ):
        mimetic_init_(block)
    del block.cross_attn
    block.attn_pool = attention
    with pytest.raises(
        UnsupportedAttention, match="called attn_pool and self_attn, is pooling and self attention at once"
    ):
        mimetic_init_(block)


def test_a_reader_that_forgets_the_name(monkeypatch):

    class Layer(nn.MultiheadAttention):
        pass

    plain = READERS["torch.nn.modules.activation.MultiheadAttention"]
    monkeypatch.setattr(
        "mimetic.adapters._CUSTOM", {Layer: lambda module, name, ancestors: plain(module, "layer", ancestors)}
    )
    model = nn.Sequential(Layer(32, 4), Layer(32, 4))
    written = mimetic_init_(model, MimeticSpec(vp_beta=(-0.4, 0.4)), generator=seeded())
    assert [w.name for w in written] == ["0", "1"] and [w.vp_target[1] for w in written] == [-0.4, 0.4]
    assert [layer.vp().diagonal().mean() > 0 for layer in attention_layers(model)] == [False, True]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_a_projection_is_warned_of(register):
    """A LoRA as a hook; a hook on the layer itself, which looks at it, is none."""
    model = vit()
    handle = model.blocks[0].attn.register_forward_hook(lambda module, args, output: None)
    with pytest.warns(MimeticWarning, match=r"blocks\.0\.attn: a forward hook sits on it"):
        mimetic_init_(model)
    handle.remove()
    handle = getattr(model.blocks[1].attn.qkv, register)(lambda module, *args: None)
    with pytest.warns(MimeticWarning, match=r"blocks\.1\.attn: a forward hook sits on it or on one of its projections"):
        mimetic_init_(model)
    handle.remove()
    assert not attention_layers(model)[1].caveats


def test_a_hook_on_what_is_wrapped_around_a_projection_is_warned_of():
    model = vit()
    compiled = model.blocks[0].attn.qkv = torch.compile(model.blocks[0].attn.qkv, backend="eager")
    compiled.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.warns(MimeticWarning, match=r"blocks\.0\.attn: a forward hook sits on it or on one of its projections"):
        mimetic_init_(model)


def test_one_module_in_two_places_has_the_norm_of_neither():
    """Each place has a gain of its own, so what is folded in would be one block's."""
    a, b = (nn.TransformerEncoderLayer(16, 2, 32, norm_first=True) for _ in range(2))
    b.self_attn = a.self_attn
    (layer,) = attention_layers(nn.ModuleList([a, b]))
    assert not layer.gains_known and layer.in_gain is None
    with pytest.raises(UnsupportedAttention, match="0.self_attn"):
        layer.qk(0, fold=True)
    b.norm1 = a.norm1
    (layer,) = attention_layers(nn.ModuleList([a, b]))
    assert layer.gains_known and layer.in_gain is not None


def attention_norm(weight):
    return weight.norm() / weight.shape[1] ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype(dtype):
    """Also with more head dimensions than the width, where a random rotation is drawn."""
    model, wide = vit(), SelfAttention(16, 2)
    wide.qkv, wide.proj, wide.head_dim = nn.Linear(16, 96), nn.Linear(32, 16), 16
    torch.set_default_dtype(dtype)
    try:
        for one in (model, wide):
            mimetic_init_(one, generator=seeded())
    finally:
        torch.set_default_dtype(torch.float32)
    check_targets(attention_layers(model), seeded())


def test_fit_with_another_default_device():
    model = vit()
    mimetic_init_(model, generator=seeded())
    # not set_default_device: PyTorch 2.6 cannot say its default any more once that was undone
    with torch.device("meta"):
        spec = mimetic.fit(model)
    assert spec.vp_beta[0] == pytest.approx(-0.4, abs=0.02)


# --- refusals ---


def computed_in_proj():
    model = nn.Sequential(nn.MultiheadAttention(32, 4))
    torch.nn.utils.parametrizations.weight_norm(model[0], "in_proj_weight")
    return model


def spectral_in_proj():
    """The old way: in_proj_weight is a plain attribute that starts in the memory of
    in_proj_weight_orig and is made anew by every forward.
    """
    return nn.Sequential(torch.nn.utils.spectral_norm(nn.MultiheadAttention(32, 4), "in_proj_weight"))


def pruned_in_proj():
    model = nn.Sequential(nn.MultiheadAttention(32, 4))
    prune.l1_unstructured(model[0], "in_proj_weight", 0.2)
    return model


def pruned_bias():
    model = vit()
    prune.l1_unstructured(model.blocks[0].attn.qkv, "bias", 0.2)
    return model


def lora_by_forward():
    model = vit()
    qkv = model.blocks[1].attn.qkv
    plain, extra = qkv.forward, torch.randn(48, 144)
    qkv.forward = lambda x: plain(x) + x @ extra
    return model


def forward_of_ones_own():
    model = vit()
    model.blocks[1].attn.forward = lambda x, mask=None: x
    return model


def wrapped_projections():
    """An unknown layer whose linear layers lie one deeper, as LoRA's do, beside one that is known."""
    return unknown_attention(**{f"{part}_proj": nn.Sequential(nn.Linear(8, 8)) for part in "qkvo"})


def value_is_projection():
    model = nn.Sequential(nn.MultiheadAttention(32, 4, kdim=32, vdim=32))
    model[0].in_proj_weight = None
    for part in "qkv":
        setattr(model[0], f"{part}_proj_weight", nn.Parameter(torch.randn(32, 32)))
    model[0].out_proj.weight = model[0].v_proj_weight
    return model


def sharded_away():
    model = vit()
    model.blocks[0].attn.qkv.weight.data = torch.empty(0)
    return model


def mha_with_other_widths():
    return nn.MultiheadAttention(32, 4, kdim=16, vdim=16)


def parametrised():
    model = vit()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].attn.qkv)
    return model


def dynamically_quantised():
    model = vit()
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return model


def unknown_attention(**children):
    class FancyAttention(nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in (children or {"qkv": nn.Linear(8, 24)}).items():
                self.add_module(name, child)

    model = vit()
    model.extra = FancyAttention()
    return model


def changed_forward():
    class Scaled(nn.MultiheadAttention):
        def forward(self, q, k, v, **kwargs):
            return super().forward(2 * q, k, v, **kwargs)

    return nn.Sequential(Scaled(32, 4))


def nameless_attention():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q, self.to_kv = nn.Linear(8, 8), nn.Linear(8, 16)

    model = vit()
    model.mix = Mixer()
    return model


def named_projections(*names):
    """A layer without attention in its class's name, beside one that is known."""
    return lambda: nn.Sequential(nn.MultiheadAttention(8, 2), nn.ModuleDict({name: nn.Linear(8, 8) for name in names}))


def packed_projections(**more):
    return nn.Sequential(
        nn.MultiheadAttention(8, 2), nn.ModuleDict({"in_proj": nn.Linear(8, 24), "out_proj": nn.Linear(8, 8), **more})
    )


def wrapped_fused_projections():
    """As convolutions with a norm behind them."""
    return nn.Sequential(
        nn.MultiheadAttention(8, 2), nn.ModuleDict({name: nn.Sequential(nn.Linear(8, 8)) for name in ("qkv", "proj")})
    )


def own_projections():
    layer = nn.Module()
    for part in "qkvo":
        setattr(layer, f"W_{part}", nn.Parameter(torch.randn(8, 8)))
    return nn.Sequential(nn.MultiheadAttention(8, 2), layer)


def lazy():
    model = vit()
    model.blocks[0].attn.qkv = nn.LazyLinear(144)
    return model


def on_meta():
    with torch.device("meta"):
        return ViT(CONFIG)


def in_inference_mode():
    with torch.inference_mode():
        return ViT(CONFIG)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: nn.Linear(3, 3), "no attention layer found in Linear"),
        (mha_with_other_widths, "MultiheadAttention: queries are made from width 32, keys from width 16"),
        (on_meta, r"blocks\.0\.attn: qkv\.weight is a meta tensor"),
        (in_inference_mode, r"blocks\.0\.attn: q was made under torch.inference_mode"),
        (parametrised, r"blocks\.0\.attn: qkv is parametrised"),
        (dynamically_quantised, r"blocks\.0\.attn: qkv "),
        (unknown_attention, r"extra: .*FancyAttention is not a known attention class"),
        (changed_forward, r"0: changed_forward.<locals>.Scaled overrides the forward of MultiheadAttention"),
        (nameless_attention, r"mix: .*Mixer is not a known attention class"),
        (named_projections("wq", "wk", "wv", "wo"), "1: .* is not a known attention class"),
        (named_projections("W_Q", "W_K"), "1: .* is not a known attention class"),
        (named_projections("qk", "v", "proj"), "1: .* is not a known attention class"),
        (named_projections("linear_query", "linear_key"), "1: .* is not a known attention class"),
        (packed_projections, "1: .* is not a known attention class"),
        (wrapped_fused_projections, "1: .* is not a known attention class"),
        (own_projections, "1: .*Module is not a known attention class"),
        (computed_in_proj, "0: q is no view of a parameter .it is computed"),
        (spectral_in_proj, "0: q is no view of a parameter .it is computed"),
        (pruned_in_proj, "0: q is no view of a parameter .it is computed"),
        (pruned_bias, r"blocks\.0\.attn: q_bias is no view of a parameter"),
        (lora_by_forward, r"blocks\.1\.attn: the forward of qkv was replaced"),
        (forward_of_ones_own, r"blocks\.1\.attn: its forward was replaced"),
        (wrapped_projections, "extra: .*FancyAttention is not a known attention class"),
        (value_is_projection, "0: two of its projections are one parameter"),
        (lazy, r"blocks\.0\.attn: qkv\.weight is not initialised yet"),
        (sharded_away, r"blocks\.0\.attn: qkv\.weight has no elements"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_refusals_name_the_layer_and_the_reason(make, words):
    with pytest.raises(UnsupportedAttention, match=words):
        mimetic_init_(make())


GATED = lambda: packed_projections(conv=nn.Conv1d(8, 8, 3))  # noqa: E731


@pytest.mark.parametrize("make", [named_projections("key", "value"), GATED, named_projections("in_proj", "out_proj")])
def test_what_only_has_names_of_attention_is_none(make):
    """RWKV's channel mix, a gated convolution, any two layers."""
    assert [w.name for w in mimetic_init_(make())] == ["0"]


def test_a_learned_query_beside_keys_is_no_layer_of_ones_own():
    pool = nn.ModuleDict({"kv": nn.Linear(8, 16)})
    pool.query = nn.Parameter(torch.randn(1, 8))
    assert [w.name for w in mimetic_init_(nn.Sequential(nn.MultiheadAttention(8, 2), pool))] == ["0"]


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda m: mimetic_init_(m, biases="none"), ValueError, "biases must be one of zero, keep"),
        (lambda m: mimetic_init_(m, qk="no"), TypeError, "qk must be True or False; got 'no'"),
        (lambda m: mimetic_init_(m, cross=None), TypeError, "cross must be True or False; got None"),
        (lambda m: mimetic_init_(m, qk=False, vp=False), ValueError, "nothing to write"),
        (lambda m: mimetic_init_(m, {"qk_alpha": 1}), TypeError, "MimeticSpec"),
        (lambda m: mimetic_init_("vit"), TypeError, "torch.nn.Module"),
        (lambda m: mimetic_init_(m, generator=0), TypeError, "generator must be a torch.Generator or None, got 0"),
        (lambda m: mimetic_init_(m, generator=42), TypeError, "generator must be a torch.Generator or None, got 42"),
        (
            lambda m: mimetic.initialize_(m, "timm", generator=0),
            TypeError,
            "generator must be a torch.Generator or None, got 0",
        ),
        (
            lambda m: MimeticSpec(qk_beta={0: 0.7, 1: 0.5}),
            TypeError,
            "qk_beta must be a finite number or a sequence .*got a dict",
        ),
        (
            lambda m: MimeticSpec(qk_beta={0.7, 0.5}),
            TypeError,
            "qk_beta must be a finite number or a sequence .*got a set",
        ),
        (lambda m: MimeticSpec(noise="gauss"), ValueError, "normal, uniform"),
        (lambda m: MimeticSpec(qk_alpha=float("nan")), ValueError, "qk_alpha"),
        (lambda m: MimeticSpec(qk_alpha="0.7"), ValueError, "qk_alpha"),
        (lambda m: MimeticSpec(vp_alpha=0, vp_beta=0), ValueError, "both 0"),
        (
            lambda m: MimeticSpec(qk_alpha=(0.7, 0), qk_beta=(0.7, 0)),
            ValueError,
            "qk_alpha and qk_beta are both 0 in layer 1",
        ),
        (lambda m: MimeticSpec(qk_alpha=1e22), ValueError, "between -1e.06 and 1e.06"),
        (lambda m: mimetic.initialize_(m, "mimetic", default="kaiming"), ValueError, "default must be one of timm"),
        (
            lambda m: mimetic.initialize_(m, "kaiming"),
            ValueError,
            "timm, torch, xavier, .*mimetic, mimetic-qk, mimetic-vp",
        ),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call(vit())


def test_cross_attention_is_left_alone_with_a_warning_unless_asked_for():
    model = nn.TransformerDecoderLayer(32, 4)
    before = model.multihead_attn.in_proj_weight.clone()
    with pytest.warns(MimeticWarning, match="multihead_attn: cross-attention, left alone"):
        written = mimetic_init_(model)
    assert [w.name for w in written] == ["self_attn"] and torch.equal(before, model.multihead_attn.in_proj_weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = mimetic_init_(model, cross=True)
    assert [w.name for w in written] == ["self_attn", "multihead_attn"]


def test_a_registered_class_of_ones_own():
    class MyAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.to_q, self.to_kv, self.out = 4, nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(32, 32)

        def forward(self, x):
            return x

    from mimetic.adapters import _CUSTOM, fused_out, linear_in, linear_out

    def read(module, name, ancestors):
        (k, kb), (v, vb) = fused_out(module.to_kv, module.heads, name, "to_kv", parts=2)
        q, qb = linear_out(module.to_q, module.heads, name, "to_q")
        proj, pb = linear_in(module.out, module.heads, name, "out")
        return mimetic.AttentionLayer(name, q, k, v, proj, qb, kb, vb, pb)

    model = nn.Sequential(MyAttention())
    with pytest.raises(UnsupportedAttention, match="MyAttention"):
        mimetic_init_(model)
    mimetic.register_adapter(MyAttention, read)
    try:
        mimetic_init_(model, generator=seeded())
        check_targets(attention_layers(model), seeded())
    finally:
        del _CUSTOM[MyAttention]
    for no_attention_class in (int, nn.Module):
        with pytest.raises(TypeError, match="nn.Module subclass"):
            mimetic.register_adapter(no_attention_class, read)


# --- grouped-query attention ---


def grouped(d=96, heads=6, kv_heads=2, head_dim=16):
    attention = pytest.importorskip("timm.layers.attention")
    return attention.AttentionRope(d, heads, num_kv_heads=kv_heads, qkv_fused=False, attn_head_dim=head_dim)


@pytest.mark.filterwarnings("ignore::mimetic.MimeticWarning")
def test_grouped_query_attention():
    d, heads, kv_heads, k = 96, 6, 2, 16
    model = grouped(d, heads, kv_heads, k)
    mimetic_init_(model, generator=seeded())
    layer = attention_layers(model)[0]
    own = [best_rank_k(semi_diagonal(d, 0.7, 0.7, generator=seeded(i)), k).diagonal().mean().item() for i in range(6)]
    for h in range(heads):
        assert torch.linalg.matrix_rank(layer.qk(h).double(), rtol=1e-5) <= k
        diagonal = layer.qk(h).diagonal().mean().item()
        assert 0.8 * np.mean(own) < diagonal < 1.05 * np.mean(own)
    for a in range(heads):  # the heads of a group are relatives, not copies
        for b in range(a):
            cosine = torch.nn.functional.cosine_similarity(layer.qk(a).flatten(), layer.qk(b).flatten(), dim=0)
            assert cosine < 0.95
    # V.proj: the best approximation of rank 2 * 16, against the target drawn after the heads' targets
    g = seeded()
    for _ in range(kv_heads * (1 + heads // kv_heads)):
        semi_diagonal(d, 1, 1, generator=g)
    target = semi_diagonal(d, 0.4, -0.4, generator=g)
    torch.testing.assert_close(layer.vp(), best_rank_k(target, kv_heads * k), atol=2e-6, rtol=0)


@pytest.mark.filterwarnings("ignore::mimetic.MimeticWarning")
def test_a_bare_identity_of_low_rank_has_no_favourite_coordinates():
    model = nn.Sequential(grouped(32, 4, 1, 8), grouped(32, 4, 1, 8))
    mimetic_init_(model, MimeticSpec(vp_alpha=0, vp_beta=0.4), generator=seeded())
    first, second = (layer.vp() for layer in attention_layers(model))
    assert first.trace() == pytest.approx(8 * 0.4, rel=0.01) and not torch.allclose(first, second, atol=0.01)
    assert first.diagonal().min() > 0.01 and first.diagonal().max() < 0.3  # spread over all of them, not 0.4 on eight


@pytest.mark.filterwarnings("ignore::mimetic.MimeticWarning")
def test_more_head_dimensions_than_d_model():
    attention = pytest.importorskip("timm.layers.attention")
    model = attention.Attention(24, num_heads=2, attn_head_dim=32)
    mimetic_init_(model, generator=seeded())
    layer = attention_layers(model)[0]
    g = seeded()
    for h in range(2):
        torch.testing.assert_close(layer.qk(h), semi_diagonal(24, 0.7, 0.7, generator=g), atol=3e-6, rtol=0)
        torch.randn(32, 24, generator=g)
        assert layer.w_q(h).norm(dim=0).min() > 0.01  # no dead direction
    torch.testing.assert_close(layer.vp(), semi_diagonal(24, 0.4, -0.4, generator=g), atol=3e-6, rtol=0)


# --- whole-model initialisers ---


def test_arms_of_one_seed_differ_in_attention_weights_only():
    states = {}
    for name in mimetic.INITIALIZERS:
        model = vit()
        mimetic.initialize_(model, name, generator=seeded())
        states[name] = model.state_dict()
    for name, written in (("mimetic", "qkv proj"), ("mimetic-qk", "qkv"), ("mimetic-vp", "qkv proj")):
        for key, value in states[name].items():
            changed = not torch.equal(value, states["timm"][key])
            assert changed == (".attn." in key and key.split(".")[-2] in written and key.endswith("weight")), (
                name,
                key,
            )


def test_default_initialisers():
    torch.manual_seed(0)
    model = ViT(ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=3, d_model=96, depth=1, num_heads=3))
    mimetic.initialize_(model, "timm", generator=seeded())
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not model.blocks[0].mlp.fc1.bias.any()
    mimetic.initialize_(model, "torch", generator=seeded())
    bound = 96**-0.5
    assert bound * 0.98 < model.blocks[0].mlp.fc1.weight.abs().max().item() <= bound
    again = copy.deepcopy(model.state_dict())
    mimetic.initialize_(model, "torch", generator=seeded())
    assert all(torch.equal(v, again[k]) for k, v in model.state_dict().items())


def test_a_block_by_itself_and_a_frozen_position_embedding():
    block = Block(64, 4)
    mimetic.initialize_(block, "gpt2", generator=seeded())  # its layers have no block's name in front
    assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / 2**0.5, rel=0.05)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    model = nn.Sequential(block)
    model.pos_embed = nn.Parameter(torch.linspace(0, 1, 64), requires_grad=False)
    for name in ("timm", "torch", "xavier", "gpt2", "bert"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MimeticWarning)
            mimetic.initialize_(model, name, generator=seeded())
        assert torch.equal(model.pos_embed, torch.linspace(0, 1, 64)), name


@pytest.mark.gpu
def test_the_same_weights_on_a_gpu():
    model, reference = vit().cuda(), vit()
    mimetic_init_(model, generator=seeded())
    mimetic_init_(reference, generator=seeded())
    assert torch.equal(model.blocks[0].attn.qkv.weight.cpu(), reference.blocks[0].attn.qkv.weight)


class Elsewhere(TorchFunctionMode):
    """As if these tensors were on another device, without one: what mixes them with others fails, as it would there,
    and so does NumPy. copy_ and cpu() cross over; what is computed from them is there, too."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = list(tensors)  # kept, so that no other tensor takes a storage's address
        self.crossings = 0

    def _there(self, x):
        return x.untyped_storage().data_ptr() in {t.untyped_storage().data_ptr() for t in self.tensors}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        with torch._C.DisableTorchFunction():
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            there = [self._there(x) for x in given]
            out = func(*args, **kwargs)
            if not any(there):
                return out
            if name in ("numpy", "__array__"):
                raise TypeError(f"{name}: a tensor of another device")
            if name in ("copy_", "cpu"):
                self.crossings += 1
                return out if name == "copy_" else out.clone()
            if not all(at or x.dim() == 0 for at, x in zip(there, given)):
                raise RuntimeError(f"{name}: tensors of two devices")
            self.tensors += [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
            return out


def test_weights_may_be_on_another_device():
    model, reference = vit(), vit()
    mimetic_init_(reference, generator=seeded())
    with Elsewhere(model.parameters()) as device:
        mimetic_init_(model, generator=seeded())
        table, spec = mimetic.measure(model), mimetic.fit(model)
    assert device.crossings
    for name, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    pd.testing.assert_frame_equal(table, mimetic.measure(reference))
    assert spec == mimetic.fit(reference)


def test_elsewhere_refuses_what_a_gpu_would_refuse():
    weight = torch.eye(3)
    with Elsewhere([weight]):
        assert (2 * weight + weight.T).cpu().numpy().sum() == 9
        for wrong in (lambda: weight @ torch.eye(3), lambda: weight[0].numpy(), lambda: weight.T.add_(torch.ones(3))):
            with pytest.raises((RuntimeError, TypeError), match="device"):
                wrong()


# --- controls: each keeps one property of "mimetic" and breaks another ---


def initialised(name, **options):
    model = vit()
    mimetic.initialize_(model, name, generator=seeded(), **options)
    return attention_layers(model)


def test_random_directions_keep_the_singular_values_and_lose_the_diagonal():
    for ours, control in zip(initialised("mimetic"), initialised("mimetic-random-directions")):
        for A, B in [(ours.qk(h), control.qk(h)) for h in range(ours.num_heads)] + [(ours.vp(), control.vp())]:
            torch.testing.assert_close(torch.linalg.svdvals(A), torch.linalg.svdvals(B), atol=1e-5, rtol=1e-4)
        assert ours.vp().diagonal().mean() < -0.3 < -0.1 < control.vp().diagonal().mean() < 0.1
        for name in ("q", "k", "v", "proj"):  # the scale is split as evenly as before
            torch.testing.assert_close(getattr(ours, name).norm(), getattr(control, name).norm())


def test_untransposed_keeps_trace_and_eigenvalues_and_loses_the_constant_diagonal():
    for ours, control in zip(initialised("mimetic"), initialised("mimetic-untransposed")):
        torch.testing.assert_close(ours.vp().trace(), control.vp().trace(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            torch.linalg.eigvals(ours.vp()).abs().sort().values, torch.linalg.eigvals(control.vp()).abs().sort().values,
            atol=2e-4, rtol=0,
        )  # fmt: skip
        assert control.vp().diagonal().std() > 3 * ours.vp().diagonal().std()
        torch.testing.assert_close(ours.qk(0), control.qk(0))
        # what public code stores: v.weight = L, proj.weight = R of the target L @ R
        target = ours.v.flatten(1) @ ours.proj.flatten(0, 1)
        stored = control.v.flatten(1).T @ control.proj.flatten(0, 1).T
        torch.testing.assert_close(stored, target, atol=1e-5, rtol=1e-4)


def test_rescaled_default_has_the_norms_of_mimetic_and_the_directions_of_the_default():
    for default, ours, control in zip(initialised("timm"), initialised("mimetic"), initialised("timm-rescaled")):
        for h in range(ours.num_heads):
            torch.testing.assert_close(ours.w_q(h).norm(), control.w_q(h).norm())
            torch.testing.assert_close(
                control.w_k(h) / control.w_k(h).norm(), default.w_k(h) / default.w_k(h).norm(), atol=1e-6, rtol=1e-4
            )
        torch.testing.assert_close(ours.proj.norm(), control.proj.norm())
        torch.testing.assert_close(control.v / control.v.norm(), default.v / default.v.norm(), atol=1e-6, rtol=1e-4)


def test_qk_rank_cuts_the_product_and_leaves_no_dead_dimension():
    for ours, control in zip(initialised("mimetic"), initialised("mimetic", qk_rank=2)):
        U, S, Vt = torch.linalg.svd(ours.qk(0))
        torch.testing.assert_close(control.qk(0), (U[:, :2] * S[:2]) @ Vt[:2], atol=1e-5, rtol=1e-4)
        assert control.w_q(0).norm(dim=0).min() > 1e-3
        torch.testing.assert_close(ours.vp(), control.vp())
    with pytest.raises(ValueError, match="between 1 and the head size"):
        initialised("mimetic", qk_rank=1000)
    with pytest.raises(ValueError, match="timm takes none"):
        initialised("timm", qk_rank=2)


def test_xavier_treats_queries_keys_and_values_as_three_matrices():
    for layer in initialised("xavier"):
        d = layer.d_model
        bound = (6 / (d + d)) ** 0.5
        for matrix in (layer.q, layer.k, layer.v, layer.proj):
            assert 0.9 * bound < matrix.abs().max() <= bound


def test_qk_rank_under_autocast():
    outside = initialised("mimetic", qk_rank=2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = initialised("mimetic", qk_rank=2)
    assert torch.equal(outside[0].q, inside[0].q)


def unchanged_by(model, call, error):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error):
        call(model)
    return all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_model_that_cannot_be_initialised_keeps_its_weights():
    assert unchanged_by(unknown_attention(), lambda m: mimetic.initialize_(m, "mimetic"), UnsupportedAttention)
    for rank in (0, 999):
        assert unchanged_by(vit(), lambda m, rank=rank: mimetic.initialize_(m, "mimetic", qk_rank=rank), ValueError)
    spec = MimeticSpec(qk_alpha=(0.7,) * 5)
    assert unchanged_by(vit(), lambda m: mimetic.initialize_(m, "mimetic", spec=spec), ValueError)


@pytest.mark.parametrize("name", ["timm", "torch", "xavier", "gpt2", "bert", "mimetic"])
def test_a_generator_decides_every_weight_of_other_libraries_models(name):
    torchvision, transformers = pytest.importorskip("torchvision"), pytest.importorskip("transformers")
    gpt2 = transformers.GPT2Config(
        n_embd=32, n_head=2, n_layer=1, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    vit_like = dict(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64)
    for make in (lambda: torchvision.models.VisionTransformer(**vit_like), lambda: transformers.GPT2Model(gpt2)):
        first, second = make(), make()
        for model in (first, second):
            mimetic.initialize_(model, name, generator=seeded())
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_models_on_meta_and_in_inference_mode_are_not_asked_for_versions():
    with torch.device("meta"):
        mimetic.initialize_(vit(), "timm")
    with torch.inference_mode():
        mimetic.initialize_(vit(), "timm", generator=seeded())


def linear_in_inference_mode():
    with torch.inference_mode():
        return nn.Linear(8, 8)


def meta_linear():
    return nn.Linear(8, 8, device="meta")


@pytest.mark.parametrize(
    "make, words", [(linear_in_inference_mode, "1.weight was made under"), (meta_linear, "1.weight is a meta tensor")]
)
@pytest.mark.parametrize("name", ["timm", "gpt2", "mimetic"])
def test_what_cannot_be_written_is_named_before_anything_is(make, words, name):
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 16), make())
    before = copy.deepcopy(model[0].state_dict())
    with pytest.raises(ValueError, match=words):
        mimetic.initialize_(model, name)
    assert all(torch.equal(p, before[n]) for n, p in model[0].state_dict().items())


def test_parameters_without_a_rule_are_named():
    model = vit()
    model.memory = nn.Parameter(torch.randn(3))
    with pytest.warns(MimeticWarning, match="'timm' has no rule for memory: left as they were"):
        mimetic.initialize_(model, "timm", generator=seeded())


def test_controls_refuse_what_they_cannot_do():
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2))
    mimetic.initialize_(model, "mimetic-untransposed", generator=seeded())
    with pytest.raises(ValueError, match="init must be one of timm, torch, xavier, .*mimetic"):
        mimetic.initialize_(model, "nope")


# --- what a sceptical user tried -------------------------------------------------------------------------------------


class Mixer(nn.Module):
    """Self-attention under a name that says nothing."""

    def __init__(self, d=16):
        super().__init__()
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)


@pytest.fixture
def adapters():
    """register_adapter for the time of a test."""
    from mimetic.adapters import _CUSTOM

    before = dict(_CUSTOM)
    yield mimetic.register_adapter
    _CUSTOM.clear()
    _CUSTOM.update(before)


def read_mixer(module, name, ancestors, heads=2, **changed):
    from mimetic.adapters import fused_out, linear_in

    (q, qb), (k, kb), (v, vb) = fused_out(module.qkv, heads, name)
    proj, pb = linear_in(module.proj, heads, name)
    return mimetic.AttentionLayer(
        **dict(name=name, q=q, k=k, v=v, proj=proj, q_bias=qb, k_bias=kb, v_bias=vb, proj_bias=pb) | changed
    )


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn, self.fc = (
            nn.MultiheadAttention(16, 2),
            nn.MultiheadAttention(16, 2),
            nn.Linear(16, 16),
        )


def untouched(model, words, **options):
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UnsupportedAttention, match=words):
        mimetic_init_(model, **options)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_bias_that_belongs_to_something_else_is_refused():
    model = Pair()
    nn.init.ones_(model.cross_attn.in_proj_bias)
    model.self_attn.in_proj_bias = model.cross_attn.in_proj_bias
    untouched(model, "cross_attn: cross-attention that shares its projections or their biases")
    model = Pair()
    nn.init.ones_(model.fc.bias)
    model.self_attn.out_proj.bias = model.fc.bias
    untouched(model, "self_attn: one of its biases is also fc.bias, outside of attention")
    with pytest.warns(MimeticWarning, match="left alone"):
        mimetic_init_(model, biases="keep")
    assert model.fc.bias.eq(1).all()


def test_a_bias_of_another_shape_is_refused(adapters):
    adapters(Mixer, lambda module, *rest: read_mixer(module, *rest, q_bias=module.qkv.bias))
    untouched(Mixer(), r"q_bias has shape \(48,\), its weight asks for \(2, 8\)")


def test_weights_that_overlap_in_memory_are_refused(adapters):
    bank = torch.randn(64, 16)
    model = nn.ModuleList([nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)])
    for layer, first in zip(model, (0, 8)):
        layer.in_proj_weight = nn.Parameter(bank[first : first + 48])
    untouched(model, "1: its projections overlap in memory")

    def shifted(module, name, ancestors):
        w = module.qkv.weight.mT.unflatten(1, (6, 8))
        return read_mixer(module, name, ancestors, k=w[:, 1:3])

    adapters(Mixer, shifted)
    untouched(Mixer(), "its projections overlap in memory")


def test_interleaved_projections_do_not_overlap(adapters):
    def interleaved(module, name, ancestors):
        q, k, v = module.qkv.weight.mT.unflatten(1, (2, 3, 8)).unbind(2)
        bs = module.qkv.bias.view(2, 3, 8).unbind(1)
        return read_mixer(module, name, ancestors, q=q, k=k, v=v, q_bias=bs[0], k_bias=bs[1], v_bias=bs[2])

    adapters(Mixer, interleaved)
    model = Mixer()
    mimetic_init_(model, generator=seeded())
    check_targets(attention_layers(model), seeded())


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 8, bias=False) for _ in range(3))


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.proj = nn.ModuleList([Head(), Head()]), nn.Linear(16, 16)


def test_heads_that_are_modules_of_their_own_are_not_layers(adapters):
    from mimetic.adapters import linear_in, linear_out

    def read(head, name, ancestors):
        proj, pb = linear_in(ancestors[1][1].proj, 2, name)
        q, k, v = (linear_out(part, 1, name)[0] for part in (head.query, head.key, head.value))
        h = int(ancestors[0][0])
        return mimetic.AttentionLayer(name, q, k, v, proj[h : h + 1], proj_bias=pb)

    adapters(Head, read)
    model = nn.Sequential(Heads())
    untouched(model, r"0\.heads\.1: its projection is a part of 0\.proj\.weight, as that of 0\.heads\.0 is")
    assert len(mimetic_init_(model, vp=False)) == 2


def test_only_what_is_written_must_be_free(adapters):
    adapters(
        Mixer,
        lambda module, name, ancestors: read_mixer(module, name, ancestors, k=read_mixer(module, name, ancestors).q),
    )
    untouched(Mixer(), "two of its projections are one parameter")
    mimetic_init_(Mixer(), qk=False)
    model = nn.ModuleList([nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)])
    model[1].out_proj.weight = model[0].out_proj.weight
    untouched(model, "1: shares some but not all of its projections with 0")
    assert len(mimetic_init_(model, vp=False)) == 2
    adapters(
        Mixer,
        lambda module, name, ancestors: read_mixer(module, name, ancestors, v=read_mixer(module, name, ancestors).k),
    )
    untouched(Mixer(), "one of its weights is also another of its projections", vp=False)


def test_reading_needs_no_place_to_write():
    with torch.inference_mode():
        model = nn.MultiheadAttention(16, 2)
    assert len(mimetic.measure(model)) == 2 * 2 + 1 and mimetic.fit(model).vp_beta
    with pytest.raises(
        UnsupportedAttention, match="was made under torch.inference_mode and cannot be written in place"
    ):
        mimetic_init_(model)


def test_a_forward_replaced_on_the_class_is_seen(monkeypatch):
    timm = pytest.importorskip("timm")
    model = timm.layers.Attention(16, 2)
    mimetic_init_(model)
    cls = type(model)
    monkeypatch.setattr(cls, "forward", lambda self, x, attn_mask=None, is_causal=False: self.proj(x))
    untouched(model, "the forward of its class was replaced")
    monkeypatch.undo()
    mimetic_init_(model)

    @functools.wraps(cls.forward)
    def passes_for_it(self, x):
        return self.proj(x)

    monkeypatch.setattr(cls, "forward", passes_for_it)
    untouched(model, "the forward of its class was replaced")


def test_a_linear_layer_that_is_called_otherwise_is_refused():
    class Doubled(nn.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x)

    model = vit()
    model.blocks[0].attn.proj = Doubled(48, 48)
    untouched(model, "proj is a .*Doubled, not a plain nn.Linear")


def test_what_is_wrapped_as_a_base_layer_is_refused():
    class Lora(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer, self.lora_A, self.lora_B = base_layer, nn.Linear(16, 2), nn.Linear(2, 16)

    untouched(nn.Sequential(Lora(nn.MultiheadAttention(16, 2))), r"0\.base_layer: it is the base layer of a Lora")


def test_what_autocast_keeps_is_not_the_old_weights():
    model, x = nn.MultiheadAttention(64, 4, batch_first=True), torch.randn(2, 5, 64, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x, x, x)[0]
        mimetic_init_(model, generator=seeded())
        after = model(x, x, x)[0]
    assert not torch.equal(before, after)


def test_several_processes_without_a_generator_are_warned_of(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.warns(MimeticWarning, match="no generator in one of 4 processes: their weights are alike only if"):
        mimetic_init_(vit())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mimetic_init_(vit(), generator=seeded())


def test_attention_in_a_known_layer_that_it_does_not_read_is_refused(adapters):
    adapters(Mixer, read_mixer)
    model = Mixer()
    mimetic_init_(model)
    model.temporal = nn.Module()
    model.temporal.q_proj, model.temporal.k_proj = nn.Linear(16, 16), nn.Linear(16, 16)
    untouched(model, "temporal: .* is not a known attention class")


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2)


def test_what_is_inside_of_a_registered_class_is_its_readers_matter(adapters):
    adapters(Wrapped, None)  # a pooling head of one's own
    model = nn.ModuleDict({"read": Wrapped(), "block": nn.TransformerEncoderLayer(16, 2, 32)})
    before = copy.deepcopy(model["read"].state_dict())
    with pytest.warns(MimeticWarning, match="read: left alone, Wrapped was registered as no self-attention"):
        assert [layer.name for layer in mimetic_init_(model)] == ["block.self_attn"]
    assert all(torch.equal(t, before[name]) for name, t in model["read"].state_dict().items())
    plain = READERS["torch.nn.modules.activation.MultiheadAttention"]
    adapters(Wrapped, lambda module, name, ancestors: plain(module.attn, name, ancestors))
    model = nn.Sequential(Wrapped(), Wrapped())
    written = mimetic_init_(model, MimeticSpec(vp_beta=(-0.4, 0.4)))  # one layer each, not two
    assert [(layer.name, layer.tied_to) for layer in written] == [("0", None), ("1", None)]
    model[0].more = nn.MultiheadAttention(16, 2)  # that it does not read
    assert [layer.name for layer in attention_layers(model)] == ["0", "0.more", "1"]


@pytest.mark.parametrize(
    "parts",
    [
        ("kqv", "proj"),
        ("query_conv", "key_conv", "value_conv"),
        ("dense_q", "dense_k", "dense_v"),
        ("projection_q", "projection_k"),
        ("in_proj_qkv", "out"),
        ("q_head", "k_head"),
        ("q_embed", "k_embed"),
        ("add_q_proj", "add_k_proj"),
        ("fused_qkv", "out"),
        ("attn_q", "attn_k", "attn_v"),
        ("attn_wq", "attn_wk", "attn_wv"),
        ("query_transform", "key_transform"),
        ("W_pack", "o_proj"),
        ("q1", "k1", "v1"),
        ("img_qkv", "img_proj"),
        ("qkv_text_2",),
        ("self_attn_q", "self_attn_k"),
        ("attn1_q", "attn1_k", "attn1_v"),
        ("query_weights", "key_weights"),
    ],
)
def test_projections_under_other_names_are_refused_not_passed_over(parts):
    other = nn.Module()
    for name in parts:
        other.add_module(name, nn.Linear(16, 16))
    untouched(
        nn.Sequential(nn.MultiheadAttention(16, 2), other),
        r"1: .* is not a known attention class\n\(register_adapter teaches",
    )


@pytest.mark.parametrize("names", [("query", "key"), ("q", "k"), ("query_net", "key_net")])
def test_towers_called_query_and_key_are_no_projections(names):
    model = nn.Module()
    for name in names:
        model.add_module(name, nn.TransformerEncoderLayer(16, 2, 32))
    assert [layer.name for layer in attention_layers(model)] == [f"{name}.self_attn" for name in names]
    model = nn.Module()
    model.query, model.key, model.attn = nn.Embedding(4, 16), nn.Embedding(4, 16), nn.MultiheadAttention(16, 2)
    model.x_qkv_norm, model.qkv_lora, model.qkv_adapter = nn.LayerNorm(16), nn.Linear(16, 4), nn.Linear(16, 16)
    model.qkv_scale = nn.Parameter(torch.ones(3, 16))
    assert len(attention_layers(model)) == 1


def test_a_reader_that_gives_no_layer_is_named(adapters):
    adapters(Mixer, lambda module, name, ancestors: read_mixer(module, name, ancestors, q=module.qkv.weight[:16].mT))
    with pytest.raises(UnsupportedAttention, match=r"q must have 3 dimensions .*\(16, 16\)"):
        mimetic.measure(nn.Sequential(Mixer()))
    adapters(Mixer, lambda module, name, ancestors: None)
    with pytest.raises(UnsupportedAttention, match="its reader gave a NoneType"):
        mimetic_init_(nn.Sequential(Mixer()))
    with pytest.raises(TypeError, match="reader must be a function"):
        adapters(Mixer, "q, k, v, proj")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"kind": "self-attention"}, "kind must be 'self' or 'cross', its reader gave 'self-attention'"),
        ({"caveats": "RoPE"}, "caveats must be a tuple of sentences, its reader gave 'RoPE'"),
        ({"in_gain": torch.ones(3)}, r"in_gain must have shape \(16,\), its reader gave \(3,\)"),
        ({"out_gain": torch.ones(16, 1)}, r"out_gain must have shape \(16,\), its reader gave \(16, 1\)"),
    ],
)
def test_what_a_reader_says_besides_is_checked(adapters, field, words):
    adapters(Mixer, lambda module, name, ancestors: read_mixer(module, name, ancestors, **field))
    untouched(Mixer(), words)


def test_a_reader_that_says_nothing_of_norms_is_not_taken_to_know_them(adapters):
    """Else fold=True would give the raw product under the name of the folded one:
    with a gain of -1, one of the wrong sign.
    """
    block = nn.Module()
    block.norm, block.mix = nn.LayerNorm(16), Mixer()
    nn.init.constant_(block.norm.weight, -1.0)
    adapters(Mixer, read_mixer)
    for what in (lambda: mimetic.measure(block, fold=True), lambda: mimetic.fit(block, fold=True)):
        with pytest.raises(
            UnsupportedAttention, match="mix: which LayerNorm feeds this layer is not known, so fold=True is refused"
        ):
            what()
    assert not mimetic.audit(block).fold
    adapters(
        Mixer,
        lambda module, name, ancestors: read_mixer(
            module, name, ancestors, in_gain=ancestors[0][1].norm.weight.detach()
        ),
    )
    (layer,) = attention_layers(block)
    assert torch.equal(layer.vp(fold=True), -layer.vp())


def test_a_layer_by_itself_has_gains_that_are_not_known():
    block = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True)
    mimetic.measure(block, fold=True)
    with pytest.raises(
        UnsupportedAttention, match="a layer passed by itself has none around it: pass its block or model"
    ):
        mimetic.measure(block.self_attn, fold=True)
    assert any("raw weights" in note for note in mimetic.audit(block.self_attn).notes)


def test_a_class_may_be_registered_as_no_attention(adapters):
    class SEAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(16, 4), nn.Linear(4, 16)

        def forward(self, x):
            return x * self.fc2(self.fc1(x)).sigmoid()

    model = nn.Sequential(nn.MultiheadAttention(16, 2), SEAttention())
    untouched(model, "or with None that it is no self-attention")
    adapters(SEAttention, None)
    with pytest.warns(MimeticWarning, match="1: left alone, SEAttention was registered as no self-attention"):
        assert [layer.name for layer in mimetic_init_(model)] == ["0"]


def _pre_norm():
    return nn.TransformerEncoderLayer(16, 2, 32, norm_first=True)


class Contrastive(nn.Module):
    """Two projections of an encoder's output that are called like attention's."""

    def __init__(self, encoder):
        super().__init__()
        self.query_proj, self.key_proj = nn.Linear(16, 16), nn.Linear(16, 16)
        self.encoder = encoder


def test_what_is_inside_of_a_class_that_is_left_alone_is_named(adapters):
    model = nn.Sequential(nn.MultiheadAttention(16, 2), Contrastive(nn.TransformerEncoder(_pre_norm(), 2)))
    untouched(model, "with None that it is no self-attention, nor anything inside of it")
    adapters(Contrastive, None)
    with pytest.warns(
        MimeticWarning,
        match=r"1: left alone, .*, and with it known attention inside of it \(1\.encoder\.layers\.0\.self_attn and 1",
    ):
        assert [layer.name for layer in mimetic_init_(model)] == ["0"]


@pytest.mark.parametrize("first", ["probe", "encoder"])
def test_what_is_also_outside_of_a_class_that_is_left_alone_is_written(adapters, first):
    adapters(Contrastive, None)
    model, encoder = nn.Module(), _pre_norm()
    parts = {"probe": Contrastive(encoder), "encoder": encoder}
    for name in sorted(parts, key=lambda name: name != first):
        model.add_module(name, parts[name])
    with pytest.warns(MimeticWarning, match="probe: left alone"):
        assert [layer.name for layer in mimetic_init_(model)] == ["encoder.self_attn"]
    assert attention_layers(model)[0].gains_known


def test_a_hook_on_what_a_registered_reader_has_read_is_seen(adapters):
    plain = READERS["torch.nn.modules.activation.MultiheadAttention"]

    class TokenPoolMixer(nn.Module):  # its name would say of the layer inside that it pools
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 2)

    adapters(TokenPoolMixer, lambda module, name, ancestors: plain(module.attn, name, []))
    model = nn.Sequential(TokenPoolMixer(), TokenPoolMixer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [layer.name for layer in mimetic_init_(model)] == ["0", "1"]
    model[1].attn = nn.MultiheadAttention(16, 2, add_zero_attn=True)
    model[0].attn.register_forward_hook(lambda module, args, output: output)
    assert [layer.caveats for layer in attention_layers(model)] == [(HOOKED,), (ZERO,)]


def test_a_list_that_is_a_block_has_a_norm_of_its_own():
    block = _pre_norm()
    for other in (
        nn.ModuleList([nn.LayerNorm(16), block.self_attn, nn.Linear(16, 16)]),
        nn.ModuleDict({"norm": nn.LayerNorm(16), "attn": block.self_attn}),
    ):
        for model in (nn.ModuleList([block, other]), nn.ModuleList([other, block])):
            assert [layer.gains_known for layer in attention_layers(model)] == [False]


def test_weights_that_a_class_that_is_left_alone_has_too_are_not_written(adapters):
    adapters(Contrastive, None)
    model = nn.Sequential(nn.MultiheadAttention(16, 2), Contrastive(_pre_norm()))
    model[1].encoder.self_attn.in_proj_weight = model[0].in_proj_weight
    untouched(model, "0: one of its weights is also 1.encoder.self_attn.in_proj_weight, outside of attention")


def test_a_name_in_a_class_that_is_left_alone_says_nothing_of_the_layer(adapters):
    adapters(Contrastive, None)
    block = _pre_norm()
    assert attention_layers(nn.ModuleList([block, Contrastive(block.self_attn)]))[0].gains_known


def test_a_list_of_the_layers_beside_their_blocks_hides_no_norm():
    model = vit()
    nn.init.normal_(model.blocks[1].norm1.weight)
    folded = [layer.vp(fold=True) for layer in attention_layers(model)]
    for position in ("last", "first"):
        model.attentions = nn.ModuleList([block.attn for block in model.blocks])
        if position == "first":
            model._modules = {"attentions": model._modules.pop("attentions"), **model._modules}
        again = [layer.vp(fold=True) for layer in attention_layers(model)]
        assert all(map(torch.equal, folded, again))
    model.blocks[0].self_attn = model.blocks[0].attn  # a second name in one block
    assert torch.equal(attention_layers(model)[0].vp(fold=True), folded[0])


def test_a_layer_scale_near_0_is_warned_of(adapters):
    scales = {"0": 1e-6, "1": 1e-6, "2": 0.25, "3": 1.0}
    adapters(
        Mixer,
        lambda module, name, ancestors: read_mixer(module, name, ancestors, out_gain=torch.full((16,), scales[name])),
    )
    model = nn.Sequential(*(Mixer() for _ in scales))
    with pytest.warns(MimeticWarning) as caught:
        mimetic_init_(model)
    said = [str(w.message).partition(": W_V")[0] for w in caught]
    assert said == [
        "2 layers (0 to 1): LayerScale, or what else scales proj's output, is about 1e-06",
        "2: LayerScale, or what else scales proj's output, is about 0.2",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mimetic_init_(model, vp=False)


NO_SCALES = ("pos_bias", "cls_token", "cls", "ln1_b", "query", "logit_scale", "temperature", "ff_gate")


def test_a_layer_scale_in_a_block_that_is_not_known_is_warned_of():
    class Scaled(nn.Module):
        def __init__(self, scale, name):
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 2)
            self.register_parameter(name, nn.Parameter(torch.full((16, 1, 1), scale)))

    with pytest.warns(
        MimeticWarning, match="0.attn: layer_scale_1 beside it, which may scale its output, is about 1e-05"
    ):
        mimetic_init_(nn.Sequential(Scaled(1e-5, "layer_scale_1")))
    gate = nn.Sequential(Scaled(1.0, "norm"))
    gate[0].resweight = nn.Parameter(torch.zeros(1))  # ReZero's: one number, 0 at the start
    with pytest.warns(MimeticWarning, match="0.attn: resweight beside it, which may scale its output, is about 0"):
        mimetic_init_(gate)
    gate[0].resweight, gate[0].alpha = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(16))  # by its value
    with pytest.warns(MimeticWarning, match="0.attn: alpha beside it, which may scale its output, is about 0"):
        mimetic_init_(gate)
    for scale, name in ((1.0, "layer_scale_1"), (1e-5, "relative_bias"), *((0.0, name) for name in NO_SCALES)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mimetic_init_(nn.Sequential(Scaled(scale, name)))


class Modulated(nn.Module):
    """DiT's block with adaLN-Zero, as far as attention goes."""

    def __init__(self, parts=6, name="adaLN_modulation", zero=True):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2)
        self.add_module(name, nn.Sequential(nn.SiLU(), nn.Linear(16, parts * 16)))
        if zero:
            nn.init.zeros_(getattr(self, name)[1].weight)
            nn.init.zeros_(getattr(self, name)[1].bias)


def test_a_gate_that_starts_closed_is_warned_of():
    for name in ("adaLN_modulation", "modulation", "img_mod"):
        with pytest.warns(
            MimeticWarning, match=rf"0\.attn: {name} beside it, which may gate its output \(adaLN-Zero\)"
        ):
            mimetic_init_(nn.Sequential(Modulated(name=name)))
    for block in (Modulated(zero=False), Modulated(parts=2), Modulated(name="modulo")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mimetic_init_(nn.Sequential(block))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mimetic_init_(nn.Sequential(Modulated()), vp=False)


def test_parts_of_the_block_that_are_called_lora_are_warned_of():
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32), nn.TransformerEncoderLayer(16, 2, 32))
    model[1].LoRA_q = nn.Linear(16, 4)
    model[0].explorations = nn.Linear(16, 4)
    with pytest.warns(MimeticWarning) as caught:
        mimetic_init_(model)
    assert [str(w.message).partition(" may be")[0] for w in caught] == ["1.self_attn: LoRA_q beside it"]
    model[0].self_attn.lora_A = nn.Parameter(torch.zeros(4, 16))
    with pytest.warns(MimeticWarning, match=r"^0\.self_attn: lora_A beside it"):
        mimetic_init_(model)


@pytest.mark.parametrize("attribute", ["in_proj_weight", "out_proj.weight", "q_proj_weight"])
def test_a_flattened_shard_is_named(attribute):
    layer = nn.MultiheadAttention(16, 2, **({"kdim": 16, "vdim": 8} if attribute == "q_proj_weight" else {}))
    holder, _, name = attribute.rpartition(".")
    holder = layer.get_submodule(holder)
    setattr(holder, name, nn.Parameter(getattr(holder, name).detach().flatten()[:100]))
    untouched(nn.Sequential(layer), rf"0: {attribute} has shape \(100,\), not that of a matrix \(sharded or flattened")


def test_constants_that_float16_cannot_hold_are_refused():
    model = nn.Sequential(Block(48, 3), Block(48, 3).half())
    spec = MimeticSpec(vp_alpha=1e-8, vp_beta=1e-8)
    untouched(
        model, r"1\.attn: weights for vp_alpha 1e-08 and vp_beta 1e-08 are smaller than float16 can hold", spec=spec
    )
    assert len(mimetic_init_(model, MimeticSpec(vp_alpha=0, vp_beta=-1e-6))) == 2
    assert len(mimetic_init_(model, spec, vp=False)) == 2


def test_one_frozen_neighbour_in_the_same_storage_is_not_everybodys():
    model = nn.ModuleList([nn.MultiheadAttention(16, 2), nn.Linear(16, 4)])
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.nn.utils.vector_to_parameters(flat, model.parameters())
    model[1].requires_grad_(False)
    model[1].register_forward_hook(lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mimetic_init_(model)
    model[0].requires_grad_(False)
    with pytest.warns(MimeticWarning, match="0: frozen"):
        mimetic_init_(model)


def test_cross_attention_of_two_widths_is_not_measured():
    model = Pair()
    model.image_cross_attn = nn.MultiheadAttention(16, 2, kdim=8, vdim=8)
    assert set(mimetic.measure(model, cross=True).name) == {"self_attn", "cross_attn"}
    with pytest.raises(TypeError, match="list of AttentionLayer"):
        mimetic.measure([model])


def test_constants_too_small_for_float32_are_refused():
    assert MimeticSpec(qk_alpha=0).qk_alpha == 0 and semi_diagonal(np.int64(4), 0.7, 0.7).shape == (4, 4)
    with pytest.raises(ValueError, match="qk_alpha must be 0 or at least 1e-15 in size"):
        MimeticSpec(qk_alpha=1e-20)
