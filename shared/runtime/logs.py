"""Structured logs on stderr: JSON for machines, or coloured lines for a person."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import stamina
import structlog

_SECRET_NAME = re.compile(r"token|password|secret|api[_-]?key|authorization", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(\w+://[^:/@\s]*:)[^@\s]+@")
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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
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
    stamina.instrumentation.set_on_retry_hooks([])  # the bus says once that Redis is away, not at each try
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service, instance=instance)


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Hide values of fields with a secret's name, and passwords inside URLs and headers."""
    return {name: _REDACTED if _SECRET_NAME.search(name) else redact(value) for name, value in event.items()}


def redact(value: object) -> object:
    """The value without passwords in URLs and bearer tokens; text inside lists and mappings included."""
    if isinstance(value, BaseException):
        value = str(value)
    if isinstance(value, str):
        return _BEARER.sub(rf"\1{_REDACTED}", _URL_PASSWORD.sub(rf"\1{_REDACTED}@", value))
    if isinstance(value, Mapping):
        return {
            name: _REDACTED if _SECRET_NAME.search(str(name)) else redact(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value
