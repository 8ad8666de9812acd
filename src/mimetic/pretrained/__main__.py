"""Command line of the pretrained models; ``python -m mimetic.pretrained --help``."""

from __future__ import annotations

import argparse
import sys

from mimetic.pretrained.cache import PROBLEMS, cached_path, fetch, one_line
from mimetic.pretrained.measurements import measure_all, recorded
from mimetic.pretrained.sources import SOURCES, source


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (1 if something that was asked for could not be had)."""
    parser = argparse.ArgumentParser(
        prog="python -m mimetic.pretrained",
        description="Attention weights of pretrained models: what there is, fetching, measuring.",
        epilog=f"names: {', '.join(SOURCES)}. Example: python -m mimetic.pretrained fetch minilm-l6",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the sources, and which are in the cache and measured")
    for command, text in (("fetch", "fetch weights to the cache"), ("measure", "write data/pretrained/NAME.json")):
        sub = commands.add_parser(command, help=text)
        sub.add_argument("names", nargs="*", metavar="NAME", help="sources (default: all)")
    options = parser.parse_args(arguments)
    if options.command == "list":
        have = recorded()
        for src in SOURCES.values():
            cached = "cached" if cached_path(src.name).is_file() else "-"
            measured = "measured" if src.name in have else "-"
            print(f"{src.name:<22} {cached:<7} {measured:<9} {src.licence:<11} {src.title}, {src.kind} {src.origin}")
        return 0
    names = options.names or list(SOURCES)
    try:
        for name in names:
            source(name)
    except ValueError as error:
        parser.error(str(error))
    if options.command == "measure":
        return 0 if len(measure_all(names)) == len(names) else 1
    status = 0
    for name in names:
        try:
            print(f"{name}: {fetch(name)}")
        except PROBLEMS as error:
            print(one_line(error), file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
