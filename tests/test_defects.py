"""Each defect found in public re-implementations, written on purpose, and the check that sees it.

The check is the elementwise comparison used throughout: the products through the module's own forward against the
targets. A trace or a mean diagonal would pass several of these, which the tests also show.
"""

import pytest
import torch
from torch import nn

from mimetic import attention_layers, factor, factor_top_k, mimetic_init_, semi_diagonal
from mimetic.models.blocks import SelfAttention

D, H, K = 96, 3, 32


def products(attn):
    """(QK per head (H, D, D), V.proj (D, D)) from the module's forward alone: basis vectors in, numbers out."""
    seen = {}
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **kwargs):
        seen["q"], seen["k"] = q, k
        return original(q, k, v, **kwargs)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        vp = attn(torch.eye(D)[:, None])[:, 0]  # D sequences of one token each
    q, k = (seen[part][:, :, 0].transpose(0, 1) for part in "qk")
    return q @ k.mT, vp


def write(attn, defect, generator):
    """The initializer written out by hand, right but for one defect. Returns the targets."""
    qk_noise = {"noise with std 1/d": D**-0.5, "noise with a third of the variance": 3**-0.5}.get(defect, 1.0)
    alpha_beta = {"qk": (0.7, 0.7), "vp": (0.4, -0.4)}
    if defect == "roles of the products swapped":
        alpha_beta = {"qk": (0.4, -0.4), "vp": (0.7, 0.7)}
    if defect == "0.4 and 0.4 for both products":
        alpha_beta["qk"] = (0.4, 0.4)
    if defect == "plus sign on V.proj":
        alpha_beta["vp"] = (0.4, 0.4)
    qk_targets = torch.stack([semi_diagonal(D, 0.7, 0.7, generator=generator) for _ in range(H)])
    vp_target = semi_diagonal(D, 0.4, -0.4, generator=generator)
    rows = attn.qkv.weight.data.view(3, H, K, D)
    for h in range(H):
        Z = (qk_targets[0 if defect == "one Z for all heads" else h] - 0.7 * torch.eye(D)) / 0.7
        alpha, beta = alpha_beta["qk"]
        left, right = factor_top_k(alpha * qk_noise * Z + beta * torch.eye(D), K)
        if defect == "square root of S taken twice":
            S = left.norm(dim=0)
            left, right = left / S.sqrt(), right / S.sqrt()[:, None]
        rows[0, h], rows[1, h] = left.mT, right
        if defect == "rows and columns mixed up":
            rows[0, h] = left.flatten().view(K, D)
        if defect == "Q and K of different heads" and h:
            rows[1, h] = rows[1, 0]
    alpha, beta = alpha_beta["vp"]
    left, right = factor(alpha * (vp_target + 0.4 * torch.eye(D)) / 0.4 + beta * torch.eye(D))
    if defect == "V and proj stored untransposed":
        rows[2], attn.proj.weight.data = left.reshape(H, K, D), right.clone()
    elif defect == "proj rows instead of columns":
        rows[2], attn.proj.weight.data = left.mT.reshape(H, K, D), right.clone()
    elif defect == "V.proj head by head":
        pairs = [factor_top_k(semi_diagonal(D, 0.4, -0.4, generator=generator), K) for _ in range(H)]
        rows[2], attn.proj.weight.data = (
            torch.stack([v.mT for v, _ in pairs]),
            torch.cat([proj for _, proj in pairs]).mT.clone(),
        )
    elif defect == "identity blocks instead of a product":
        rows[2], attn.proj.weight.data = (0.4**0.5 * torch.eye(D)).view(H, K, D), -(0.4**0.5) * torch.eye(D)
    else:
        rows[2], attn.proj.weight.data = left.mT.reshape(H, K, D), right.mT.clone()
    nn.init.zeros_(attn.qkv.bias), nn.init.zeros_(attn.proj.bias)
    if defect == "biases left random":
        nn.init.uniform_(attn.qkv.bias, -0.1, 0.1, generator=generator)
    return torch.stack([left @ right for left, right in (factor_top_k(A, K) for A in qk_targets)]), vp_target


def wrong_entries(attn, targets) -> bool:
    return any((p - t).abs().max().item() > 1e-5 for p, t in zip(products(attn), targets))


DEFECTS = [
    "V and proj stored untransposed",
    "square root of S taken twice",
    "noise with std 1/d",
    "noise with a third of the variance",
    "0.4 and 0.4 for both products",
    "one Z for all heads",
    "roles of the products swapped",
    "plus sign on V.proj",
    "rows and columns mixed up",
    "Q and K of different heads",
    "proj rows instead of columns",
    "identity blocks instead of a product",
    "V.proj head by head",
    "biases left random",
]


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_is_seen(defect):
    attn = SelfAttention(D, H)
    targets = write(attn, defect, torch.Generator().manual_seed(0))
    assert wrong_entries(attn, targets)


def test_right_by_hand_and_right_by_the_library():
    attn = SelfAttention(D, H)
    targets = write(attn, None, torch.Generator().manual_seed(0))
    assert not wrong_entries(attn, targets)
    mimetic_init_(attn, generator=torch.Generator().manual_seed(0))
    assert not wrong_entries(attn, targets)


def test_a_trace_does_not_see_the_untransposed_product():
    """R L has the eigenvalues of L R: the mean diagonal is right and the
    diagonal's spread is several times too large.
    """
    attn = SelfAttention(D, H)
    _, target = write(attn, "V and proj stored untransposed", torch.Generator().manual_seed(0))
    stored = attention_layers(attn)[0].vp()
    assert stored.trace().item() == pytest.approx(target.trace().item(), rel=1e-3)
    assert stored.diagonal().std() > 4 * target.diagonal().std()


def test_a_product_made_head_by_head_has_another_diagonal():
    """Each head's best rank-k part of -0.4 I holds more than k/d of it, so their sum is more than the whole."""
    attn = SelfAttention(D, H)
    write(attn, "V.proj head by head", torch.Generator().manual_seed(0))
    assert attention_layers(attn)[0].vp().diagonal().mean().item() == pytest.approx(-0.68, abs=0.03)
