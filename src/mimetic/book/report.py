"""Sentences and files that are written from records: when the records change, so do the numbers and the verdict words.

python -m mimetic.book.report      writes what README.md and book/index.md say was found, and book/_static/overview.png
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pandas as pd

from mimetic import figures
from mimetic.book import reproduction
from mimetic.book.claims import claims
from mimetic.book.pattern import overview_profiles
from mimetic.book.vision import number
from mimetic.data.fetch import atomic_path, data_dir
from mimetic.experiments.programmes.vision import CENTRAL
from mimetic.measure import LAYER_HEAD
from mimetic.pretrained import effective, load_measurements
from mimetic.training.records import load_runs

LAB = CENTRAL.experiment
RESULTS = {
    "supported": "product verified",
    "with caveat": "verified, with a warning",
    "in part": "refused for some of its layers",
    "refused": "refused, with the reason",
    "none": "no self-attention",
    "not built": "could not be built small or run",
    "wrong": "silently wrong",
}
BEGIN, END = "<!-- number: begin (written from the run records) -->", "<!-- number: end -->"


def setting(finals: pd.DataFrame) -> str:
    """Data, model and length of the laboratory runs, from their configs; that there are none."""
    if finals.empty:
        return "no run yet"
    row, words = finals.iloc[0], {"sincos2d": "fixed sin-cos positions", "avg": "average pooling"}
    return (
        f"{row['config.train_size']:,.0f} CIFAR-10 images, {row['config.epochs']:.0f} epochs,"
        f" ViT of width {row['config.d_model']:.0f}, {row['config.depth']:.0f} layers,"
        f" {row['config.num_heads']:.0f} heads, {row['parameters.total'] / 1e6:.2f} M parameters,"
        f" {words[row['config.pos_embed']]}, {words[row['config.global_pool']]}"
    )


def shown_layer(source: str, layer: int) -> str:
    """Which layers the overview figure shows, and how their diagonals differ."""
    measurements = load_measurements([source])
    measurements = measurements[(measurements["product"] == "vp") & (measurements["head"] == LAYER_HEAD)]
    z = effective(measurements).set_index("layer")["z"]
    raw = measurements[~measurements["fold"]].set_index("layer")["z"]
    without = ""
    if not raw.equals(z):
        without = (
            f" (with the model's learned gains multiplied in; without them {raw.min():+.1f} to {raw.max():+.1f}:"
            " [chapter 2](02_looking_inside.ipynb) says why)"
        )
    return (
        f"Thick in panel 1 is layer {layer} of {len(z)}, counted from 0; thin, the others."
        f" The diagonal of $W_VW_{{proj}}$ is {z[layer]:+.1f} there, {z.median():+.1f} in the median layer,"
        f" and from {z.min():+.1f} to {z.max():+.1f} over all{without}."
    ).replace(" -", " −")


def coverage_counts() -> pd.DataFrame:
    """Number of architectures by result (index) and library with its version (columns), from data/coverage."""
    columns = {}
    for path in sorted((data_dir() / "coverage").glob("*.json")):
        table = json.loads(path.read_text(encoding="utf-8"))
        columns[f"{table['library']} {table['versions'][table['library']]}"] = table["counts"]
    return pd.DataFrame(columns).rename(index=RESULTS).loc[list(RESULTS.values())].astype(int)


def coverage_sentence() -> str:
    """How many architectures with attention that could be run are written whole, from data/coverage."""
    said = []
    for name, counts in coverage_counts().items():
        whole = counts[RESULTS["supported"]] + counts[RESULTS["with caveat"]]
        every = whole + counts[RESULTS["in part"]] + counts[RESULTS["refused"]]
        said.append(f"{whole} of {every} in {name} ({counts[RESULTS['none']]} more have no self-attention)")
    return (
        f"Of the architectures with self-attention that could be built small and run, it writes {' and '.join(said)}."
    )


def one_number() -> str:
    """The book's one number, with what it hangs on."""
    finals = load_runs(LAB)
    return f"A small ViT on CIFAR-10, last-epoch test accuracy: {number(finals)}. Laboratory scale: {setting(finals)}."


def findings() -> str:
    """What was found so far: the one number, a table of what else was asked, and how many claims hold."""
    table = f":::{{dropdown}} Every model in one table\n{reproduction.HOW_TO_READ}\n\n{reproduction.summary()}\n:::"
    return f"{one_number()}\n\n{table}\n\n{reproduction.counts(claims())}"


WRITTEN = {"README.md": one_number, "book/index.md": findings}


def with_findings(text: str, said: str) -> str:
    """A page with what was found between its two marks. Raises ValueError if the marks are not there."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{said}\n{END}{rest.partition(END)[2]}"


def main(root: Path = Path()) -> None:
    """Write the pages of WRITTEN and the overview figure below root."""
    matplotlib.use("agg")  # without a display, too
    for name, said in WRITTEN.items():
        with atomic_path(root / name) as part:
            part.write_text(with_findings((root / name).read_text(encoding="utf-8"), said()), encoding="utf-8")
    figure = figures.overview(overview_profiles(), load_runs(LAB))
    with atomic_path(root / "book" / "_static" / "overview.png") as part:
        figure.savefig(part, format="png", metadata={"Software": None})
    print(f"wrote {', '.join(WRITTEN)} and book/_static/overview.png")


if __name__ == "__main__":
    main()
