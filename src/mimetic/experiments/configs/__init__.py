"""Every named experiment and its arms, whatever is trained: configs by name, nothing that computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from mimetic.experiments.configs import language, recommenders, vision
from mimetic.experiments.configs.base import FREE, RunConfig
from mimetic.messages import check_choice

_FAMILIES = (vision, language, recommenders)
EXPERIMENTS: dict[str, RunConfig] = {
    name: config for family in _FAMILIES for name, config in family.EXPERIMENTS.items()
}
ARMS: dict[str, dict[str, dict[str, Any]]] = {name: arms for family in _FAMILIES for name, arms in family.ARMS.items()}


def named(experiment: str, /, **changes: Any) -> RunConfig:
    """The config of a named experiment or of one of its arms, with some fields changed:
    ``named("cifar10-lab30", init="mimetic", seed=1)``, ``named("cifar10-lab10", arm="swapped")``.

    Raises:
        ValueError: unknown experiment, arm or field; the message names the choices.
    """
    check_choice("experiment", experiment, EXPERIMENTS)
    base = EXPERIMENTS[experiment]
    for name in changes:
        if name not in base.known():
            raise ValueError(
                f"{name!r} is not a field of {type(base).__name__}; the fields are {', '.join(base.known())}"
            )
    given = replace(base, **changes)
    config = with_arm(given)
    against = [
        f"{name}={getattr(given, name)!r} ({given.arm} has {getattr(config, name)!r})"
        for name in changes
        if name != "arm" and getattr(config, name) != getattr(given, name)
    ]
    _refuse(given, against)
    return config


def config_from_record(values: Mapping[str, Any]) -> RunConfig:
    """The config that a record holds, of a named experiment or of one's own; fields that are newer than the record have
    their defaults.

    Raises:
        ValueError: no kind of run has these fields.
    """
    kinds = dict.fromkeys(type(config) for config in EXPERIMENTS.values())
    unknown = {kind: [name for name in values if name not in kind.known()] for kind in kinds}
    nearest = min(unknown, key=lambda kind: len(unknown[kind]))
    if unknown[nearest]:
        raise ValueError(f"{nearest.__name__} has no field {', '.join(unknown[nearest])}: of a newer version?")
    return nearest(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _refuse(given: RunConfig, against: list[str]) -> None:
    """ValueError if settings were given against the arm."""
    if against:
        raise ValueError(f"arm {given.arm!r} of {given.experiment} sets what was given otherwise: {', '.join(against)}")


def with_arm(config: RunConfig) -> RunConfig:
    """The config with what its arm changes, where it is an arm of a named experiment; else as it is.

    Raises:
        ValueError: the experiment has no such arm; a setting was given that contradicts the arm; or the arm of a named
            experiment is asked for under another experiment's name, where it would change nothing.
    """
    from mimetic.initializers import INITIALIZERS

    if not config.arm:
        return config
    base = EXPERIMENTS.get(config.experiment)
    if base is None:
        homes = {
            name: arms[config.arm]
            for name, arms in ARMS.items()
            if config.arm in arms and type(EXPERIMENTS[name]) is type(config)
        }
        if homes and not any(all(getattr(config, k) == v for k, v in changes.items()) for changes in homes.values()):
            raise ValueError(
                f"{config.arm!r} is an arm of {', '.join(homes)}; in experiment {config.experiment!r} it would change"
                " nothing: give its settings themselves, under another arm's name"
            )
        return config
    arms = ARMS.get(config.experiment, {})
    if config.arm in arms:
        changes = arms[config.arm]
        given = {name: getattr(config, name) for name in changes}
        against = [
            f"{name}={value!r} ({config.arm} has {changes[name]!r})"
            for name, value in given.items()
            if value not in (changes[name], getattr(base, name))
        ]
        _refuse(config, against)
        return replace(config, **changes)
    if config.arm in INITIALIZERS:  # an arm that has only another initializer is called by its name
        _refuse(config, [f"init={config.init!r}"] if config.init not in (config.arm, base.init) else [])
        return replace(config, init=config.arm, arm="")
    choices = list(dict.fromkeys((*arms, *INITIALIZERS)))
    near = get_close_matches(config.arm, choices, 1)
    raise ValueError(
        f"{config.experiment} has no arm {config.arm!r}{f' (did you mean {near[0]}?)' if near else ''}; choose from"
        f" {', '.join(choices)}"
    )


def check_named(config: RunConfig) -> None:
    """A record in the folder of a named experiment must be a run of that experiment.

    Raises:
        ValueError: it is defined with other values; the message names them.
    """
    base = EXPERIMENTS.get(config.experiment)
    if base is None:
        return
    if type(base) is not type(config):
        raise ValueError(f"{config.experiment} is made of {type(base).__name__}, not of {type(config).__name__}")
    base = with_arm(replace(base, arm=config.arm))
    free = FREE if config.arm else (*FREE, "init")
    differs = [
        f"{name}={getattr(config, name)!r} (there {getattr(base, name)!r})"
        for name in config.known()
        if name not in free and getattr(config, name) != getattr(base, name)
    ]
    if differs:
        raise ValueError(
            f"{config.name} is defined with other values than {', '.join(differs)}: give the run "
            "another experiment name (--experiment), or do not store it (store=False, --no-store)"
        )
