"""Looks after stored features: inspect, verify, repair, gc, check, import, dump, card."""

import argparse
from collections.abc import Callable

from stages import console, store_care, store_exchange, store_inspect


def main() -> None:
    """Run the verb that the arguments name."""
    arguments = _parser().parse_args()
    arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.store",
        description=__doc__,
        epilog="Run it in the repository's root. Features are in .framecache/, or where"
        " FRAMECACHE_JOURNAL says.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.set_defaults(run=run)
        return verb

    for module in (store_inspect, store_care, store_exchange):
        module.add_verbs(add)
    return parser


if __name__ == "__main__":
    console.run(main)
