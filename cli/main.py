"""`micro-muzero`: every command of the system, a file per group."""

import io
import os
import signal
import sys

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
    help="Train a Stochastic MuZero agent on one-minute bars, validate it, and trade with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def compile_kernels() -> None:
    """Compile every kernel into the cache on disk, so that the services start at once."""
    from cli.compile import compile_all  # brings torch along

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
    """SIGTERM came: what a command has begun is cleaned up as after Ctrl-C."""


def _terminate(_signal: int, _frame: object) -> None:
    raise _TerminatedError


def main() -> None:
    """Run one command; an error is one line, exit status 2 when the input is at fault, else 1."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for results
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without UTF-8 has no box-drawing characters
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
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
