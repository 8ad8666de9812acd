"""What the vision chapters say of the recipe (6), and whether it is unfair to an arm (7)."""

from __future__ import annotations

import pandas as pd

from mimetic.book import common
from mimetic.book.vision import COMMAND, ahead
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.configs.vision import CHECK_RATES, CHECKED
from mimetic.experiments.programmes.vision import PAIR
from mimetic.figures.style import LABELS

LARGE = ("mimetic", "timm-rescaled", "random-directions")  # arms whose weights are several times the default's
SEED_WORTH = 1.0  # percentage points that one seed is worth after 10 epochs, about; the rule of the recipe search


def recipe(finals: pd.DataFrame) -> str:
    """The recipe of the central comparison and what its runs were made on, from the first of them; "" without any."""
    if finals.empty:
        return ""
    first = finals.iloc[0]
    config = first.filter(like="config.").rename(lambda name: name.removeprefix("config."))
    threads = common.plural(first["device.threads"], "thread")
    return (
        f"Recipe, the same for both arms: AdamW, peak learning rate {config['lr']:g},"
        f" weight decay {config['weight_decay']:g},"
        f" linear warm-up over {common.percent(config['warmup'])} of the run, then cosine to 0,"
        f" batch {config['batch_size']}, gradient norm clipped at {config['grad_clip']:g},"
        f" label smoothing {config['label_smoothing']:g}"
        " (so the training loss is of smoothed labels, the test loss of plain ones),"
        f" random crop ({config['padding_mode']} padding {config['crop_padding']}) and flip."
        f" Device: {first['device.name']}, {first['device.precision']}, {threads}, torch {first['torch']}."
    )


def recipe_table(finals: pd.DataFrame) -> pd.DataFrame:
    """The search for the recipe: mean accuracy on the validation images by setting, best first."""
    if finals.empty:
        return pd.DataFrame()
    groups = finals.groupby("arm")["test_accuracy"]
    table = pd.DataFrame({"validation accuracy (%)": 100 * groups.mean(), "seeds": groups.size()})
    return table.sort_values("validation accuracy (%)", ascending=False).round(1)


def recipe_sentence(finals: pd.DataFrame) -> str:
    """Whether any setting beat the base by more than a point."""
    if finals.empty:
        return "The search has no records yet: `python -m mimetic queue recipe`."
    base = finals[finals["arm"] == "base"].set_index("seed")["test_accuracy"]
    paired = finals[(finals["arm"] != "base") & finals["seed"].isin(base.index)]
    if paired.empty:
        return "No setting of the search has a run beside the base's yet: `python -m mimetic queue recipe`."
    others = paired.groupby("arm")["test_accuracy"].mean()
    best = others.idxmax()
    ends = f", over its {len(base)} seeds from {100 * base.min():.1f} to {100 * base.max():.1f}" * (len(base) > 1)
    gain = others[best] - base[base.index.isin(finals.loc[finals["arm"] == best, "seed"])].mean()
    kept = "so the base was kept" if 100 * gain <= SEED_WORTH else "so by the rule it replaces the base's value"
    return (
        f"The best setting, `{best}`, is {ahead(gain)} the base with the same seed"
        f" (base: {100 * base.mean():.1f} %{ends}), {kept}."
        " One seed a setting tells large differences only; that is all it was for."
    )


def rates_table(finals: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy in percent of every arm (rows, in words) at every learning rate (columns), nan where there is
    no run; one seed."""
    values = finals.set_index("arm")["test_accuracy"] if len(finals) else pd.Series(dtype=float)
    table = pd.DataFrame(
        {lr: {LABELS[arm]: 100 * values.get(f"{arm}-lr-{lr:g}", float("nan")) for arm in CHECKED} for lr in CHECK_RATES}
    )
    return table.dropna(how="all").rename_axis(columns="learning rate")


def rates_sentence(finals: pd.DataFrame) -> str:
    """Which arms would be better off by more than a seed is worth at another learning rate than the common one."""
    table, common_lr = rates_table(finals), EXPERIMENTS["cifar10-rates"].lr
    if len(table) < len(CHECKED) or table.isna().any(axis=None):
        return f"Not all of these runs are in yet: `{COMMAND}`."
    gains = table.max(axis=1) - table[common_lr]
    best, one_seed = table.idxmax(axis=1), "(One seed; another would change a number by about a point.)"
    if set(best) == {common_lr}:
        return (
            f"Every arm is best at {common_lr:g}, the common rate; we had expected a lower one for those with large"
            f" weights. {one_seed}"
        )
    unfair = [f"{arm} (best at {best[arm]:g}, {gains[arm]:+.1f} points)" for arm in table.index[gains > SEED_WORTH]]
    text = f"No arm is better by more than {SEED_WORTH:g} point at another rate."
    if unfair:
        text = f"Better by more than {SEED_WORTH:g} point at another rate: {', '.join(unfair)}."
    lower = [LABELS[arm] for arm in LARGE if best[LABELS[arm]] < best[LABELS[PAIR[0]]]]
    suits = ", ".join(lower) or "none of the arms with large weights, **against our expectation**"
    return f"{text} A lower rate than the default's suits {suits}. {one_seed}"
