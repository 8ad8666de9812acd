"""What the reproduction report says (chapter 13): the claims as tables and as one figure, and what was run."""

from __future__ import annotations

from functools import partial

import pandas as pd

from mimetic.book import common, recommenders
from mimetic.book.claims import ASKED, MEANING, OURS, PAPER
from mimetic.book.claims.verdicts import DETAILS, MARKS
from mimetic.book.growth import better_rates
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.metrics import Metric
from mimetic.experiments.programmes import QUEUES
from mimetic.experiments.programmes import recommenders as programme
from mimetic.experiments.programmes.language import (
    CENTRAL,
    FROM_SINCOS,
    FROM_SINCOS_LONG,
    FROM_SINCOS_WIKITEXT2,
    GENTLER,
    LONG,
    POSITIONS,
    POSITIONS_LONG,
    POSITIONS_WIKITEXT2,
    ROTARY,
    WIKITEXT2,
)
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.programmes.vision import PAIR, pair
from mimetic.experiments.runs import existing, family
from mimetic.statistics import ENOUGH, difference, side
from mimetic.statistics import summary as summary_of
from mimetic.training.records import load_runs


def answer(table: pd.DataFrame) -> str:
    """How many of the paper's claims have which verdict, as a sentence."""
    papers = table[table["whose"] == PAPER]
    if papers.empty:
        return "**Answer.** The paper claims nothing about this part; our own questions are below."
    return (
        f"**Answer.** **At laboratory scale, of the paper's {common.plural(len(papers), 'claim')} {_counts(papers)}.**"
    )


def scorecard(table: pd.DataFrame) -> str:
    """The paper's claims, what holds first, with what that rests on, as a Markdown table; "" without any."""
    papers = table[table["whose"] == PAPER].sort_values(
        "verdict", key=lambda of: of.map(list(MEANING).index), kind="stable"
    )
    papers = papers.assign(verdict=_linked(papers), found=[text.partition(DETAILS)[0] for text in papers["found"]])
    names = {"claim": "the paper says", "verdict": "here", "found": "found (95 % interval)"}
    return common.markdown(papers[list(names)].rename(columns=names))


def details(table: pd.DataFrame) -> str:
    """What scorecard leaves out: what qualifies the paper's claims, a list."""
    papers = table[(table["whose"] == PAPER) & table["found"].str.contains(DETAILS, regex=False)]
    return "\n".join(
        f"* *{claim}.* {found.partition(DETAILS)[2].replace(DETAILS, ' ')}"
        for claim, found in zip(papers["claim"], papers["found"])
    )


def claims_table(table: pd.DataFrame) -> str:
    """claims() as a Markdown table, each verdict a link to its chapter: with whose each is or, if they are all of one,
    under the names of the parts."""
    if table.empty:
        return "*There is none in this part.*"
    several = table["whose"].nunique() > 1
    table = table.assign(verdict=_linked(table)).rename(columns={"found": "found (95 % interval)"})
    names = ["claim", "verdict", "found (95 % interval)", *(["whose"] if several else [])]
    if several:
        return common.markdown(table[names])
    rows = []
    for part, claims_of_it in table.groupby("part", sort=False):
        rows += [pd.DataFrame([[f"**{part}**", "", ""]], columns=names), claims_of_it[names]]
    return common.markdown(pd.concat(rows))


def _linked(table: pd.DataFrame) -> list[str]:
    return [f"{MARKS[verdict]} [{verdict}]({page}.ipynb)" for verdict, page in zip(table["verdict"], table["page"])]


# (reference arm, arm) of GPTs, of BERT4Rec and of its causal sibling
GPT, PLUS, BETTER = ("gpt2", "vision"), ("gpt2", "language"), (GENTLER, "vision")
USUAL, TURNED = (programme.DEFAULT, programme.VISION), (programme.DEFAULT, programme.OPPOSITE)
SIBLING = tuple(f"{programme.SIBLING_PREFIX}{arm}" for arm in USUAL)


def _of_items(data: str, title: str) -> tuple[tuple[str, ...], ...]:
    """The rows of SUMMARY that both data sets of items have."""
    return (
        ("12_recommenders", title, data, *USUAL),
        ("12_recommenders", "over a default with weights as large", data, programme.RESCALED, programme.VISION),
        ("12b_qualified", "both arms at three times the rate", f"{data}-rate", *USUAL),
        ("12_recommenders", "with both signs reversed", data, *TURNED),
        ("12b_qualified", "with fixed sin-cos positions", f"{data}-sincos", *USUAL),
        ("12b_qualified", "with fixed sin-cos positions and both signs reversed", f"{data}-sincos", *TURNED),
    )


STARTED = "with learned positions that start from sin-cos"
# The rows of the first page's table: page of the chapter -> what is trained, experiment, default, arm; without
# arms: growth.better_rates
SUMMARY = (
    ("06_cifar_claim", "ViT on CIFAR-10, 30 epochs", "cifar10-lab30", *PAIR),
    ("07_why", "ViT on CIFAR-10, 10 epochs", "cifar10-lab10", *PAIR),
    ("07_why", "over a default with weights as large", "cifar10-lab10", "timm-rescaled", "mimetic"),
    ("07_why", "over PyTorch's default", "cifar10-lab10", "torch", "mimetic"),
    ("07_why", "with learned positions in place of sin-cos ones", "cifar10-lab10", *pair("learned-avg")),
    ("07_why", STARTED, "cifar10-lab10", *pair("from-sincos-avg")),
    ("07_why", f"{STARTED}, and a class token", "cifar10-lab10", *pair("from-sincos-token")),
    ("08_size_and_data", "with twelve layers", "cifar10-lab10", *pair("depth12")),
    ("08_size_and_data", "with twelve layers, at half the learning rate", "cifar10-lab10", *pair("depth12-half")),
    ("08_size_and_data", "with twelve layers, each arm at the better of these rates", "cifar10-lab10", "", ""),
    ("05b_gpu", "ViT-Tiny, all of CIFAR-10, 100 epochs", "cifar10-paper", *PAIR),
    ("10_gpt", "GPT on tiny Shakespeare, learned positions", CENTRAL.experiment, *GPT),
    ("10b_positions", "after 6,000 steps in place of 1,200", LONG.experiment, *GPT),
    ("10b_positions", "with fixed sin-cos positions", POSITIONS.experiment, *GPT),
    ("10b_positions", STARTED, FROM_SINCOS.experiment, *GPT),
    ("10b_positions", "with fixed sin-cos positions, after 6,000 steps", POSITIONS_LONG.experiment, *GPT),
    (
        "10b_positions",
        f"{STARTED}, after 6,000 steps, over the default's better rate",
        FROM_SINCOS_LONG.experiment,
        *BETTER,
    ),
    ("10b_positions", "with rotary positions", ROTARY.experiment, *GPT),
    ("10_gpt", "GPT on WikiText-2, learned positions", WIKITEXT2.experiment, *GPT),
    ("10b_positions", "with fixed sin-cos positions", POSITIONS_WIKITEXT2.experiment, *GPT),
    (
        "10b_positions",
        f"{STARTED}, over the better of two rates of the default",
        FROM_SINCOS_WIKITEXT2.experiment,
        *BETTER,
    ),
    *_of_items("ml100k", "BERT4Rec on MovieLens-100K"),
    ("12b_qualified", "with fixed sin-cos positions, both arms at three times the rate", "ml100k-sincos-rate", *USUAL),
    ("12b_qualified", "with the next item as its task, causal, 20 epochs", "ml100k", *SIBLING),
    *_of_items("beauty", "BERT4Rec on Amazon Beauty (1,000 items)"),
)


HOW_TO_READ = (
    "Rows that begin with “…” are variants of the last full row above them, and name what differs (GPTs have their"
    " learning rates searched anew for other positions). *Default*: the mean result of the default, which is timm's"
    " truncated normal for ViTs, GPT-2's for GPTs and BERT's for BERT4Rec, unless a row names another. The signs"
    " are vision's (`mimetic.VISION`: + in query times key, − in value times projection), unless a row has them"
    " reversed. Recommenders are judged on the users' last items. *Gains*, *loses*: five pairs or more and a 95 %"
    " interval without 0; *ahead*, *behind*: fewer pairs."
    " Of bits per byte fewer are better."
)


def summary() -> str:
    """What mimetic initialization with vision's signs does in every kind of model of this book, as a Markdown table; a
    row that begins with a small letter changes one thing of the nearest row above that does not. Where the same pairs,
    made by another machine, come out another way, that is said."""
    rows = []
    for page, what, experiment, reference, arm in SUMMARY:
        metric = family(EXPERIMENTS[experiment]).METRIC
        runs, asked = load_runs(experiment), (arm, reference, metric.column)
        values = difference(runs, *asked) if arm else better_rates(runs)[0]
        said, n = "no pair yet", len(values)
        if n:
            row = pd.Series(summary_of(values))
            value = metric.shown(*row[common.VALUES], common.exact_p(row))
            said = f"{value} {metric.difference}: *{common.word(row, metric, more=False)}*"
            again = difference(common.replicas(experiment), *asked) if arm else values
            if len(again) >= ENOUGH and side(again) != side(values):
                said += f"; the same on another machine {common.with_interval(again, metric)}"
        level = runs.loc[(runs["arm"] == reference) & runs["seed"].isin(values.index), metric.column] if n else []
        name = what if what[0].isupper() else f"… {what}"
        rows.append((f"[{name}]({page}.ipynb)", metric.level(level.mean()) if len(level) else "", said, f"{n}"))
    columns = ["trained", "default", "mimetic initialization minus the default (95 % interval)", "pairs"]
    return common.markdown(rows, columns)


def counts(table: pd.DataFrame) -> str:
    """How many of the claims have which verdict, others' and our own."""
    ours, asked = table["whose"] == OURS, table["whose"] == ASKED
    groups = (
        ("claims by others", table[~ours & ~asked]),
        ("questions of a review of the paper, put as statements,", table[asked]),
        ("questions of our own, put as statements,", table[ours]),
    )
    text = "; ".join(f"of {len(rows)} {name} {_counts(rows)}" for name, rows in groups if len(rows))
    return f"{text[:1].upper()}{text[1:]}."


def _counts(table: pd.DataFrame) -> str:
    counts = table["verdict"].value_counts()
    return ", ".join(
        f"{counts[verdict]} {one if counts[verdict] == 1 else many}"
        for verdict, (_, one, many) in MEANING.items()
        if verdict in counts
    )


def meaning() -> str:
    """What the verdicts mean, as a Markdown table."""
    return common.markdown(
        [(f"{MARKS[verdict]} {verdict}", means) for verdict, (means, _, _) in MEANING.items()], ["verdict", "means"]
    )


# --- the figure ------------------------------------------------------------------------------------------------------


def _rows(experiment: str, title: str, pairs: dict[str, tuple[str, str]]) -> Study:
    """Rows of a group: label -> (reference arm, arm)."""
    return Study("report", title, experiment, (), pairs)


def _items(data: str) -> tuple[Study, ...]:
    """The rows of a data set of items."""
    title = recommenders.TITLES[data]
    large = {"vision's signs, over a default with weights as large": (programme.RESCALED, programme.VISION)}
    fixed = {"fixed positions, vision's signs": USUAL, "fixed positions, opposite signs": TURNED}
    return (
        _rows(data, title, {"vision's signs": USUAL, "opposite signs": TURNED} | large),
        _rows(f"{data}-rate", title, {"vision's signs, both arms at three times the rate": USUAL}),
        _rows(f"{data}-sincos", title, fixed),
    )


TINY, WIKI = "tiny Shakespeare, vision's signs", "WikiText-2, vision's signs"
# Three figures, of panels, of rows: every one against the default of its model, unless it names another
SHOWN = {
    "vision": (
        (
            _rows("cifar10-lab30", "CIFAR-10, 30 epochs", {"sin-cos positions": PAIR}),
            _rows(
                "cifar10-lab10",
                "CIFAR-10, 10 epochs",
                {
                    "sin-cos positions": PAIR,
                    "over a default with weights as large": ("timm-rescaled", "mimetic"),
                    "over PyTorch's default": ("torch", "mimetic"),
                    "both signs flipped": ("timm", "both-flipped"),
                    "learned positions that start from sin-cos": pair("from-sincos-avg"),
                    "learned positions that start small": pair("learned-avg"),
                    "twelve layers": pair("depth12"),
                    "twelve layers, half the learning rate": pair("depth12-half"),
                },
            ),
        ),
    ),
    "language": (
        (
            _rows("tinyshakespeare-sincos", TINY, {"fixed sin-cos positions": GPT}),
            _rows("tinyshakespeare-from-sincos", TINY, {"learned positions that start from sin-cos": GPT}),
            _rows("tinyshakespeare-rotary", TINY, {"rotary positions": GPT}),
            _rows("tinyshakespeare", TINY, {"learned positions that start small": GPT}),
            _rows("tinyshakespeare-long", TINY, {"the same after 6,000 steps": GPT}),
            _rows("tinyshakespeare", "tiny Shakespeare, both signs +", {"learned positions that start small": PLUS}),
        ),
        (
            _rows("wikitext2-sincos", WIKI, {"fixed sin-cos positions": GPT}),
            _rows("wikitext2", WIKI, {"learned positions that start small": GPT}),
            _rows("wikitext2", "WikiText-2, both signs +", {"learned positions that start small": PLUS}),
        ),
    ),
    "recommenders": (
        (
            *_items("ml100k"),
            _rows("ml100k", recommenders.TITLES["ml100k"], {"next item, causal, vision's signs": SIBLING}),
            *_items("beauty"),
        ),
    ),
}


draw = partial(common.draw, command="python -m mimetic queue lab")


def shown(kind: str) -> list[tuple[Metric, pd.DataFrame, pd.DataFrame]]:
    """For figures.families: of a kind of model (SHOWN) the panels that have runs, each a metric, a table and points."""
    found = []
    for studies in SHOWN[kind]:
        metric = family(EXPERIMENTS[studies[0].experiment]).METRIC
        table, points = common.stacked(((study, load_runs(study.experiment)) for study in studies), metric)
        if len(table):
            found.append((metric, table, points))
    return found


# --- what was run ----------------------------------------------------------------------------------------------------


def queues() -> pd.DataFrame:
    """One row a queue: how many of its runs are recorded and planned, the hours that the recorded ones took, on
    what."""
    rows = {}
    for name, runs in QUEUES.items():
        planned = runs()
        records = [record for config in planned if (record := existing(config)) is not None]
        rows[name] = {
            "recorded": len(records),
            "planned": len(planned),
            "hours": round(sum(r["seconds"]["total"] for r in records) / 3600, 1),
            "device": ", ".join(sorted({r["device"]["name"] for r in records})),
            "torch": ", ".join(sorted({r["versions"]["torch"] for r in records})),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("queue")
