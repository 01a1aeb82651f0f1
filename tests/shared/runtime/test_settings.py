"""The order of sources, and errors for unknown names and invalid values."""

import dataclasses
import importlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from redis import Redis

from services.api.settings import GatewaySettings
from services.selfplay.settings import SelfPlaySettings
from services.trainer.settings import TrainerSettings
from shared.errors import SettingsError
from shared.runtime.settings import SETTINGS_MODULES, ServiceSettings, known_names, load
from shared.search.config import Selection
from shared.setting import describe_group


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the `.env` and the MM_ variables of the machine."""
    import os

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MM_")]:
        monkeypatch.delenv(name)


def test_defaults_are_the_numbers_of_the_specification() -> None:
    settings = load(TrainerSettings)
    assert settings.replay.capacity_steps == 10_000
    assert settings.learner.learning_rate == 0.002
    assert settings.search.discount == 0.997
    assert settings.trainer.publish_every_episodes == 50
    assert settings.checkpoint_root == Path(".micro-muzero/checkpoints")


def test_the_environment_overrides_dotenv_and_dotenv_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("profile.toml").write_text(
        'log_level = "DEBUG"\n[learner]\nbatch_size = 8\nn_step = 3\nunroll_steps = 2\n'
    )
    Path(".env").write_text("MM_LEARNER__N_STEP=4\nMM_LEARNER__UNROLL_STEPS=4\nMM_PROFILE=profile.toml\n")
    monkeypatch.setenv("MM_LEARNER__UNROLL_STEPS", "5")
    settings = load(TrainerSettings)
    assert (settings.learner.batch_size, settings.learner.n_step, settings.learner.unroll_steps) == (8, 4, 5)
    assert settings.learner.learning_rate == 0.002  # a group that is partly set keeps its other defaults
    assert settings.log_level == "DEBUG"


def test_one_profile_serves_every_service(tmp_path: Path) -> None:
    profile = tmp_path / "all.toml"
    profile.write_text('[search]\nselection = "puct"\n[learner]\nbatch_size = 8\n[selfplay]\nlanes = 3\n')
    assert load(SelfPlaySettings, profile=profile).search.selection is Selection.PUCT
    assert load(SelfPlaySettings, profile=profile).selfplay.lanes == 3
    assert load(TrainerSettings, profile=profile).learner.batch_size == 8


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("MM_LEARNER__BATCHSIZE", "did you mean MM_LEARNER__BATCH_SIZE?"),
        ("MM_LEARNR__BATCH_SIZE", "there is no group 'learnr', did you mean 'learner'?"),
        ("MM_QQQ__BATCH_SIZE", "there is no group 'qqq', expected one of alerts, "),
        ("MM_REDISURL", "did you mean MM_REDIS_URL?"),
        ("MM_ZZZ", "expected one of alive_file, "),
    ],
)
def test_an_unknown_variable_is_an_error_with_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, variable: str, hint: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match=f"unknown setting {variable}; ") as refused:
        load(TrainerSettings)
    assert hint in str(refused.value)


def test_an_unknown_name_in_the_profile_or_dotenv_is_an_error(tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    profile.write_text("[learner]\nbatch_sice = 8\n")
    with pytest.raises(SettingsError, match=r"p\.toml: unknown setting \[learner\] batch_sice"):
        load(TrainerSettings, profile=profile)
    profile.write_text("colour = 8\n")
    with pytest.raises(SettingsError, match="unknown setting colour"):
        load(TrainerSettings, profile=profile)
    Path(".env").write_text("MM_NO_SUCH=1\n")
    with pytest.raises(SettingsError, match="unknown setting MM_NO_SUCH"):
        load(TrainerSettings)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("MM_HEARTBEAT_SECONDS", "soon", "MM_HEARTBEAT_SECONDS is 'soon': expected to be a valid number"),
        ("MM_HEARTBEAT_SECONDS", "0", "MM_HEARTBEAT_SECONDS is '0': expected to be greater than 0"),
        (
            "MM_LOG_LEVEL",
            "LOUD",
            "MM_LOG_LEVEL is 'LOUD': expected to be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'",
        ),
        ("MM_LEARNER__BATCH_SIZE", "many", "MM_LEARNER__BATCH_SIZE is 'many'"),
        ("MM_LEARNER__BATCH_SIZE", "0", "learner.batch_size is 0, expected 1 or more"),
        ("MM_REPLAY__TRADE_QUOTA", "nan", "replay.trade_quota is nan, expected 0 to 1"),
        (
            "MM_SEARCH__SELECTION",
            "luck",
            "MM_SEARCH__SELECTION is 'luck': expected to be 'gumbel' or 'puct'",
        ),
    ],
)
def test_an_error_names_the_setting_its_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        load(TrainerSettings)
    assert reason in str(refused.value)


def test_an_error_names_a_profile_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml cannot be read: No such file"):
        load(TrainerSettings, profile=tmp_path / "gone.toml")
    for damaged in (b"= 3", b"# \xff"):
        (tmp_path / "bad.toml").write_bytes(damaged)
        with pytest.raises(SettingsError, match=r"bad\.toml is not valid TOML: "):
            load(TrainerSettings, profile=tmp_path / "bad.toml")


def test_a_password_is_not_shown() -> None:
    settings = load(TrainerSettings, redis_url="redis://:secret@localhost/0")
    assert "secret" not in repr(settings)
    assert settings.redis_url.get_secret_value().count("secret") == 1


#: Passwords as people and `openssl rand -base64` choose them, and arbitrary ones.
PASSWORDS = st.one_of(
    st.sampled_from(["aB/cD+e=", "#1", "what?", "a@b", "x:y", "50%", "two words", "\"'`$\\", "päss", "%2F"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1, max_size=20),
)


@given(PASSWORDS, st.sampled_from(["redis://h:1/0", "rediss://:old@h/2", "redis://user:a%2Fb@[::1]:7/0"]))
def test_a_password_of_any_character_reaches_the_client(password: str, url: str) -> None:
    address = ServiceSettings(redis_url=SecretStr(url), redis_password=SecretStr(password)).redis_address
    alone, together = (Redis.from_url(text).connection_pool.connection_kwargs for text in (url, address))
    assert together["password"] == password
    for name in ("username", "host", "port", "db"):
        assert together.get(name) == alone.get(name)


def test_the_password_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_REDIS_URL", "redis://h:1/0")
    monkeypatch.setenv("MM_REDIS_PASSWORD_FILE", "secret")
    with pytest.raises(
        SettingsError, match="MM_REDIS_PASSWORD_FILE is 'secret', expected a readable text file"
    ):
        load(ServiceSettings)
    Path("secret").write_text("a/b c\n")
    assert load(ServiceSettings).redis_address == "redis://:a%2Fb%20c@h:1/0"
    monkeypatch.setenv("MM_REDIS_PASSWORD", "first")
    assert load(ServiceSettings).redis_address == "redis://:first@h:1/0"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/x@redis:6379/0",
        "redis://:hunter2#x@redis:6379/0",
        "redis://:hunter2?x@redis:6379/0",
        "http://:hunter2@redis:6379/0",
        "redis://:hunter2@redis:port/0",
        "hunter2",
    ],
)
def test_an_invalid_redis_url_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("MM_REDIS_URL", url)
    with pytest.raises(
        SettingsError,
        match=r"MM_REDIS_URL is invalid: expected redis://host.*percent-encode .* MM_REDIS_PASSWORD",
    ) as refused:
        load(TrainerSettings)
    shown = "".join(traceback.format_exception(refused.value))
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MM_GATEWAY__API_KEY", "hunter2-é"),
        ("MM_GATEWAY", "hunter2"),
        ("MM_ALERTS", '{"webhook_url": ["hunter2"]}'),
    ],
)
def test_a_refused_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        load(GatewaySettings)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_every_group_of_every_service_is_known() -> None:
    names = known_names()
    assert {"model", "replay", "learner", "trainer", "search", "selfplay", "environment"} <= names.keys()
    assert "redis_url" in names[""]


@pytest.mark.parametrize(
    "name", ["WINDOW_BARS", "TEMPORAL_FEATURES", "STATIC_FEATURES", "NUM_ACTIONS", "NUM_OUTCOMES"]
)
def test_model_sizes_that_the_data_determine_cannot_be_set(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"MM_MODEL__{name}", "40")
    with pytest.raises(SettingsError, match=rf"model\.{name.lower()} is 40, expected \d+"):
        load(TrainerSettings)


def _groups() -> Iterator[tuple[str, object]]:
    for module in SETTINGS_MODULES:
        for item in vars(importlib.import_module(module)).values():
            if isinstance(item, type) and issubclass(item, ServiceSettings):
                for name, field in item.model_fields.items():
                    group = field.get_default(call_default_factory=True, validated_data={})
                    if dataclasses.is_dataclass(group):
                        yield name, group


@pytest.mark.parametrize(("name", "group"), dict(_groups()).items(), ids=dict(_groups()))
def test_every_setting_of_a_group_has_a_meaning_and_every_number_a_range(name: str, group: object) -> None:
    for setting, value, description in describe_group(group):
        assert description, f"{name}.{setting} has no description"
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert description.endswith(")"), f"{name}.{setting} has no range: {description}"
