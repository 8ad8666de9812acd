"""The coverage table as a page of the book."""

from __future__ import annotations

from mimetic.adapters import views

VERDICTS = {  # best first
    "supported": "supported: every product verified",
    "with caveat": "supported, with a caveat (RoPE, QK-norm, …)",
    "in part": "in part: some layers refused (so nothing is written), the others verified",
    "refused": "refused, with the reason",
    "none": "no self-attention",
    "not built": "could not be built small or run",
    "wrong": "silently wrong",
}

CAVEAT_NAMES = {
    views.ROPE: "RoPE",
    views.QK_NORM: "QK-norm",
    views.INNER_NORM: "norm before proj",
    views.VALUE_NORM: "norm on values",
    views.OUT_NORM: "norm after proj",
    views.GATE: "gated heads",
    views.BIAS_GATE: "gated position bias",
    views.CLAMPED: "clamped q, k and v",
    views.SINKS: "attention sinks",
    views.HOOKED: "hooks on projections",
    views.NO_DROPOUT: "a part in the place of a dropout",
    views.UNSCALED: "another logit scale",
    views.OTHER_QUERIES: "further query matrices",
}

_MATH = {  # as a warning in a terminal writes it -> as a page does; longer ones first
    "W_Q W_K^T": r"$W_QW_K^\top$",
    "W_V W_proj": r"$W_VW_{proj}$",
    "W_V:": "$W_V$:",
    "q k^T": r"$qk^\top$",
    "sqrt(head_dim)": r"$\sqrt{\text{head size}}$",
    "+beta I": r"$+\beta I$",
}

_CELL = 220  # most characters of a finding in a table
# what Markdown would take for something else
_PLAIN = str.maketrans({"|": "/", "*": "\\*", "_": "\\_", "<": "&lt;", "$": "\\$", "`": "'", "{": "(", "}": ")"})

_PAGE_HEAD = """# Which models are supported

This page is written by `python -m mimetic coverage timm` and `python -m mimetic coverage transformers`. Every
architecture that the installed library can build small is built from its config with random weights and run. Random
tokens go into the first and the last attention layer of every kind, its softmax is left out (the scores go on as they
are), and what the layer's own forward then computes is compared with the products that `mimetic.attention_layers`
shows: $W_QW_K^\\top$ of every head and $W_VW_{proj}$ of every head, to a relative error of 10⁻³ or better. Then, but
for models too large for a table and those with refused layers, `mimetic_init_` runs, and what it reports is compared
with what the layers hold. A small transformers model can lack a kind of layer that the whole one has, so the whole
one, without weights, is searched for layers that are refused, too.

A class of attention layer counts as supported only after this check. Whatever else looks like attention is refused by
name: no architecture may show a wrong product. “Could not be built small or run” says nothing about support; of a
model in that row `python -c "import mimetic; help(mimetic.verify)"` tells how to check it where it runs.
"""

_NAMES_HEAD = """To look a model up, open a list and search the page: a timm family is the file it is in and its name
without size words, with `#` for numbers, so `vit_base_patch16_224` is `vision_transformer: vit_patch#_#`; a
transformers architecture has the name of its config or class. Your own model is asked by one line,
`mimetic.attention_layers(model)`, which needs no list.

What the caveats mean:
"""

_SUPPORTED_TOO = (
    "Supported, too; beside the layers that are written these have others that are no self-attention over one set of"
    " tokens, and are left alone:"
)

_LAYER_SCALE = """
Not counted here, because it is a value and not a class: a LayerScale that starts near 0, as in DeiT III, DINOv2, BEiT
and others, leaves next to nothing of $W_VW_{proj}$ until training raises it. `mimetic_init_` warns of it with the
number.
"""


def page(tables: list[dict]) -> str:
    """The coverage page of the book, from the tables."""
    lines = [_PAGE_HEAD]
    lines += ["| | " + " | ".join(f"{t['library']} {t['versions'][t['library']]}" for t in tables) + " |"]
    lines += ["| :-- |" + " --: |" * len(tables)]
    for verdict in VERDICTS:
        lines.append(f"| {VERDICTS[verdict]} | " + " | ".join(str(t["counts"][verdict]) for t in tables) + " |")
    lines.append("| **all** | " + " | ".join(str(len(t["architectures"])) for t in tables) + " |")
    lines += ["", _NAMES_HEAD, ""]
    lines += [f"* *{name}*: {_math(sentence)}." for sentence, name in CAVEAT_NAMES.items()]
    lines += [_LAYER_SCALE]
    for table in tables:
        library, families = table["library"], "Families of model names (sizes, patches and resolutions left out)"
        what = families if library == "timm" else "Model types"
        lines += ["", f"## {library} {table['versions'][library]}", ""]
        errors = [r["error"] for r in table["architectures"] if r["error"] is not None]
        if errors:
            lines += [f"{what}; largest relative error of a verified product: {max(errors):.0e}.", ""]
        for verdict in VERDICTS:
            rows = [r for r in table["architectures"] if r["verdict"] == verdict]
            if rows:
                lines += [f":::{{dropdown}} {library}: {verdict} ({len(rows)})", *_listed(rows, verdict), ":::", ""]
    return "\n".join(lines).rstrip() + "\n"


def _math(sentence: str) -> str:
    for plain, formula in _MATH.items():
        sentence = sentence.replace(plain, formula)
    return sentence


def _listed(rows: list[dict], verdict: str) -> list[str]:
    """The architectures of one verdict: names alone where there is nothing to say, a table of the others."""
    lines = []
    if verdict in ("none", "supported"):
        plain = [r["name"] for r in rows if not r["finding"]]
        if plain:
            lines += [", ".join(f"`{n}`" for n in plain) + ".", ""]
        rows = [r for r in rows if r["finding"]]
        if rows and verdict == "supported":
            lines += [_SUPPORTED_TOO, ""]
    if rows:
        lines += ["| architecture | finding |", "| :-- | :-- |"]
        lines += [f"| `{r['name']}` | {_cell(r['finding'])} |" for r in rows] + [""]
    return lines


def _cell(text: str) -> str:
    """A finding as plain text of a Markdown table."""
    text = " ".join(text.split()).translate(_PLAIN)
    return text if len(text) <= _CELL else text[: _CELL - 1].rstrip() + "…"
