"""What the reproduction report says (chapter 13): every claim, whose it is, what was found and how far that carries; what was run.

A verdict is a word that follows from an interval (judged) or from counted signs; below ENOUGH pairs it is "open", whatever they say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pandas as pd

from mimetic.audit import MEANINGFUL
from mimetic.audit.report import sign
from mimetic.data.fetch import data_dir
from mimetic.experiments import pattern, share
from mimetic.experiments.answers import common, gpu, questions, recommenders
from mimetic.experiments.answers.vision import gain_panels
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.construction import constants_table
from mimetic.experiments.metrics import ACCURACY, Metric
from mimetic.experiments.programmes import QUEUES
from mimetic.experiments.programmes import language as language_programme
from mimetic.experiments.programmes import recommenders as recommender_programme
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.runs import existing, family
from mimetic.statistics import ENOUGH, contrast, correlation, slopes_per_doubling, summary
from mimetic.training.records import load_runs

HOLDS, PART, NOT, UNDECIDED, OPEN = "holds here", "holds in part", "does not hold here", "undecided", "open"
MEANING = {
    HOLDS: "the 95 % interval lies on the side that the claim says, over at least five pairs; or what was counted does",
    PART: "some of what the claim says was found, and the rest was not",
    NOT: "the interval lies on the other side, or what was counted does",
    UNDECIDED: "enough pairs, and their interval has 0 in it",
    OPEN: "not run, or fewer than five pairs so far",
}
_PLURAL = {HOLDS: "hold here", PART: "hold in part", NOT: "do not hold here", UNDECIDED: "are undecided", OPEN: "are open"}
PAPER, REVIEW, GUESS, COURSE, OURS = "the paper", "a review of it", "its authors, by that review", "a course project", "our question"


@dataclass(frozen=True)
class Claim:
    """One row of the report."""

    part: str
    says: str
    whose: str
    page: str  # the chapter's file in book/
    judge: Callable[[], tuple[str, str]]  # verdict, and what was found


def judged(values: pd.Series, metric: Metric, *, expected: int = 1, unit: str = "") -> tuple[str, str]:
    """The verdict on paired values and the values in words: mean, 95 % interval, number of pairs.

    Args:
        values: one number a seed, in the metric's stored unit.
        expected: 1 if the claim says that the metric gets better, -1 worse.
        unit: instead of the metric's own.
    """
    if not len(values):
        return OPEN, "no pair yet"
    row = summary(values)
    found = f"{metric.signed(row['difference'])} {unit or metric.difference or metric.name}".strip()
    if row["pairs"] == 1:
        return OPEN, f"{found}, one pair"
    found += f" ({metric.signed(row['low'])} to {metric.signed(row['high'])}, {row['pairs']} pairs)"
    if row["pairs"] < ENOUGH:
        return OPEN, found
    if row["low"] <= 0 <= row["high"]:
        return UNDECIDED, found
    return HOLDS if metric.better(row["difference"]) == (expected > 0) else NOT, found


def joined(parts: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """One verdict on a claim that was tested in several ways: theirs if they agree, open while one is, else in part."""
    words = {verdict for verdict, _ in parts.values()}
    verdict = words.pop() if len(words) == 1 else OPEN if OPEN in words else PART
    return verdict, "; ".join(f"{name} {found}" for name, (_, found) in parts.items())


# --- the claims ------------------------------------------------------------------------------------------------------


def _signs(products: pd.DataFrame) -> pd.DataFrame:
    """One row a measured model: the sign of its QK heads and of its V·proj layers, "none" where they have no common one."""
    rows = {}
    for title, part in products.groupby("title", sort=False):
        layers = part[(part["product"] == "vp") & (part["head"] == -1)]
        rows[title] = {"qk": sign(part.loc[part["product"] == "qk", "sigmas"]), "vp": sign(layers["sigmas"])}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["qk", "vp"])


def _trained_vision() -> tuple[str, str]:
    measured = pattern.effective()
    signs = _signs(measured[measured["modality"] == "vision"])
    qk, vp, n = (signs["qk"] == "+").sum(), (signs["vp"] == "−").sum(), len(signs)
    found = f"QK + in {qk} and V·proj − in {vp} of {n} measured ({', '.join(signs.index)})"
    return HOLDS if qk == vp == n else PART if qk + vp else NOT, found


def _trained_text() -> tuple[str, str]:
    measured = pattern.effective()
    signs = _signs(measured[measured["causal"] & (measured["modality"] == "text")])
    said = "; ".join(f"{name}: " + ", ".join(f"{label} {s if s != 'none' else 'no common sign'}" for label, s in zip(("QK", "V·proj"), row)) for name, row in zip(signs.index, signs.to_numpy()))
    clear = (signs != "none").to_numpy()
    return HOLDS if clear.all() else PART if clear.any() else NOT, f"{said} (GPT-2 itself could not be fetched)"


def _construction() -> tuple[str, str]:
    table = constants_table()
    (full, kept) = (table.loc[name] for name in ("QK target 0.7 Z + 0.7 I", "QK after truncation to rank 64"))
    found = f"the mean diagonal of QK falls from {full['diag_mean']:.2f} to {kept['diag_mean']:.2f} (d 192, heads of 64), still {kept['z']:.1f} off-diagonal spreads"
    return HOLDS if kept["z"] > 2 else NOT, found


def _against(experiment: str, arm: str, reference: str, expected: int = 1) -> tuple[str, str]:
    metric = family(EXPERIMENTS[experiment]).METRIC
    return judged(contrast(load_runs(experiment), {arm: 1, reference: -1}, metric.column), metric, expected=expected)


def _trend(titles: tuple[str, ...], expected: int) -> tuple[str, str]:
    _, dots, _ = gain_panels(load_runs("cifar10-lab10"))
    slopes = {title: slopes_per_doubling(dots[title]) if title in dots else [] for title in titles}
    return joined({f"{title}:": judged(values, ACCURACY, expected=expected, unit="points a doubling") for title, values in slopes.items()})


def _imagenet() -> tuple[str, str]:
    hours = 2 * gpu.imagenet_cost()["GPU hours"].unstack("share of peak")
    least, most = hours.min(axis=1)["ViT-Tiny"], hours.max(axis=1)["ViT-Tiny"]
    return OPEN, f"not run; one pair of runs of ViT-Tiny is {least:.0f} to {most:.0f} GPU hours in arithmetic alone"


@cache
def _gains() -> pd.DataFrame:
    return share.gain_points()


def _language_gains_less() -> tuple[str, str]:
    gains = _gains()[_gains()["signs"] == share.PUBLISHED]
    rows = {name: part.iloc[0] for name, part in gains[gains["point"] == gains["experiment"]].groupby("experiment")}
    vision, texts = rows.get("cifar10-lab30"), [rows.get(name) for name in ("tinyshakespeare", "wikitext2")]
    if vision is None or any(row is None for row in texts):
        return OPEN, "no pair yet"

    def words(row: pd.Series) -> str:
        return f"{100 * row['gain']:+.1f} % ({100 * row['low']:+.1f} to {100 * row['high']:+.1f}, {row['pairs']} pairs)".replace("-", "−")

    found = f"relative gain on CIFAR-10 {words(vision)}; tiny Shakespeare {words(texts[0])}; WikiText-2 {words(texts[1])}"
    if min(row["pairs"] for row in (vision, *texts)) < ENOUGH:
        return OPEN, found
    below = [row["high"] < vision["low"] for row in texts]
    return HOLDS if all(below) else PART if any(below) else UNDECIDED, found


def _share_guess() -> tuple[str, str]:
    points = _gains()[(_gains()["experiment"] == "share") & (_gains()["signs"] == share.PUBLISHED)]
    text = share.relation(points, "the sweep")
    enough = points[points["pairs"] >= share.FEW]
    if len(enough) < len(language_programme.SHARES):
        return OPEN, f"{len(enough)} of {len(language_programme.SHARES)} points of the sweep are in"
    _, low, high = correlation(enough["share"], enough["gain"])
    return HOLDS if low > 0 else NOT if high < 0 else UNDECIDED, text[text.index("(") + 1 : text.index(";")]


def _worth_imitating() -> tuple[str, str]:
    parts = {}
    for data, title in recommenders.TITLES.items():
        products = questions.trained(data)
        if products.empty:
            parts[title] = OPEN, "no run yet"
            continue
        signs = {p: sign(products.loc[products["product"] == p, "sigmas"]) for p in ("qk", "vp")}
        clear = [s for s in signs.values() if s != "none"]
        found = ", ".join(f"{label} {signs[p] if signs[p] != 'none' else 'no common sign'}" for p, label in (("qk", "QK"), ("vp", "V·proj")))
        seeds = products["seed"].nunique()
        verdict = OPEN if seeds < ENOUGH else HOLDS if len(clear) == 2 else PART if clear else NOT
        parts[title] = verdict, f"{found} ({seeds} seed{'s' * (seeds > 1)})"
    return joined(parts)


def _meaningful_share() -> tuple[str, str]:
    marks = questions.share_marks()
    above = [value >= MEANINGFUL for _, value in marks.values()]
    found = "; ".join(f"{value:.0%} of the parameters with {n:,} items" for n, value in marks.values())
    return HOLDS if all(above) else PART if any(above) else NOT, f"{found} (line drawn at {MEANINGFUL:.0%})"


def _recommenders(arm: str) -> tuple[str, str]:
    return joined({title: _against(data, arm, recommender_programme.DEFAULT) for data, title in recommenders.TITLES.items()})


LAB10, LAB30, TINY, SMALL100 = "cifar10-lab10", "cifar10-lab30", "cifar10-paper", "cifar100-paper"
PATTERN, VISION, WHY, TEXT, ITEMS = "The pattern and the formula", "Training, vision", "What does it", "Language", "Recommenders"
CLAIMS = (
    Claim(PATTERN, "In trained vision transformers $W_QW_K^T$ leans to +I and $W_VW_{proj}$ to −I", PAPER, "02_looking_inside", _trained_vision),
    Claim(PATTERN, "Products of GPT-type models are semi-diagonal, too", REVIEW, "02_looking_inside", _trained_text),
    Claim(PATTERN, "αZ + βI, cut to the rank that a head has, is still semi-diagonal", OURS, "03_construction", _construction),
    Claim(VISION, "A small ViT trains better on CIFAR-10 (here: 10,000 images, 30 epochs)", PAPER, "06_cifar_claim", lambda: _against(LAB30, "mimetic", "timm")),
    Claim(VISION, "The same at the paper's scale, where it says over 5 %", PAPER, "05b_gpu", lambda: _against(TINY, "mimetic", "timm")),
    Claim(VISION, "It does on CIFAR-100", PAPER, "05b_gpu", lambda: _against(SMALL100, "mimetic", "timm")),
    Claim(VISION, "Over 4 % on ImageNet", PAPER, "05c_imagenet", _imagenet),
    Claim(VISION, "The gain grows with the model", REVIEW, "08_size_and_data", lambda: _trend(("width", "depth"), 1)),
    Claim(VISION, "The gain grows when images are few", COURSE, "08_size_and_data", lambda: _trend(("data",), -1)),
    Claim(WHY, "Queries and keys alone gain", OURS, "07_why", lambda: _against(LAB10, "mimetic-qk", "timm")),
    Claim(WHY, "Values and projection alone gain", OURS, "07_why", lambda: _against(LAB10, "mimetic-vp", "timm")),
    Claim(WHY, "It is more than the size of the weights", OURS, "07_why", lambda: _against(LAB10, "mimetic", "timm-rescaled")),
    Claim(WHY, "It is more than the singular values", OURS, "07_why", lambda: _against(LAB10, "mimetic", "random-directions")),
    Claim(WHY, "With both signs turned it is worse than the default", OURS, "07_why", lambda: _against(LAB10, "both-flipped", "timm", -1)),
    Claim(WHY, "V·proj stored untransposed, as in public code, is worse than the formula", OURS, "07_why", lambda: _against(LAB10, "untransposed", "mimetic", -1)),
    Claim(TEXT, "Language models gain less than vision models", PAPER, "10_gpt", _language_gains_less),
    Claim(TEXT, "With the signs of a language model a GPT gains", OURS, "10_gpt", lambda: _against("tinyshakespeare", "language", "gpt2")),
    Claim(TEXT, "The gain follows attention's share of the parameters", GUESS, "11_share", _share_guess),
    Claim(ITEMS, "A trained BERT4Rec has layers worth imitating", REVIEW, "12_recommenders", _worth_imitating),
    Claim(ITEMS, "They are a meaningful share of its parameters", REVIEW, "12_recommenders", _meaningful_share),
    Claim(ITEMS, "BERT4Rec gains with vision's signs", OURS, "12_recommenders", lambda: _recommenders(recommender_programme.VISION)),
    Claim(ITEMS, "BERT4Rec gains with the opposite signs", OURS, "12_recommenders", lambda: _recommenders(recommender_programme.OPPOSITE)),
)  # fmt: skip

PARTS = tuple(dict.fromkeys(claim.part for claim in CLAIMS))


def claims(part: str | None = None) -> pd.DataFrame:
    """One row a claim, or one a claim of a part: part, claim, whose, found, verdict, page."""
    _gains.cache_clear()
    rows = []
    for claim in CLAIMS:
        if part not in (None, claim.part):
            continue
        verdict, found = claim.judge()
        rows.append({"part": claim.part, "claim": claim.says, "whose": claim.whose, "found": found, "verdict": verdict, "page": claim.page})
    return pd.DataFrame(rows)


def claims_table(table: pd.DataFrame) -> str:
    """claims() as a Markdown table under the names of the parts, each verdict a link to its chapter."""
    table = table.assign(verdict=_linked(table)).drop(columns="page").rename(columns={"found": "found (95 % interval)"})
    rows = []
    for part, claims_of_it in table.groupby("part", sort=False):
        claims_of_it = claims_of_it.drop(columns="part")
        rows += [pd.DataFrame([[f"**{part}**", "", "", ""]], columns=claims_of_it.columns), claims_of_it]
    return common.markdown(pd.concat(rows))


def short_table(table: pd.DataFrame) -> str:
    """claims() as Markdown with the verdicts alone, for the introduction."""
    return common.markdown(table.assign(verdict=_linked(table))[["claim", "verdict"]])


def _linked(table: pd.DataFrame) -> list[str]:
    return [f"[{verdict}]({page}.ipynb)" for verdict, page in zip(table["verdict"], table["page"])]


def answer(table: pd.DataFrame) -> str:
    """How many claims have which verdict, and the central one."""
    counts = table["verdict"].value_counts()
    said = ", ".join(f"{counts[verdict]} {_PLURAL.get(verdict, verdict)}" for verdict in MEANING if verdict in counts)
    text = f"**Answer.** Of {len(table)} claims {said}."
    central = table[table["page"] == "06_cifar_claim"]
    return text + "".join(f" The central one, at laboratory scale: {row.found}, *{row.verdict}*." for row in central.itertuples())


def meaning() -> str:
    """What the verdicts mean, as a Markdown table."""
    return common.markdown(pd.DataFrame({"verdict": MEANING.keys(), "means": MEANING.values()}))


# --- the figure ------------------------------------------------------------------------------------------------------


def _rows(experiment: str, title: str, reference: str, arms: dict[str, str]) -> Study:
    return Study("report", title, experiment, (reference, *arms.values()), {name: (reference, arm) for name, arm in arms.items()})


SHOWN = (  # every one against the default of its experiment
    (
        _rows(LAB30, "CIFAR-10, 30 epochs", "timm", {"mimetic": "mimetic"}),
        _rows(
            LAB10, "CIFAR-10, 10 epochs", "timm",
            {"mimetic": "mimetic", "QK only": "mimetic-qk", "V·proj only": "mimetic-vp", "the default at mimetic's norms": "timm-rescaled",
             "its singular values, random directions": "random-directions", "both signs turned": "both-flipped"},
        ),
    ),
    (
        _rows("tinyshakespeare", "tiny Shakespeare", "gpt2", {"vision's signs": "vision", "a language model's signs": "language"}),
        _rows("wikitext2", "WikiText-2", "gpt2", {"vision's signs": "vision", "a language model's signs": "language"}),
    ),
    tuple(_rows(data, title, "bert", {"vision's signs": "mimetic", "opposite signs": "opposite"}) for data, title in recommenders.TITLES.items()),
)  # fmt: skip


def shown() -> list[tuple[Metric, pd.DataFrame, pd.DataFrame]]:
    """For figures.families: a metric, and the table and points of the comparisons that are judged by it, of those that have runs."""
    found = []
    for studies in SHOWN:
        metric = family(EXPERIMENTS[studies[0].experiment]).METRIC
        table, points = common.stacked(((study, load_runs(study.experiment)) for study in studies), metric)
        if len(table):
            found.append((metric, table, points))
    return found


# --- what was run ----------------------------------------------------------------------------------------------------


def programme() -> pd.DataFrame:
    """One row a queue: how many of its runs are recorded and planned, the hours that the recorded ones took, on what."""
    rows = {}
    for name, runs in QUEUES.items():
        planned = runs()
        records = [record for config in planned if (record := existing(config)) is not None]
        rows[name] = {
            "recorded": len(records), "planned": len(planned), "hours": round(sum(r["seconds"]["total"] for r in records) / 3600, 1),
            "device": ", ".join(sorted({r["device"]["name"] for r in records})), "torch": ", ".join(sorted({r["versions"]["torch"] for r in records})),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("queue")


def implementations() -> str:
    """The public re-implementations that were read, from data/published/implementations.csv, as a Markdown table."""
    return common.markdown(pd.read_csv(data_dir() / "published" / "implementations.csv", dtype=str).fillna(""))
