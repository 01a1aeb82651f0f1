"""The `micro-muzero` command; each group of subcommands has a file of its own."""

import io
import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated

import structlog
import typer
from rich.markup import escape

from cli import bench, checkpoints, data, dead, local, records, services, studies
from cli.kill import kill
from cli.metrics import metrics
from cli.monitor import monitor
from cli.output import err
from cli.simulate import simulate
from cli.validate import backtest, validate
from shared.errors import MuZeroError

app = typer.Typer(
    name="micro-muzero",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("micro-stochastic-muzero"))
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit"),
    ] = False,
) -> None:
    """Train a Stochastic MuZero agent on one-minute bars, validate it, and trade with it."""


def compile_kernels() -> None:
    """Compile all numeric kernels into the on-disk cache.

    Services that start afterwards do not compile them again.
    """
    from cli.compile import compile_all  # imports torch

    compile_all()


for command in (local.up, local.down, local.status, kill, monitor, simulate, validate, backtest, metrics):
    app.command()(command)
for study in (studies.learn, studies.compare, studies.discount, studies.gate):
    app.command()(study)
app.command("compile")(compile_kernels)
app.add_typer(data.app, name="data")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(dead.app, name="dead")
app.add_typer(records.app, name="runs")
app.add_typer(bench.app, name="bench")
services.register(app)


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM was received; the command cleans up as after Ctrl-C."""


def _terminate(_signal: int, _frame: object) -> None:
    raise _TerminatedError


def main() -> None:
    """Run one command.

    An error is printed as one line. The exit status is 2 if the user's input caused it, otherwise 1.
    """
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for results
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without UTF-8 cannot encode table borders
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with it ignored
    try:
        app(prog_name="micro-muzero")
    except MuZeroError as failure:
        err.print(f"[red]error:[/] {escape(str(failure))}", soft_wrap=True, highlight=False)
        sys.exit(2 if failure.user_fault else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _TerminatedError:
        err.print("terminated")
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
