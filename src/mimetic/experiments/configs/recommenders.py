"""Recommender experiments by name, and their arms: every setting of every run, nothing that computes.

ml100k
    The central comparison: MovieLens-100K (943 users, 1,682 items), BERT4Rec of d 64, 2 layers, 2 heads (0.22 M
    parameters), the last 50 items; 40 epochs of 4 passes over the users: about 3 minutes on one quiet CPU core.
beauty
    Amazon Beauty 5-core at a size that fits: its 1,000 most frequent items and the 4,500 users with five of them; the
    last 20 items, 40 epochs: about 5 minutes.
ml100k-recipe, beauty-recipe
    The search that chose the recipe: default arm, judged by the users' last but one items; then both sign patterns at
    the same learning rates, to see whether the recipe is unfair to an arm.
ml100k-rate, beauty-rate
    The default, both sign patterns and the controls of their size once more at three times the learning rate, since on
    ML-100K the search found the recipe unfair to the default.
ml100k-sincos, ml100k-sincos-rate, beauty-sincos
    The central comparison with its controls and fixed positions, on MovieLens at both of these rates: in GPTs these
    positions turn what the signs do (mimetic.experiments.configs.language).
ml100k-from-sincos, ml100k-from-noise
    Both signs with learned positions that start from these, or from noise as large: what do fixed ones do, being fixed,
    their order or their size?
ml1m, beauty-full
    The sizes of the literature, for a GPU. Published for ML-1M by a reproduction that ranks the whole catalogue
    (asash/bert4rec_repro): NDCG@10 .1516, Recall@10 .2821, with settings that are partly other than these. Not run
    here: no expected numbers of our own.
clusters
    A synthetic walk around 8 clusters of 8 items, the causal model, in seconds. No download, a demonstration, not
    evidence.

The recipe is the same for every arm of an experiment. Vision signs are mimetic.VISION, +0.7 in QK and -0.4 in V.proj.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mimetic.experiments.configs.base import RunConfig


@dataclass(frozen=True)
class RecommenderConfig(RunConfig):
    """A BERT4Rec, or its causal next-item sibling, that is trained on item sequences."""

    family: ClassVar[str] = "mimetic.experiments.recommenders"
    default_init: ClassVar[str] = "bert"

    init: str = "bert"  # initializer by name, one of mimetic.INITIALIZERS

    # data

    dataset: str = "ml100k"  # ml100k, ml1m, beauty, clusters (synthetic)
    items: int | None = None  # keep the so many most frequent items, then users with at least 5; None: all
    validation: bool = False  # judge by the items before the last (to choose a recipe) instead of the last
    max_len: int = 50  # positions of the model
    passes: int = 1  # over the users in an epoch

    # training

    objective: str = "mask"  # mask: masked items (BERT4Rec); next: the next item at every position (needs causal)
    mask_prob: float = 0.2  # of an item to be masked
    last_only: float = 0.1  # share of the sequences in which only the last item is masked, as when it is used
    # torch.compile: auto and on are refused, as the number of masked items changes from batch to batch
    compile: str = "off"
    weight_decay: float = 0.01  # AdamW's, on matrices only; this is BERT4Rec's

    # model

    d_model: int = 64  # width of the tokens
    depth: int = 2  # blocks
    num_heads: int = 2  # must divide d_model
    mlp_ratio: float = 4.0  # hidden width of the MLP / d_model
    norm_first: bool = False  # pre-LN; False: post-LN, as published
    causal: bool = False  # attention to earlier items only
    dropout: float = 0.1  # of the embedding, of attention weights, after attention and after the MLP
    pos_embed: str = "learned"  # learned, as BERT's; sincos: fixed; from-sincos, from-noise (models.bert4rec)


ML100K = RecommenderConfig(
    "ml100k", dataset="ml100k", epochs=40, passes=4, batch_size=64, lr=1e-3, mask_prob=0.4, threads=1,
    precision="bfloat16", device="cpu",
)  # fmt: skip
BEAUTY = replace(ML100K, experiment="beauty", dataset="beauty", items=1_000, max_len=20, batch_size=128)
GPU = replace(ML100K, epochs=100, passes=10, batch_size=256, lr=1e-3, max_len=200, device="auto", precision="auto")
EXPERIMENTS: dict[str, RecommenderConfig] = {
    config.experiment: config
    for config in (
        ML100K,
        BEAUTY,
        replace(ML100K, experiment="ml100k-recipe", validation=True, lr=3e-3, epochs=20),
        replace(BEAUTY, experiment="beauty-recipe", validation=True, epochs=20),
        replace(ML100K, experiment="ml100k-rate", lr=3e-3),
        replace(BEAUTY, experiment="beauty-rate", lr=3e-3),
        replace(ML100K, experiment="ml100k-sincos", pos_embed="sincos"),
        replace(ML100K, experiment="ml100k-sincos-rate", pos_embed="sincos", lr=3e-3),
        replace(BEAUTY, experiment="beauty-sincos", pos_embed="sincos"),
        *(replace(ML100K, experiment=f"ml100k-{kind}", pos_embed=kind) for kind in ("from-sincos", "from-noise")),
        # the share of masks published for this data set
        replace(GPU, experiment="ml1m", dataset="ml1m", mask_prob=0.2),
        replace(GPU, experiment="beauty-full", dataset="beauty", max_len=50),
        RecommenderConfig(
            "clusters", dataset="clusters", objective="next", causal=True, d_model=32, max_len=8, epochs=10,
            batch_size=50, lr=3e-3, dropout=0.0, threads=1, device="cpu",
        ),
    )
}  # fmt: skip

OPPOSITE = {"init": "mimetic", "qk_beta": -0.7, "vp_beta": 0.4}  # both of vision's signs turned
RANDOM = {"init": "mimetic-random-directions"}  # a control: the singular values without the diagonal
# the three arms that ask which sign
SIGN_ARMS = {"bert": {"init": "bert"}, "mimetic": {"init": "mimetic"}, "opposite": OPPOSITE}
CHECK_RATES = (3e-4, 1e-3, 3e-3)
# what the search calls the default at the common rate
THE_SAME = {"ml100k-recipe": "lr-0.001-epochs-40", "beauty-recipe": "epochs-40"}


def check_arm(experiment: str, name: str, lr: float) -> str:
    """What an arm of SIGN_ARMS at one of CHECK_RATES is called in a search for a recipe."""
    return THE_SAME[experiment] if (name, lr) == ("bert", 1e-3) else f"{name}-lr-{lr:g}-epochs-40"


def _checks(experiment: str) -> dict[str, dict[str, Any]]:
    arms = {
        check_arm(experiment, name, lr): {**arm, "lr": lr, "epochs": 40}
        for name, arm in SIGN_ARMS.items()
        for lr in CHECK_RATES
    }
    return {name: arm for name, arm in arms.items() if name != THE_SAME[experiment]}


CAUSAL = {"causal": True}  # masked items still, seen from the left only
NEXT = {"causal": True, "objective": "next"}  # SASRec's task and mask, in BERT4Rec's block
# best by the validation items of 5, 10, 20 and 40: this task has a target at every position and learns sooner
NEXT_EPOCHS = 20

# The default arm only, one setting changed at a time; then the epochs are doubled until that no longer pays. Last, what
# was added after that choice, to test it: a lower rate, another share of masks, and the sign patterns at every rate and
# with twice the epochs.
RECIPE: dict[str, dict[str, dict[str, Any]]] = {
    "ml100k-recipe": {
        "base": {},
        "lr-0.001": {"lr": 1e-3},
        "lr-0.006": {"lr": 6e-3},
        # the second step, from the lower of the two learning rates that learn
        **{f"lr-0.001-epochs-{epochs}": {"lr": 1e-3, "epochs": epochs} for epochs in (40, 80)},
        "mask-0.2": {"lr": 1e-3, "epochs": 40, "mask_prob": 0.2},
        **_checks("ml100k-recipe"),
        "mimetic-lr-0.001-epochs-80": {"init": "mimetic", "lr": 1e-3, "epochs": 80},
        # the causal sibling, which is past its best after 40 epochs
        **{f"next-epochs-{epochs}": {"lr": 1e-3, "epochs": epochs, **NEXT} for epochs in (5, 10, 20, 40)},
    },
    # with the learning rate of the first; 0.6 is the published share of masks for this data set
    "beauty-recipe": {
        "base": {},
        "mask-0.6": {"mask_prob": 0.6},
        **{f"epochs-{epochs}": {"epochs": epochs} for epochs in (40, 80)},
        **_checks("beauty-recipe"),
    },
}
# set of constants -> experiment and arm of the run (seed 0) that they imitate
FITTED_FROM = {"ml100k": ("ml100k", "bert"), "beauty": ("beauty", "bert"), "beauty-next": ("beauty", "short-next-bert")}
# Constants that imitate these trained models, layer by layer: python -m mimetic.experiments.fitted. A test compares
# them with the committed records.
FITTED: dict[str, dict[str, tuple[float, ...]]] = {
    "ml100k": {
        "qk_alpha": (0.171, 0.32),
        "qk_beta": (0.00442, 0.0483),
        "vp_alpha": (0.41, 0.752),
        "vp_beta": (0.0129, 0.00899),
    },
    "beauty": {
        "qk_alpha": (0.307, 0.4),
        "qk_beta": (-0.00762, 0.0298),
        "vp_alpha": (0.433, 0.5),
        "vp_beta": (-0.00797, 0.0213),
    },
    "beauty-next": {
        "qk_alpha": (0.873, 0.868),
        "qk_beta": (-0.133, -0.121),
        "vp_alpha": (0.336, 0.339),
        "vp_beta": (0.043, 0.0692),
    },
}


def _variants(prefix: str, **changes: Any) -> dict[str, dict[str, Any]]:
    """SIGN_ARMS in a changed model."""
    return {f"{prefix}-{name}": {**arm, **changes} for name, arm in SIGN_ARMS.items()}


# Arms of an experiment besides the plain initializers (bert, mimetic, mimetic-qk, mimetic-vp, ...).
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "ml100k": {
        "opposite": OPPOSITE,
        # measured on Beauty, imitated here: no weights and no items in common
        "fit-beauty": {"init": "mimetic", **FITTED["beauty"]},
        # controls: the singular values without the diagonal; BERT's weights at the norms of mimetic initialization's
        "random-directions": RANDOM,
        **_variants("pre-ln", norm_first=True),
        **_variants("next", **NEXT),  # the model that 40 epochs train past its best, kept to show what that changes
        **_variants("short-next", **NEXT, epochs=NEXT_EPOCHS),
        "short-next-fit-beauty": {"init": "mimetic", **FITTED["beauty-next"], **NEXT, "epochs": NEXT_EPOCHS},
        "short-next-timm-rescaled": {"init": "timm-rescaled", **NEXT, "epochs": NEXT_EPOCHS},
        "short-next-random-directions": {**RANDOM, **NEXT, "epochs": NEXT_EPOCHS},
        # the model between the two: masked items, causal attention; and both with pre-LN
        "causal-bert": {"init": "bert", **CAUSAL},
        "pre-ln-causal-bert": {"init": "bert", "norm_first": True, **CAUSAL},
        "pre-ln-next-bert": {"init": "bert", "norm_first": True, **NEXT},
        "short-pre-ln-next-bert": {"init": "bert", "norm_first": True, **NEXT, "epochs": NEXT_EPOCHS},
    },
    "beauty": {
        "opposite": OPPOSITE,
        "fit-ml100k": {"init": "mimetic", **FITTED["ml100k"]},
        "random-directions": RANDOM,
        **_variants("pre-ln", norm_first=True),
        "short-next-bert": {"init": "bert", **NEXT, "epochs": NEXT_EPOCHS},
    },
    **{
        name: {"opposite": OPPOSITE, "random-directions": RANDOM}
        for name in (
            "ml100k-rate",
            "beauty-rate",
            "ml100k-sincos",
            "ml100k-sincos-rate",
            "beauty-sincos",
            "ml100k-from-sincos",
            "ml100k-from-noise",
            "ml1m",
            "beauty-full",
        )
    },
    **RECIPE,
}
