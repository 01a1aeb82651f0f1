"""The command line of every service: `--help` lists its settings, and errors are one line.

It uses argparse, because importing typer would slow the start of every service.
"""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import AliasChoices, SecretStr

from shared.errors import MuZeroError
from shared.runtime.lifecycle import EXIT_INTERRUPTED, Main, run_service
from shared.runtime.settings import DELIMITER, PREFIX, ServiceSettings, load
from shared.setting import describe_group

_S = TypeVar("_S", bound=ServiceSettings)


def service_main(
    service: str,
    settings_class: type[_S],
    compose: Callable[[_S], Main],
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the settings, compose the service and run it until it is asked to stop.

    Args:
        service: name in heartbeats, logs and metrics.
        settings_class: class of its settings.
        compose: wires settings to a coroutine; raises MuZeroError if the user's input is invalid. It
            imports slow modules itself, so that `--help` is quick. A signal during the import exits at once,
            since there is nothing to save yet.
        arguments: the command line without the program's name; None reads `sys.argv`.
    Returns:
        Exit status: 0 after a graceful shutdown, 1 after a failure, 2 if the user's input caused it, 130
        after Ctrl-C before the service started.
    """
    parser = argparse.ArgumentParser(
        prog=f"micro-muzero {service}",
        description=f"{(settings_class.__doc__ or '').splitlines()[0]} Runs the service in the foreground.",
        epilog="settings, from the environment, .env or the profile:\n"
        + "\n".join(_setting_lines(settings_class)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", type=Path, help="TOML file with a table per group of settings")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
    try:
        overrides = {"profile": options.profile} if options.profile else {}
        settings = load(settings_class, **overrides)
        main = compose(settings)
    except MuZeroError as failure:
        print(f"error: {failure}", file=sys.stderr)  # noqa: T201  output of a command
        return 2 if failure.user_fault else 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return run_service(service, settings, main)


def _setting_lines(settings_class: type[ServiceSettings]) -> Iterator[str]:
    """The variable of each setting, with its default and description."""
    for name, field in settings_class.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        if dataclasses.is_dataclass(default):
            for member, value, description in describe_group(default):
                variable = f"{PREFIX}{name}{DELIMITER}{member}".upper()
                yield f"  {variable} = {_shown(value)}{'  ' + description if description else ''}"
        else:
            alias = field.validation_alias
            spelled = alias.choices[0] if isinstance(alias, AliasChoices) else f"{PREFIX}{name.upper()}"
            yield f"  {spelled} = {_shown(default)}{'  ' + field.description if field.description else ''}"


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "***"
    return "unset" if value is None or value == "" else str(value)
