"""Reads a service's settings from the environment, `.env`, a TOML profile, and defaults, in this order.

One profile serves every service. Each of its tables is a group (`[search]`, `[learner]` ...), and a service
declares the groups that it uses as fields. `MM_SEARCH__SIMULATIONS` names a setting of a group, and
`MM_LOG_LEVEL` one outside groups. A name that no service knows is an error, so that a misspelt setting
never silently keeps its default.
"""

import dataclasses
import importlib
import os
import tomllib
import types
from pathlib import Path
from typing import Literal, Self, TypeVar
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from shared.engine.precision import Precision
from shared.errors import SettingsError
from shared.messages.streams import HEARTBEAT_TTL_SECONDS
from shared.runtime.logs import is_secret_name

PREFIX = "MM_"
DELIMITER = "__"
ENV_FILE = Path(".env")

#: Fields that hold a secret although their names do not show it.
_SECRET_FIELDS = frozenset({"redis_url", "alerts__webhook_url", "webhook_url"})

#: Each module defines a settings class. Together they define every setting.
SETTINGS_MODULES = (
    "services.trainer.settings",
    "services.selfplay.settings",
    "services.validator.settings",
    "services.inference.settings",
    "services.trader.settings",
    "services.broker.settings",
    "services.api.settings",
    "cli.settings",
)


class ServiceSettings(BaseSettings):
    """The settings of every service; each service adds its own fields and groups."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        frozen=True,
        extra="ignore",
        validate_default=True,
        populate_by_name=True,
    )

    profile: Path | None = Field(None, description="TOML file with a table per group of settings")
    home: Path = Field(Path(".micro-muzero"), description="folder that holds all state of a local run")
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis server of the streams"
    )
    redis_password: SecretStr = Field(
        SecretStr(""), description="Redis password, not percent-encoded; replaces one in the URL"
    )
    redis_password_file: Path | None = Field(
        None,
        description="file whose first line is the password, such as a Docker secret; used if none is set",
    )
    instance: str = Field("", description="name of this instance; empty means host and process id")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="lowest level that is logged"
    )
    log_format: Literal["json", "console"] = Field("json", description="console: coloured lines for people")
    heartbeat_seconds: float = Field(
        5.0,
        gt=0,
        le=HEARTBEAT_TTL_SECONDS / 3,
        description="interval between two heartbeats; two in a row may be lost",
    )
    alive_file: Path | None = Field(None, description="file touched at each heartbeat, for health checks")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port of this process; 0 means none")
    metrics_host: str = Field(
        "127.0.0.1", description="interface of the Prometheus port; 0.0.0.0 admits other hosts"
    )
    dataset: Path = Field(Path("data/dataset.duckdb"), description="the DuckDB file of bars")
    checkpoints: str | None = Field(
        None, description="checkpoint store: a folder or s3://bucket/prefix; `<home>/checkpoints` when unset"
    )
    precision: Precision = Field(
        Precision.AUTO,
        description="number format of decisions; auto: bfloat16 if the processor has instructions for it",
    )

    @field_validator("redis_url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        """Refuse anything but a Redis URL. The error does not show the URL, since it may hold a password."""
        parts = urlsplit(url.get_secret_value())
        location = parts.path if parts.scheme == "unix" else parts.hostname
        if parts.scheme not in ("redis", "rediss", "unix") or not location or not _has_port(parts):
            raise ValueError(
                "expected redis://host:port/0; percent-encode a password in it, or set MM_REDIS_PASSWORD"
            )
        return url

    @model_validator(mode="after")
    def _check_password_file(self) -> Self:
        """Refuse an unreadable password file at the start."""
        assert self.redis_address
        return self

    @property
    def redis_address(self) -> str:
        """URL of Redis with its password, for a client.

        Raises:
            SettingsError: the password file cannot be read.
        """
        password = self.redis_password.get_secret_value()
        if not password and self.redis_password_file is not None:
            password = _first_line(self.redis_password_file)
        url = self.redis_url.get_secret_value()
        return _with_password(url, password) if password else url

    @property
    def checkpoint_root(self) -> Path | str:
        """Folder or URL of the checkpoint store."""
        return self.checkpoints or self.home / "checkpoints"

    @property
    def validation_root(self) -> Path:
        """Folder of the validator's reports."""
        return self.home / "validations"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override `.env`, and `.env` the profile."""
        return (init_settings, env_settings, dotenv_settings, _ProfileSource(settings_cls, init_settings))


class _ProfileSource(InitSettingsSource):
    """The values of the profile that the argument `profile` or the variable MM_PROFILE names."""

    def __init__(self, settings_cls: type[BaseSettings], init: PydanticBaseSettingsSource) -> None:
        path = init().get("profile") or _environment().get(f"{PREFIX}PROFILE")
        super().__init__(settings_cls, _read_profile(Path(path)) if path else {})


_S = TypeVar("_S", bound=ServiceSettings)


def load(settings_class: type[_S], **overrides: object) -> _S:
    """Read one service's settings.

    Raises:
        SettingsError: a name is unknown, a value invalid, or the profile unreadable.
    """
    _refuse_unknown_names(overrides.get("profile"))
    try:
        return settings_class(_env_file=ENV_FILE if ENV_FILE.is_file() else None, **overrides)  # type: ignore[arg-type]
    except ValidationError as invalid:
        problem = invalid.errors(include_url=False)[0]
        name = DELIMITER.join(str(part) for part in problem["loc"])
        raise SettingsError(
            f"setting {PREFIX}{name.upper()} {_shown(name, problem['input'])}: {_expected(problem['msg'])}"
        ) from None  # the cause would show the values of all settings


def _shown(name: str, value: object) -> str:
    """A refused value for an error text, without secrets; a group is not shown, since it may hold one."""
    if is_secret_name(name) or name in _SECRET_FIELDS or not isinstance(value, str | int | float | bool):
        return "is invalid"
    return f"is {value!r}"


def _expected(message: str) -> str:
    """A message of pydantic, in the words of this project's errors."""
    for prefix, replacement in (("Value error, ", ""), ("Input should ", "expected to ")):
        if message.startswith(prefix):
            return replacement + message.removeprefix(prefix)
    return message


def _has_port(parts: SplitResult) -> bool:
    """True if the port is a number or left out."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r")
    except (OSError, UnicodeDecodeError) as unreadable:
        raise SettingsError(
            f"setting MM_REDIS_PASSWORD_FILE is '{path}', expected a readable text file: {unreadable}"
        ) from None


def _with_password(url: str, password: str) -> str:
    """The URL with its password replaced by this one, which is percent-encoded."""
    parts = urlsplit(url)
    user = (parts.username or "", quote(password, safe=""))
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{':'.join(user)}@{host}"))


def known_names() -> dict[str, frozenset[str]]:
    """Every setting of every service, by group; those outside groups are under the empty name."""
    names: dict[str, set[str]] = {"": set()}
    for module in SETTINGS_MODULES:
        for settings_class in _settings_classes(importlib.import_module(module)):
            for name, field in settings_class.model_fields.items():
                members = _group_members(field.annotation)
                if members is None:
                    names[""].add(name)
                else:
                    names.setdefault(name, set()).update(members)
    return {group: frozenset(members) for group, members in names.items()}


def _settings_classes(module: types.ModuleType) -> list[type[ServiceSettings]]:
    return [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, ServiceSettings) and item.__module__ == module.__name__
    ]


def _group_members(annotation: object) -> list[str] | None:
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return [field.name for field in dataclasses.fields(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return None


def _environment() -> dict[str, str]:
    """The variables of the process and, where they are not set, those of `.env`."""
    from_file = dotenv_values(ENV_FILE) if ENV_FILE.is_file() else {}
    return {name: value for name, value in {**from_file, **os.environ}.items() if value is not None}


def _read_profile(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as missing:
        raise SettingsError(
            f"profile {path} cannot be read: {missing.strerror}; expected a TOML file"
        ) from missing
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as invalid:
        raise SettingsError(f"profile {path} is not valid TOML: {invalid}") from invalid


def _refuse_unknown_names(profile: object) -> None:
    known = known_names()
    environment = _environment()
    for variable in environment:
        if not variable.startswith(PREFIX):
            continue
        group, _, field = variable[len(PREFIX) :].lower().rpartition(DELIMITER)
        if field not in known.get(group, ()):
            raise SettingsError(f"unknown setting {variable}; {_suggestion(known, group, field)}")
    path = profile or environment.get(f"{PREFIX}PROFILE")
    if path is None:
        return
    for name, value in _read_profile(Path(str(path))).items():
        members = value if isinstance(value, dict) else {name: value}
        group = name if isinstance(value, dict) else ""
        for field in members:
            if field not in known.get(group, ()):
                where = f"[{group}] {field}" if group else field
                raise SettingsError(
                    f"profile {path}: unknown setting {where}; {_suggestion(known, group, field)}"
                )


def _suggestion(known: dict[str, frozenset[str]], group: str, field: str) -> str:
    import difflib

    if group not in known:
        groups = [name for name in known if name]
        close = difflib.get_close_matches(group, groups, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(groups))}"
        return f"there is no group {group!r}, {hint}"
    close = difflib.get_close_matches(field, known[group], n=1)
    if close:
        spelled = f"{group}{DELIMITER}{close[0]}" if group else close[0]
        return f"did you mean {PREFIX}{spelled.upper()}?"
    return f"expected one of {', '.join(sorted(known[group]))}"


def with_environment_name(name: str) -> AliasChoices:
    """Let a variable, such as OANDA_TOKEN, set a field both with and without the prefix."""
    return AliasChoices(name, f"{PREFIX}{name}")
