"""Commands that run one service in the foreground."""

import importlib
import sys
from collections.abc import Callable

import typer

from cli import selfplay

#: Service by command.
SERVICES = {
    "train": "trainer",
    "selfplay": "selfplay",
    "validator": "validator",
    "trader": "trader",
    "api": "api",
    "inference": "inference",
    "broker": "broker",
}


ONCE_HINT = """\
To play some episodes into a file, or to draw one, without Redis:
  micro-muzero selfplay --once --help
"""


def register(app: typer.Typer) -> None:
    """Add a command per service; the service parses all arguments itself, including `--help`."""
    for command, service in SERVICES.items():
        app.command(
            command,
            help=f"Run the {service} service; --help lists its settings.",
            context_settings={
                "allow_extra_args": True,
                "ignore_unknown_options": True,
                "help_option_names": [],
            },
        )(_runner(service))


def _runner(service: str) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        if service == "selfplay":
            if selfplay.wants(context.args):
                selfplay.main(context.args)
            if "--help" in context.args or "-h" in context.args:
                print(ONCE_HINT)
        sys.exit(importlib.import_module(f"services.{service}.__main__").main(context.args))

    return run
