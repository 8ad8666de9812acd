"""An audit: its numbers, what they mean in words, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mimetic.audit.parameters import Parameters

if TYPE_CHECKING:
    import pandas as pd

# Thresholds of the answers in words; the numbers do not depend on them.
CHANCE = 2.0  # a diagonal counts when it is so many null standard deviations away from chance
CLEAR = 0.75  # a product has a sign when more than this share of its heads (QK) or layers (V.proj) have it
EXPLAINED = 0.05  # of a product's energy must lie along the identity for an imitation to say something about it
MEANINGFUL = 0.10  # of the parameters must be attention for its initialization to be a large part of the model's
CATALOGUES = tuple(10**k for k in range(2, 8))  # items

TABLES = {"qk": "W_Q W_K^T", "vp": "W_V W_proj"}
PATTERN = {("+", "−"): "the signs of vision models", ("−", "+"): "the opposite of vision's signs"}


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found; ``print`` it, or read the tables."""

    name: str  #: of the model
    products: pd.DataFrame  #: measure's rows, one a head (qk) or layer (vp), with explained
    #: one row a layer and product, with alpha, beta, explained, imitated, target, limit, reachable
    layers: pd.DataFrame
    fold: bool  #: gains of the norms folded in
    parameters: Parameters | None  #: None where only attention weights are at hand
    notes: tuple[str, ...] = ()  #: what to know before reading it
    answers: tuple[str, str, str, str] = field(default=("",) * 4)  #: the three answers and what follows from them

    def shares(self, catalogues: Sequence[int] = CATALOGUES) -> dict[int, float]:
        """Attention's share of the parameters by catalogue size; {} without an item table."""
        if self.parameters is None or self.parameters.items is None:
            return {}
        return {n: self.parameters.share(n) for n in catalogues}

    def signs(self) -> dict[str, str]:
        """The sign ("+", "−" or "none") of "qk" (over heads) and of "vp" (over layers): what more than CLEAR of them
        have beyond CHANCE.
        """
        return {product: sign(rows["sigmas"]) for product, rows in self.products.groupby("product")}

    def __str__(self) -> str:
        return "\n".join(report(self))


def beyond_chance(sigmas: pd.Series) -> tuple[int, int]:
    """How many of the diagonals are above CHANCE, and how many below."""
    return int((sigmas > CHANCE).sum()), int((sigmas < -CHANCE).sum())


def sign(sigmas: pd.Series) -> str:
    """What more than CLEAR of the diagonals are, beyond CHANCE: "+", "−" or "none"."""
    above, below = beyond_chance(sigmas)
    enough = CLEAR * len(sigmas)
    return "+" if above > enough else "−" if below > enough else "none"


def sign_words(qk: str, vp: str, none: str = "no common sign") -> str:
    """The signs of both products (see sign) in words; none: of one that has none."""
    return ", ".join(f"{name} {none if found == 'none' else found}" for name, found in (("QK", qk), ("V·proj", vp)))


def answers(found: Audit) -> tuple[str, str, str, str]:
    """The three answers and what follows from them, by the thresholds above."""
    signs = found.signs()
    clear = [product for product in ("qk", "vp") if signs[product] != "none"]
    parts = []
    for product, unit in (("qk", "heads"), ("vp", "layers")):
        rows = found.products[found.products["product"] == product]
        above, below = beyond_chance(rows["sigmas"])
        parts.append(
            f"{TABLES[product]} is above chance in {above} and below in {below} of {len(rows)} {unit} (median z"
            f" {rows['z'].median():+.2f})"
        )
    named = PATTERN.get((signs["qk"], signs["vp"]))
    if not clear:
        first = "No: neither product has a sign in more than three quarters of its heads or layers."
    else:
        has = " and ".join(f"{TABLES[p]} {signs[p]}" for p in clear)
        if named:
            has += f", {named}"
        elif len(clear) == 1:
            has += f"; {TABLES['vp' if clear == ['qk'] else 'qk']} has no clear sign"
        first = f"Yes: {has}."
    first = f"{first} {'; '.join(parts)}."

    shares = {p: found.layers[found.layers["product"] == p] for p in ("qk", "vp")}
    means = {p: float(rows["explained"].mean()) for p, rows in shares.items()}
    enough = [p for p in clear or ("qk", "vp") if means[p] >= EXPLAINED]
    word = "Yes" if clear and len(enough) == len(clear) else "In part" if clear and enough else "Hardly"
    details = [
        f"of {TABLES[p]}'s energy {means[p]:.1%} lies along the identity ({rows['target'].mean():.1%} of the fitted"
        f" target before truncation to the rank that the layer has, {rows['imitated'].mean():.1%} after, at most"
        f" {rows['limit'].mean():.0%})"
        for p, rows in shares.items()
    ]
    stuck = found.layers[~found.layers["reachable"]]
    second = (
        f"{word}: {'; '.join(details)}. The rest of a product is noise to the imitation, whatever it is in the model."
    )
    if len(stuck):
        second += (
            f" In {len(stuck)} of {len(found.layers)} products the diagonal is stronger than a truncated alpha Z + beta"
            " I can be."
        )

    counts = found.parameters
    if counts is None:
        third, meaningful = "Not known: the model's other parameters are not at hand.", None
    else:
        share, meaningful = counts.share(), counts.share() >= MEANINGFUL
        third = (
            f"{'Yes' if meaningful else 'No'}: {counts.attention:,} of {counts.total:,} parameters are attention,"
            f" {share:.1%}."
        )
        if catalogue := found.shares():
            # in percent, with two digits where one behind the point would be 0.0
            parts = [
                f"{n:,} items {100 * catalogue[n]:.2g}%" if catalogue[n] < 0.001 else f"{n:,} items {catalogue[n]:.1%}"
                for n in (10**3, 10**5, 10**7)
            ]
            third += f" With {', '.join(parts)}."

    if not clear:
        last = "There is no sign to imitate; keep the default, or test both signs against it."
    else:
        names = {"qk": "QK", "vp": "V.proj"}
        wish = {p: f"beta {'above' if signs[p] == '+' else 'below'} 0 for {names[p]}" for p in names}
        last = f"An imitation would take {' and '.join(wish[p] for p in clear)}: mimetic.fit gives the constants."
        if (signs["qk"], signs["vp"]) == ("−", "+"):
            last += " The default constants of mimetic_init_, vision's, would push both products the wrong way."
        if not enough:
            last += " Little of what training made is in those diagonals, so little is to be expected of it."
        if meaningful is False:
            last += " And most of this model lies outside attention, where this initialization does nothing."
    return first, second, third, last


def report(found: Audit) -> list[str]:
    """The lines that print shows."""
    lines = [f"{found.name}: {'gains of the norms folded in' if found.fold else 'raw weights'}", ""]
    lines += ["layer  product        z     sigmas   alpha    beta   explained  target  imitated  limit"]
    for row in found.layers.itertuples():
        part = found.products[(found.products["layer"] == row.layer) & (found.products["product"] == row.product)]
        lines.append(
            f"{row.layer:5d}  {TABLES[row.product]:10s} {part['z'].mean():+6.2f} {part['sigmas'].mean():+9.1f}"
            f" {row.alpha:8.3g} {row.beta:+8.3g} {row.explained:9.1%} {row.target:8.1%} {row.imitated:8.1%}"
            f" {row.limit:7.0%}" + ("" if row.reachable else "  not reachable")
        )
    for product in ("qk", "vp"):
        rows = found.products[found.products["product"] == product]
        if product == "qk" and rows["head"].nunique() > 1:
            lines += ["", "sigmas of W_Q W_K^T by head"]
            for layer, part in rows.groupby("layer"):
                lines.append(f"{layer:5d}  " + " ".join(f"{s:+.1f}" for s in part["sigmas"]))
    if found.parameters is not None:
        p = found.parameters
        parts = {"attention": p.attention, "MLP": p.mlp, "embedding": p.embedding, "rest": p.rest}
        if not p.mlp:  # its layers lie where no block of an attention layer is
            parts = {"attention": p.attention, "embedding": p.embedding, "MLP and rest": p.rest}
        lines += ["", "parameters   " + "   ".join(f"{k} {v:,} ({v / p.total:.1%})" for k, v in parts.items())]
        if shares := found.shares():
            lines += [
                "attention by catalogue size   "
                + "   ".join(f"{n:,}: {s:.2%}" if s >= 1e-3 else f"{n:,}: {100 * s:.2g}%" for n, s in shares.items())
            ]
    questions = (
        "1. Layers worth imitating?",
        "2. Can matrix operations imitate them?",
        "3. A meaningful share of the model?",
        "So:",
    )
    for question, answer in zip(questions, found.answers):
        lines += ["", f"{question} {answer}"]
    return lines + ([""] + [f"note: {note}" for note in found.notes] if found.notes else [])
