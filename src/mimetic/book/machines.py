"""What the chapters say of the machines that made their runs, and of runs that two machines made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from mimetic.book import common
from mimetic.book.common import comparisons_of, with_interval
from mimetic.experiments.language import METRIC as BITS
from mimetic.experiments.metrics import ACCURACY, Metric
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.programmes.vision import PAIR
from mimetic.figures.style import LABELS
from mimetic.statistics import difference, mean_interval, side
from mimetic.training.records import load_runs

KEY = ["arm", "seed"]


def made_on(finals: pd.DataFrame, studies: tuple[Study, ...]) -> str:
    """Which machines made the runs, in a sentence; and that the two runs of every pair of the studies are of one
    machine, if so."""
    if finals.empty:
        return ""
    counts = finals["device.name"].value_counts()
    machines = " and ".join(f"{name} ({count})" for name, count in counts.items())
    if len(counts) == 1:
        return f"All {len(finals)} runs were made on one kind of machine, {counts.index[0]}."
    mixed = mixed_pairs(finals, studies)
    pairs = "the two runs of a pair always on one of them"
    if mixed:
        pairs = f"{common.plural(len(mixed), 'pair')} on two of them"
    return f"The runs were made on {machines}; {pairs}."


def mixed_pairs(finals: pd.DataFrame, studies: tuple[Study, ...]) -> list[tuple[str, int]]:
    """(arm, seed) of every pair of the studies whose runs are of two machines."""
    device = finals.set_index(KEY)["device.name"]
    pairs = {pair for study in studies for pair in comparisons_of(study).values()}
    return sorted(
        (arm, seed) for reference, arm in pairs for seed in set(finals["seed"])
        if {(reference, seed), (arm, seed)} <= set(device.index) and device[reference, seed] != device[arm, seed]
    )  # fmt: skip


def made_on_both(experiment: str, metric: Metric = ACCURACY) -> pd.DataFrame:
    """Runs of an experiment that another machine made, too (data/replicas): arm, seed, here and there (the metric), the
    devices."""
    here, there = load_runs(experiment), common.replicas(experiment)
    if here.empty or there.empty:
        return pd.DataFrame(columns=[*KEY, "here", "there", "device", "other device"])
    columns = [*KEY, metric.column, "device.name"]
    both = here[columns].merge(there[columns], on=KEY, suffixes=("_here", "_there"))
    both.columns = [*KEY, "here", "device", "there", "other device"]
    return both[both["device"] != both["other device"]].reset_index(drop=True)


def _made_there(both: pd.DataFrame) -> str:
    return (
        f"{len(both)} of these runs were made on another machine, too, one at a time"
        f" ({', '.join(sorted(set(both['other device'])))}; their records are in `data/replicas`)"
    )


def replicas_sentence(experiment: str = "cifar10-lab10", among: Collection[str] | None = None) -> str:
    """Whether two machines agree: single runs (among: of these arms only), and the gain of mimetic initialization; ""
    without runs of both."""
    both = made_on_both(experiment)
    both = both[both["arm"].isin(both["arm"] if among is None else among)].reset_index(drop=True)
    if len(both) < 2:
        return ""
    difference = 100 * (both["here"] - both["there"])
    low, high = mean_interval(difference)
    text = (
        f"{_made_there(both)}."
        " The order of the images is the same there, the random numbers of the augmentation are not."
        f" On average the two differ by {ACCURACY.signed(difference.mean() / 100)} points"
        f" ({ACCURACY.span(low / 100, high / 100)}), a single run by {difference.abs().median():.1f} (median)"
        f" and at most {difference.abs().max():.1f}: about what another seed changes."
    )
    wide = both.pivot(index="seed", columns="arm", values=["here", "there"])
    if all((where, arm) in wide for where in ("here", "there") for arm in PAIR):
        gains = {where: (wide[where, PAIR[1]] - wide[where, PAIR[0]]).dropna() for where in ("here", "there")}
        if len(gains["here"]):
            text += (
                f" The gain of mimetic initialization with the {len(gains['here'])} seeds that both have:"
                f" {ACCURACY.signed(gains['here'].mean())} points here, {ACCURACY.signed(gains['there'].mean())} there."
            )
    return text


def asked_again(asked: Mapping[str, Mapping[str, tuple[str, str]]]) -> pd.DataFrame:
    """Differences between arms in points, here and on the machine of data/replicas, with the seeds that both have (two
    or more): a row a difference, here and there with 95 % intervals, pairs; and whether the two intervals leave out 0
    on the same side, in words.

    Args:
        asked: question -> name of an answer -> reference arm, arm (see parts.ASKED).
    """
    here, there = load_runs("cifar10-lab10"), common.replicas("cifar10-lab10")
    if here.empty or there.empty:
        return pd.DataFrame()
    there = there[~there["device.name"].isin(here.loc[here["arm"] == "timm", "device.name"])]
    on = [", ".join(sorted(set(runs["device.name"][runs["arm"].isin(PAIR)]))) for runs in (here, there)]
    rows = {}
    for question, answers in {"The gain": {"mimetic initialization": PAIR}, **asked}.items():
        for name, (reference, arm) in answers.items():
            values = [difference(runs, arm, reference) for runs in (here, there)]
            seeds = values[0].index.intersection(values[1].index)
            if len(seeds) >= 2:
                first, again = (v.loc[seeds] for v in values)
                found = dict(zip(on, map(with_interval, (first, again))))
                rows[question, name] = found | {"pairs": len(seeds), "": _agree(side(first), side(again), on)}
    return pd.DataFrame.from_dict(rows, orient="index")


def _agree(here: int, there: int, on: Sequence[str]) -> str:
    """Whether two intervals leave out 0 on the same side (statistics.side of each); on: the two machines."""
    if here and there:
        return "the same" if here == there else "opposite"
    if here or there:
        return f"undecided on {on[1] if here else on[0]}"
    return "undecided on both"


def text_replicas_sentence(experiment: str) -> str:
    """Whether two machines agree on runs of text, single runs only; "" without runs of both."""
    both = made_on_both(experiment, BITS)
    if len(both) < 2:
        return ""
    apart = (both["here"] - both["there"]).abs()
    row, median = both.loc[apart.idxmax()], apart.median()
    text = (
        f"{_made_there(both)}, from the same weights and in the same order of the text."
        f" The two differ by {median:.{BITS.digits}f} {BITS.difference} (median),"
        f" most at {row['arm']}, seed {row['seed']}: by {apart.max():.{BITS.digits}f}."
    )
    if apart.max() < 5 * median:
        return text
    return (
        f"{text} Where rounding decides so much, the rate is near the edge of what the model can be trained with,"
        f" and three pairs say little.{_turned(both)}"
    )


def moved_by_arm(experiments: tuple[str, ...]) -> str:
    """By how much runs of text on another machine end otherwise, arm by arm, in words; "" without any."""
    both = pd.concat([made_on_both(experiment, BITS) for experiment in experiments])
    if both.empty:
        return ""
    moved = (both["there"] - both["here"]).groupby(both["arm"].str.replace(r"^lr-[\d.]+-", "", regex=True), sort=False)
    said = "; ".join(f"{LABELS.get(arm, arm)} {' and '.join(map(BITS.signed, values))}" for arm, values in moved)
    return (
        f"What the machine does, by the {len(both)} of these runs that were made on both (records in `data/replicas`),"
        f" {', '.join(sorted(set(both['other device'])))} minus {', '.join(sorted(set(both['device'])))}: {said}."
    )


def _turned(both: pd.DataFrame) -> str:
    """The gains over the default's run of the same point and seed that have another sign on the other machine, in
    words; "" without any."""
    point = both["arm"].str.rpartition("-")
    both = both.assign(point=point[0], signs=point[2])
    wide = both.pivot(index=["point", "seed"], columns="signs", values=["here", "there"])
    if ("here", "gpt2") not in wide:
        return ""
    said = []
    for signs in wide["here"].columns.drop("gpt2"):
        columns = [(where, arm) for where in ("here", "there") for arm in ("gpt2", signs)]
        for (name, seed), row in wide.dropna(subset=columns).iterrows():
            gains = [row[where, signs] - row[where, "gpt2"] for where in ("here", "there")]
            if gains[0] * gains[1] < 0:
                both_ways = f"{BITS.signed(gains[0])} here and {BITS.signed(gains[1])} there"
                moved = f"the default itself moved by {abs(row['here', 'gpt2'] - row['there', 'gpt2']):.{BITS.digits}f}"
                said.append(f"{name}, seed {seed}: {LABELS.get(signs, signs)} {both_ways}; {moved}")
    if not said:
        return ""
    return (
        f" A difference to the default has another sign there: {'; '.join(said)}."
        " So the sign at a single point and seed is not to be relied on."
    )


def together_sentence(finals: pd.DataFrame) -> str:
    """What it took to make runs side by side in the same kernels; "" without such runs."""
    if "device.together" not in finals:
        return ""
    made = finals[finals["device.together"].notna()]
    if made.empty:
        return ""
    minutes, cards = made["seconds.total"].sum() / 60, ", ".join(sorted(set(made["device.name"])))
    return (
        f"{len(made)} runs in groups of up to {made['device.together'].max():.0f} took"
        f" {minutes:.0f} minutes of one {cards}, data and evaluation included:"
        f" {60 * minutes / len(made):.1f} seconds a run."
    )
