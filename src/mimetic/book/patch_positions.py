"""What chapter 7 says of a ViT's position embedding and pooling: the gain with each, and what we expected beside what
was found. Runs that another machine made again (data/replicas) have a column of their own, since a gain is that of two
runs of one machine."""

from __future__ import annotations

import pandas as pd

from mimetic.book import common
from mimetic.book.parts import NOT_MADE, cell, mean_of
from mimetic.book.vision import ALL_SEEDS, COMMAND
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.programmes.vision import ASKED_OF_POSITIONS, gain, pair
from mimetic.statistics import contrast, summary

# pooling -> position embedding -> what the names of its arms begin with (programmes.vision.pair)
POSITIONS = {
    "average": {
        "sin-cos": "base",
        "sin-cos in a random order": "shuffled-avg",
        "learned, starting from sin-cos": "from-sincos-avg",
        "fixed noise, as large": "noise-avg",
        "learned, starting from that noise": "from-noise-avg",
        "learned, starting small": "learned-avg",
        "none": "none-avg",
    },
    "class token": {
        "sin-cos": "sincos2d-token",
        "learned, starting from sin-cos": "from-sincos-token",
        "learned, starting small": "learned-token",
        "none": "none-token",
    },
}
NO_GAINS = "*No two gains to compare yet.*"
ARMS = tuple(arm for embeddings in POSITIONS.values() for prefix in embeddings.values() for arm in pair(prefix))


def by_machine(finals: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Machine -> its runs with all these embeddings, those of data/replicas among them; first the machine that made
    most of the arms. {} without runs."""
    if finals.empty:
        return {}
    runs = pd.concat([finals, common.replicas(finals["experiment"].iloc[0])])
    runs = runs[runs["arm"].isin(ARMS)].drop_duplicates(["device.name", "arm", "seed"])
    made = {name: part.reset_index(drop=True) for name, part in runs.groupby("device.name")}
    return dict(sorted(made.items(), key=lambda item: (-item[1]["arm"].nunique(), item[0])))


def gains(finals: pd.DataFrame) -> str:
    """The accuracies of both arms and the gain with every position embedding and pooling, as a Markdown table with its
    caption; which runs are missing."""
    machines, rows, pairs = by_machine(finals), [], set()
    for pooling, embeddings in POSITIONS.items():
        for name, prefix in embeddings.items():
            found = {machine: contrast(runs, gain(prefix)) for machine, runs in machines.items()}
            there = [machine for machine, values in found.items() if len(values)]
            if there:
                pairs |= {len(values) for values in found.values() if len(values)}
                seeds = found[there[0]].index
                accuracies = (f"{100 * mean_of(machines[there[0]], arm, seeds):.1f}" for arm in pair(prefix))
                rows.append((pooling, name, *accuracies, *map(_whole, found.values())))
    missing = common.missing(
        Study("positions", "", "cifar10-lab10", ARMS), finals, ALL_SEEDS, COMMAND, "Of these position embeddings "
    )
    if not rows:
        return missing
    columns = ["pooling", "position embedding", "default (%)", "mimetic (%)", *(f"gain, {name}" for name in machines)]
    many = f"{min(pairs)} to " * (len(pairs) > 1) + common.plural(max(pairs), "pair")
    text = (
        f"{common.markdown(pd.DataFrame(rows, columns=columns))}\n\n*After ten epochs; gains in points with 95 %"
        f" intervals, {many} each, made on the machine that heads the"
        f" column ({NOT_MADE}: not made there). The accuracies are of the first machine that made the row.*"
    )
    return f"{text}\n\n{missing}".rstrip()


def expectations(finals: pd.DataFrame) -> str:
    """What we expected of differences between gains beside what was found, as a Markdown table."""
    return common.markdown(_differences(finals, True)) or NO_GAINS


def others(finals: pd.DataFrame) -> str:
    """The differences of which we expected nothing, as a Markdown table."""
    return common.markdown(_differences(finals, False)) or NO_GAINS


def _differences(finals: pd.DataFrame, expected: bool) -> pd.DataFrame:
    """One row a difference of which we expected something, or of which we did not: its words, what was found on every
    machine, and what that says."""
    machines, rows = by_machine(finals), []
    for pooling, questions in ASKED_OF_POSITIONS.items():
        for difference, asked in questions:
            found = [contrast(runs, asked.arms) for runs in machines.values()]
            said = [common.outcome(summary(v), asked.expected) if len(v) else "" for v in found]
            words = list(dict.fromkeys(word for word in said if word))
            if len(words) > 1:
                words = [f"{machine}: {word}" for machine, word in zip(machines, said) if word]
            if words and (asked.expected is not None) == expected:
                row = {"pooling": pooling, "we expected": asked.words, "gains, one minus the other": difference}
                row |= dict(zip(machines, map(_whole, found))) | {"so": "; ".join(words)}
                rows.append(row)
    table = pd.DataFrame(rows)
    return table if expected else table.drop(columns="we expected", errors="ignore")


def _whole(values: pd.Series) -> str:
    """A cell whose interval a narrow column does not break."""
    return cell(values).replace(" to ", "\u00a0to\u00a0")
