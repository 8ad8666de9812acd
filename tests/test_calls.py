"""With which tokens a block calls nn.MultiheadAttention: what its code says, what names say, and what is warned of."""

import pytest
import torch
from torch import nn

from mimetic import AttentionLayer, MimeticWarning, UnsupportedAttention, adapters, attention_layers, mimetic_init_
from mimetic.adapters import linear_in, linear_out
from mimetic.adapters.torch_nn import OTHER_TOKENS
from mimetic.scan import scan
from mimetic.verify import verify

D = 16


def mha():
    return nn.MultiheadAttention(D, 2, batch_first=True)


class Wrapped(nn.Module):
    """A norm and attention, to itself where no context is given: used for both kinds."""

    def __init__(self):
        super().__init__()
        self.norm, self.mha = nn.LayerNorm(D), mha()

    def forward(self, x, mask=None, context=None):
        x = self.norm(x)
        context = x if context is None else context
        return self.mha(x, context, context, attn_mask=mask)[0]


class Given(nn.Module):
    def __init__(self):
        super().__init__()
        self.mha = mha()

    def forward(self, q, k, v):
        return self.mha(q, k, v)[0]


class Either(nn.Module):
    def __init__(self):
        super().__init__()
        self.mha = mha()

    def forward(self, x, kv=None):
        return self.mha(x, x, x)[0] if kv is None else self.mha(x, kv, kv)[0]


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(D), fn

    def forward(self, x, *args, **kwargs):
        return x + self.fn(self.norm(x), *args, **kwargs)


class Two(nn.Module):
    """Two layers whose names say nothing."""

    def __init__(self, make=mha):
        super().__init__()
        self.one, self.two = make(), make()


class TwoWrapped(Two):
    def forward(self, x, memory):
        return self.two(self.one(x), context=memory)


class TwoEither(Two):
    def forward(self, x, memory):
        return self.two(self.one(x), memory)


class TwoGiven(Two):
    def forward(self, x, memory):
        x = self.one(x, x, x)
        return self.two(x, memory, memory)


class Listed(nn.Module):
    def __init__(self, *rows):
        super().__init__()
        self.rows = nn.ModuleList(rows)


class InOrder(Listed):
    def forward(self, x, memory):
        for norm, one, two in self.rows:
            x = one(norm(x), norm(x), x)[0]
            x = two(x, memory, memory)[0]
        return x


class ByNumber(Listed):
    def forward(self, x, memory):
        for i, _ in enumerate(self.rows):
            x = self.rows[i]["it"](x, x, x)[0]
            x = self.rows[i]["other"](x, memory, memory)[0]
        return x


class Zipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.ones, self.twos = (nn.ModuleList([mha()]) for _ in range(2))

    def forward(self, x, memory):
        for a, b in zip(self.ones, self.twos):
            x = b(a(x, x, x)[0], memory, memory)[0]
        return x


class ByName(Two):
    def forward(self, x, memory):
        for name in ("one", "two"):
            x = getattr(self, name)(x, memory, memory)[0]
        return x


class TwoStreams(Two):
    def forward(self, v, t):
        return self.one(v, t, t)[0], self.two(t, v, v)[0]


class Sasrec(Listed):
    """Only the queries are normalised."""

    def __init__(self):
        super().__init__(mha(), mha())
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(2))

    def forward(self, x):
        for i in range(2):
            x = x.transpose(0, 1)
            q = self.norms[i](x)
            x = (q + self.rows[i](q, x, x)[0]).transpose(0, 1)
        return x


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (TwoWrapped(Wrapped), ["self", "cross"]),
        (TwoEither(Either), ["self", "cross"]),
        (TwoGiven(Given), ["self", "cross"]),
        (TwoGiven(lambda: Residual(Given())), ["self", "cross"]),
        (TwoWrapped(lambda: Residual(Wrapped())), ["self", "cross"]),
        (nn.Sequential(Wrapped(), Residual(Either())), ["self", "self"]),
        (InOrder(nn.ModuleList([nn.LayerNorm(D), mha(), mha()])), ["self", "cross"]),
        (ByNumber(nn.ModuleDict({"it": mha(), "other": mha()})), ["self", "cross"]),
        (Zipped(), ["self", "cross"]),
        (ByName(), ["cross", "cross"]),
        (Sasrec(), ["self", "self"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_code_says_it_through_wrappers_and_lists(model, kinds):
    layers = attention_layers(model)
    assert [layer.kind for layer in layers] == kinds
    assert not any(OTHER_TOKENS in layer.caveats for layer in layers)


class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = mha()

    def forward(self, x):
        return self.attn(x[:, :1], x, x)[0]


class Reduced(ClassToken):
    def forward(self, x):
        fewer = x.unflatten(1, (-1, 2)).mean(2)
        return self.attn(x, fewer, fewer)[0]


class Dictionary(ClassToken):
    def forward(self, batch):
        x, memory = batch["x"], batch["memory"]
        return self.attn(x, memory, memory)[0]


class SelfNamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn = Dictionary(), Dictionary()

    def forward(self, batch):
        return self.self_attn(batch) + self.cross_attn(batch)


@pytest.mark.parametrize("block", [ClassToken, Reduced, Dictionary])
def test_what_nothing_says_is_warned_of(block):
    with pytest.warns(
        MimeticWarning, match="attn: its block calls it with different expressions .* taken for self-att"
    ):
        mimetic_init_(block())


def test_names_around_the_wrapper_say_what_its_code_does_not():
    layers = attention_layers(SelfNamed())
    assert [(layer.name, layer.kind, layer.caveats) for layer in layers] == [
        ("self_attn.attn", "self", ()),
        ("cross_attn.attn", "cross", ()),
    ]


class Asks(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries, self.layers = nn.Embedding(3, D), nn.ModuleList([mha(), mha()])

    def forward(self, x):
        q = self.queries(torch.arange(3)).expand(len(x), -1, -1)
        for layer in self.layers:
            q = q + layer(q, x, x)[0]
        return q


def test_a_learned_query_in_a_loop_pools():
    found = scan(Asks())
    assert not found.layers and list(found.passed_over) == ["layers.0", "layers.1"]
    assert "Asks pools with a learned query" in found.passed_over["layers.1"]


class Before(nn.Module):
    def __init__(self, make, parts=1):
        super().__init__()
        self.parts, self.attn = nn.ModuleList(make() for _ in range(parts)), mha()


class Chunks(Before):
    def forward(self, x):
        q, k, v = self.parts[0](x).chunk(3, dim=-1)
        return self.attn(q, k, v)[0]


class Activated(Before):
    def forward(self, x):
        return self.attn(torch.relu(self.parts[0](x)), self.parts[1](x).relu(), x)[0]


class Convolved(Before):
    def forward(self, x):
        x = x.mT
        q, k = self.parts[0](x).mT, self.parts[1](x).mT
        return self.attn(q, k, k)[0]


class InAList(Before):
    def __init__(self, make, parts):
        super().__init__(make, parts)
        self.attn = nn.ModuleList([self.attn])

    def forward(self, x):
        for attn in self.attn:
            x = attn(self.parts[0](x), self.parts[1](x), x)[0]
        return x


class HalvesOfTheSequence(Before):
    def forward(self, x):
        a, b = self.parts[0](x).chunk(2, 1)
        return self.attn(a, b, b)[0]


class Towers(Before):
    def forward(self, x):
        return self.attn(self.parts[0](x), self.parts[1](x), x)[0]


def tower():
    return nn.Sequential(nn.Sequential(nn.Linear(D, D), nn.ReLU()), nn.Linear(D, D))


@pytest.mark.parametrize(
    "model",
    [
        Chunks(lambda: nn.Linear(D, 3 * D)),
        Activated(lambda: nn.Linear(D, D), 2),
        Towers(lambda: nn.Sequential(nn.Linear(D, D), nn.GELU()), 2),
        Convolved(lambda: nn.Conv1d(D, D, 3, padding=1, groups=D), 2),
        InAList(lambda: nn.Linear(D, D), 2),
    ],
)
def test_matrices_before_the_layer_are_seen_through_what_changes_form_only(model):
    with pytest.raises(UnsupportedAttention, match=r"attn(\.0)?: .* makes queries and keys with parts before it calls"):
        attention_layers(model)


def test_what_makes_tokens_is_no_projection():
    for model in (HalvesOfTheSequence(lambda: nn.Linear(D, D)), Towers(tower, 2)):
        (layer,) = attention_layers(model)
        assert OTHER_TOKENS in layer.caveats


def test_verify_sees_cross_attention_that_was_taken_for_self_attention():
    class Block(Dictionary):
        def forward(self, x):
            return super().forward({"x": x, "memory": x.flip(1)})

    model = Block()
    (check,) = verify(model, lambda m: m(torch.randn(2, 4, D)))
    assert check.problem.startswith("wrong: it is called with other tokens as keys than as queries")


class Source(nn.Module):
    """Keys under a name that is not known, and values made of them."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, x, spoken):
        q, k, v = (part(t).unflatten(-1, (2, -1)).transpose(1, 2) for part, t in
                   ((self.q, x), (self.k, spoken), (self.v, spoken)))  # fmt: skip
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).flatten(2))


def test_verify_finds_keys_under_any_name(monkeypatch):
    def read(module, name, ancestors):
        q, k, v = (linear_out(part, 2, name)[0] for part in (module.q, module.k, module.v))
        return AttentionLayer(name, q, k, v, linear_in(module.o, 2, name)[0], kind="cross")

    monkeypatch.setattr(adapters, "_CUSTOM", {Source: read})
    model = Source()
    x, spoken = torch.randn(2, 4, D), torch.randn(2, 6, D)
    assert verify(model, lambda m: m(x, spoken))[0].ok
    assert verify(model, lambda m: m(x, spoken=spoken))[0].ok
