"""Structured logs on stderr: JSON, or coloured lines for people."""

import contextlib
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO, cast

import stamina
import structlog

_SECRET_NAME = re.compile(r"token|password|secret|api[_-]?key|authorization", re.IGNORECASE)
#: The match ends at the last @ of a word, since a password that is not percent-encoded may contain an @.
_URL_PASSWORD = re.compile(r"(\w+://[^:/@\s]*:)\S+@")
_BEARER = re.compile(r"(Bearer\s+)\S+", re.IGNORECASE)
_REDACTED = "***"


def configure_logs(service: str, instance: str, *, level: str = "INFO", form: str = "json") -> None:
    """Set up structlog, and the standard library's logging behind it, for one process."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact,
    ]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer(default=str)
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _LossyStream(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(
        handlers=[handler], level=max(logging.getLevelName(level), logging.WARNING), force=True
    )
    stamina.instrumentation.set_on_retry_hooks([])  # the bus logs once that Redis is unavailable
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service, instance=instance)


class _LossyStream:
    """A stream that discards text that cannot be written: a full disk must not stop the process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def is_secret_name(name: str) -> bool:
    """True if a field of this name holds a secret."""
    return bool(_SECRET_NAME.search(name))


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Hide the values of secret fields, and passwords in URLs and headers."""
    return {name: _REDACTED if is_secret_name(name) else redact(value) for name, value in event.items()}


def redact(value: object) -> object:
    """The value without passwords in URLs and without bearer tokens, also inside lists and mappings."""
    if isinstance(value, BaseException):
        value = str(value)
    if isinstance(value, str):
        return _BEARER.sub(rf"\1{_REDACTED}", _URL_PASSWORD.sub(rf"\1{_REDACTED}@", value))
    if isinstance(value, Mapping):
        return {
            name: _REDACTED if is_secret_name(str(name)) else redact(item) for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value
