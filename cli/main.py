"""`micro-muzero`: every command of the system, a file per group."""

import os
import sys

import typer
from rich.markup import escape

from cli import checkpoints, data, local, services
from cli.monitor import monitor
from cli.output import err
from shared.errors import MuZeroError

app = typer.Typer(
    name="micro-muzero",
    help="Train a Stochastic MuZero agent on one-minute bars, validate it, and trade with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (local.up, local.down, local.status, monitor):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(checkpoints.app, name="checkpoints")
services.register(app)


def main() -> None:
    """Run one command; an error is one line, exit status 2 when the input is at fault, else 1."""
    try:
        app()
    except MuZeroError as failure:
        err.print(f"[red]error:[/] {escape(str(failure))}", soft_wrap=True, highlight=False)
        sys.exit(2 if failure.user_fault else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
