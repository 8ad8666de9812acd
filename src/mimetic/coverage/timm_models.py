"""The smallest model of every family of timm's, and inputs that fit it."""

from __future__ import annotations

import functools
import re

import torch
from torch import nn

from mimetic.coverage.build import MAX_PARAMETERS, NotBuilt, Plan, TimeUp, may_have_attention, short_error

# the words for a size in models' names, small first
_SIZES = """
    test atto femto pico nano zepto xxxs xxs xs xtiny wee tiny pwee little mini s small mediumd medium betwixt m b
    base l large xl xlarge xxlarge h huge g giant gigantic gg e enormous so150m so150m2 so400m 7b 1b 3b pe
""".split()


def timm_families() -> dict[str, list[str]]:
    """{family: its models, likely smallest first}: names that differ only in
    size, patch and resolution are one family.
    """
    import timm

    families: dict[str, list[tuple]] = {}
    for name in timm.list_models():
        words = name.split("_")
        rank = [(_SIZES.index(w) if w in _SIZES else 0) for w in words]
        numbers = [int(n) for w in words for n in re.findall(r"\d+", w)]
        kept = [re.sub(r"\d+", "#", w) for w in words if w not in _SIZES]
        module = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
        families.setdefault(f"{module}: {'_'.join(kept)}", []).append((sum(rank), sum(numbers), name))
    return {family: [name for *_, name in sorted(members)] for family, members in sorted(families.items())}


def plan_timm(family: str) -> Plan:
    """A family's smallest model, two blocks deep where the model allows it; raises NotBuilt with the reason."""
    import timm

    reasons = []
    for name in timm_families()[family][:4]:
        patch = re.search(r"patch(\d+)", name)
        small = [{"depth": 2, "img_size": 4 * int(patch[1])}] if patch and int(patch[1]) >= 8 else []
        for kwargs in (*small, {"depth": 2}, {}):
            try:
                with torch.device("meta"):
                    outline = timm.create_model(name, **kwargs)
                size = sum(p.numel() for p in outline.parameters())
                if size <= MAX_PARAMETERS or not may_have_attention(outline):
                    return Plan(name, outline, functools.partial(timm.create_model, name, **kwargs))
                reasons.append(f"{name} has {size // 1_000_000} M parameters")
            except TimeUp:
                raise
            except Exception as e:  # noqa: BLE001
                reasons.append(short_error(e))
    raise NotBuilt(reasons[-1])


def timm_runs(model: nn.Module):
    channels, *size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    if getattr(getattr(model, "patch_embed", None), "img_size", None):
        size = model.patch_embed.img_size
    g = torch.Generator().manual_seed(0)
    batch = 1 if size[0] > 512 else 2  # attention maps of large images are large
    images = torch.randn(batch, channels, *size, generator=g)
    yield lambda model: model(images)
