"""What the reproduction report says (chapter 13): the claims as tables and as one figure, and what was run."""

from __future__ import annotations

from functools import partial

import pandas as pd

from mimetic.experiments.answers import common, recommenders
from mimetic.experiments.answers.claims import ASKED, HOLDS, MEANING, NOT, OPEN, OURS, PART, UNDECIDED
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.metrics import Metric
from mimetic.experiments.programmes import QUEUES
from mimetic.experiments.programmes import recommenders as programme
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.runs import existing, family
from mimetic.statistics import ENOUGH, contrast
from mimetic.training.records import load_runs


def claims_table(table: pd.DataFrame) -> str:
    """claims() as a Markdown table under the names of the parts, each verdict a link to its chapter."""
    table = table.assign(verdict=_linked(table)).drop(columns=["page", "key"]).rename(columns={"found": "found (95 % interval)"})
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


def sentences(table: pd.DataFrame) -> dict[str, str]:
    """What the claims come to, by subject: vision, its parts, language, recommenders and what was not run; {} for a part of the claims."""
    verdicts, found = (dict(zip(table["key"], table[column])) for column in ("verdict", "found"))
    keys = ("central", "size", "values", "vp-diagonal", "qk-diagonal", "positions", "depth", "half", "better", "texts", "fixed", "rotary", "items", "beyond", "points")
    if not set(keys) <= set(verdicts):
        return {}
    central = found["central"].partition(" (")[0]
    vision = {HOLDS: f"gains over timm's default: {central} at laboratory scale, after 30 epochs", NOT: f"does not gain ({central})"}.get(verdicts["central"], "may gain, the pairs do not decide it")
    said = {"vision": f"A small ViT on CIFAR-10 {vision}."}
    if verdicts["central"] == HOLDS:
        more = ["the gain is more than the size of the weights and their singular values explain"] if {verdicts["size"], verdicts["values"]} == {HOLDS} else []
        needs = {"V·proj's": verdicts["vp-diagonal"], "QK's": verdicts["qk-diagonal"]}
        more += [" and ".join(f"{name} diagonal {'is part of it' if verdict == HOLDS else 'cannot be told from nothing'}" for name, verdict in needs.items())] if HOLDS in needs.values() else []
        more += [lost] if (lost := _noise_lost()) else []
        hangs = ["with average pooling where positions are not sin-cos"] if verdicts["positions"] != HOLDS else []
        if verdicts["depth"] != HOLDS:
            at = [(name, verdicts[key], found[key].partition(", p ")[0]) for key, name in (("half", "at half of it"), ("better", "with each arm at the better of the two"))]
            said_of = "; ".join(f"{name} {'there is one' if verdict == HOLDS else verdict}, {value})" for name, verdict, value in at if verdict != OPEN)
            half = f" ({said_of})" if said_of else ""
            hangs.append(f"at twelve layers at the learning rate chosen for six{half}")
        more += [f"no gain was found {', nor '.join(hangs)}"] if hangs else []
        if more:
            said["parts"] = f"After 10 epochs, where the controls were run, {'; '.join(more)}."
    by_text, fixed = (found[key].partition(". After")[0].replace(" bits per byte, fewer are better", "") for key in ("texts", "fixed"))
    texts = {
        HOLDS: "gains with vision's constants", NOT: f"with learned positions ends behind its default with vision's constants, after 1,200 steps (bits per byte: {by_text})", UNDECIDED: "cannot be told to gain",
    }.get(verdicts["texts"], "gains on some texts")  # fmt: skip
    then = {HOLDS: "it ends ahead", PART: "it ends ahead on one of them", NOT: "it ends behind, too", UNDECIDED: "neither is ahead that these pairs can show"}.get(verdicts["fixed"], "not all pairs are in")
    turned = {HOLDS: "it ends ahead, too", NOT: "it ends behind", UNDECIDED: "neither is ahead that these pairs can show"}.get(verdicts["rotary"], "not all pairs are in")
    rotary = found["rotary"].replace(" bits per byte, fewer are better", "")
    later = found["fixed"].partition(". After ")[2].replace(" bits per byte, fewer are better", "")
    longer = f"; after {later}" if later else ""
    said["language"] = f"A small GPT {texts}; with fixed sin-cos positions in place of learned ones {then} ({fixed}{longer}); with rotary ones {turned} ({rotary})."
    items = {HOLDS: "gains", NOT: "does not gain", UNDECIDED: "cannot be told to gain"}.get(verdicts["items"], "gains on some data")
    if verdicts["items"] == HOLDS:
        more = verdicts["beyond"] == HOLDS
        items += f" at 0.001, the learning rate chosen for its default, by each user's last item ({found['items'].partition('. ')[0]}), " + (
            "and more than with random attention weights of the same size" if more
            else "and that gain cannot be told from that of random attention weights of the same size; other items and rates say partly otherwise (chapter 12)"
        )  # fmt: skip
    said["recommenders"] = f"The recommender BERT4Rec {items}."
    if verdicts["points"] == OPEN:
        pairs = "no pair" if "no pair" in found["points"] or not found["points"] else "too few pairs"
        said["larger"] = f"The larger setting (ViT-Tiny, 50,000 images, 100 epochs) has {pairs} yet."
    return said


def _noise_lost() -> str:
    """What is lost without V·proj's noise, if that is the largest loss without one of the four constants, as a clause; else ""."""
    finals = load_runs("cifar10-lab10")
    losses = {arm: contrast(finals, {arm: 1, "mimetic": -1}) for arm in ("vp-alpha-0", "vp-beta-0", "qk-alpha-0", "qk-beta-0")} if len(finals) else {}
    if not losses or min(map(len, losses.values())) < ENOUGH or min(losses, key=lambda arm: losses[arm].mean()) != "vp-alpha-0":
        return ""
    return f"without V·proj's noise {-100 * losses['vp-alpha-0'].mean():.1f} points are lost, without its diagonal {-100 * losses['vp-beta-0'].mean():.1f}"


def counts(table: pd.DataFrame) -> str:
    """How many of the claims have which verdict, others' and our own."""
    ours, asked = table["whose"] == OURS, table["whose"] == ASKED
    groups = (("claims by others", table[~ours & ~asked]), ("questions of a review of the paper", table[asked]), ("questions of our own", table[ours]))
    text = "; ".join(f"of {len(rows)} {name} {_counts(rows)}" for name, rows in groups if len(rows))
    return f"{text[:1].upper()}{text[1:]}."


def answer(table: pd.DataFrame) -> str:
    """What the claims come to, and how many of them have which verdict."""
    words = "\n".join(f"* {said}" for said in sentences(table).values())
    return f"**Answer.**\n\n{words}\n\n{counts(table)}" if words else f"**Answer.** {counts(table)}"


def _counts(table: pd.DataFrame) -> str:
    counts = table["verdict"].value_counts()
    return ", ".join(f"{counts[verdict]} {one if counts[verdict] == 1 else many}" for verdict, (_, one, many) in MEANING.items() if verdict in counts)


def meaning() -> str:
    """What the verdicts mean, as a Markdown table."""
    return common.markdown(pd.DataFrame({"verdict": MEANING.keys(), "means": [means for means, _, _ in MEANING.values()]}))


# --- the figure ------------------------------------------------------------------------------------------------------


def _rows(experiment: str, title: str, reference: str, arms: dict[str, str], others: dict[str, tuple[str, str]] | None = None) -> Study:
    """others: rows with a reference of their own, the default of that model."""
    pairs = {name: (reference, arm) for name, arm in arms.items()} | (others or {})
    return Study("report", title, experiment, tuple(dict.fromkeys(arm for pair in pairs.values() for arm in pair)), pairs)


SIGNS_AND_SIZES = {
    "vision's signs": programme.VISION, "opposite signs": programme.OPPOSITE,
    "the default at mimetic's norms": programme.RESCALED, "same singular values, random directions": programme.RANDOM,
}  # fmt: skip
TEXT_SIGNS = {"vision's signs": "vision", "a language model's signs": "language"}
SHOWN = (  # every one against the default of its model
    (
        _rows("cifar10-lab30", "CIFAR-10, 30 epochs", "timm", {"mimetic": "mimetic"}),
        _rows(
            "cifar10-lab10", "CIFAR-10, 10 epochs", "timm",
            {"mimetic": "mimetic", "QK only": "mimetic-qk", "V·proj only": "mimetic-vp", "the default at mimetic's norms": "timm-rescaled",
             "same singular values, random directions": "random-directions", "both signs flipped": "both-flipped"},
            {"mimetic, learned positions": ("learned-avg-timm", "learned-avg-mimetic"), "mimetic, no positions": ("none-avg-timm", "none-avg-mimetic"),
             "mimetic, twelve layers": ("depth12-timm", "depth12-mimetic"), "mimetic, twelve layers, half the rate": ("depth12-half-timm", "depth12-half-mimetic")},
        ),
    ),
    (
        _rows("tinyshakespeare", "tiny Shakespeare, learned positions", "gpt2", TEXT_SIGNS),
        _rows("tinyshakespeare-sincos", "tiny Shakespeare, fixed sin-cos positions", "gpt2", TEXT_SIGNS),
    ),
    (
        _rows("wikitext2", "WikiText-2, learned positions", "gpt2", TEXT_SIGNS),
        _rows("wikitext2-sincos", "WikiText-2, fixed sin-cos positions", "gpt2", TEXT_SIGNS),
    ),
    (
        *(_rows(data, title, programme.DEFAULT, SIGNS_AND_SIZES) for data, title in recommenders.TITLES.items()),
        _rows("ml100k", "the causal sibling on MovieLens-100K", f"{programme.SIBLING_PREFIX}{programme.DEFAULT}",
              {words: f"{programme.SIBLING_PREFIX}{arm}" for words, arm in SIGNS_AND_SIZES.items()}),
    ),
)  # fmt: skip


draw = partial(common.draw, command="python -m mimetic queue lab")


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


def queues() -> pd.DataFrame:
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
