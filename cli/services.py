"""One service in the foreground: `train`, `selfplay`, `validator`, `trader`, `api`, `inference`, `broker`."""

import importlib
import sys
from collections.abc import Callable

import typer

from cli import selfplay

#: Command, and the service that it runs.
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
Without Redis, some episodes into a file for inspection, or one of them as a picture:
  micro-muzero selfplay --once --help
"""


def register(app: typer.Typer) -> None:
    """Add a command per service; what follows it, `--help` included, goes to the service."""
    for command, service in SERVICES.items():
        app.command(
            command,
            help=f"Run the {service} service in the foreground (--help lists its settings).",
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
