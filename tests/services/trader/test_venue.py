"""The broker of each mode: live mode has the most requirements, and paper mode never reaches OANDA."""

from dataclasses import replace
from decimal import Decimal

import pytest

from services.trader.config import GuardConfig, Mode, TraderConfig
from services.trader.venue import choose_venue, chosen_instrument, require_trained_on
from shared.adapters.oanda.records import InstrumentDetails
from shared.adapters.versions.agents import instrument_settings
from shared.adapters.versions.manifest import Pointed
from shared.errors import BrokerError, SettingsError
from shared.market.bar import Instrument
from tests.shared.adapters.versions.checkpoint_versions import manifest

ACCOUNT = "001-001-1234567-001"
LIVE = Pointed(9, "live", ())


def test_paper_mode_needs_no_settings_and_uses_the_paper_broker() -> None:
    venue = choose_venue(Mode.PAPER, TraderConfig(), token="", account="", promoted=None)
    assert venue.api_url == venue.stream_url == "http://127.0.0.1:8002"


@pytest.mark.parametrize(
    "url", ["https://api-fxtrade.oanda.com", "https://stream-fxpractice.OANDA.com", "http://oanda.com"]
)
def test_paper_never_reaches_oanda(url: str) -> None:
    with pytest.raises(SettingsError, match="TRADER_MODE"):
        choose_venue(Mode.PAPER, TraderConfig(broker_url=url), token="t", account=ACCOUNT, promoted=LIVE)


@pytest.mark.parametrize("mode", [Mode.PRACTICE, Mode.LIVE])
@pytest.mark.parametrize(
    ("token", "account", "missing"), [("", ACCOUNT, "OANDA_TOKEN"), ("t", "", "OANDA_ACCOUNT")]
)
def test_oanda_requires_a_token_and_an_account(mode: Mode, token: str, account: str, missing: str) -> None:
    with pytest.raises(SettingsError, match=missing):
        choose_venue(mode, TraderConfig(), token=token, account=account, promoted=LIVE)


@pytest.mark.parametrize("mode", [Mode.PRACTICE, Mode.LIVE])
def test_an_unproven_version_is_traded_in_paper_mode_only(mode: Mode) -> None:
    config = TraderConfig(trade_unproven=True, live_confirmation=ACCOUNT)
    with pytest.raises(SettingsError, match=f"TRADE_UNPROVEN is true in mode {mode}"):
        choose_venue(mode, config, token="t", account=ACCOUNT, promoted=LIVE)
    choose_venue(Mode.PAPER, config, token="", account="", promoted=None)


def test_practice_uses_the_practice_hosts() -> None:
    venue = choose_venue(Mode.PRACTICE, TraderConfig(), token="t", account=ACCOUNT, promoted=None)
    assert "fxpractice" in venue.api_url
    assert "fxpractice" in venue.stream_url


@pytest.mark.parametrize(
    ("confirmation", "promoted", "missing"),
    [
        ("", LIVE, "LIVE_CONFIRMATION"),
        ("yes", LIVE, "LIVE_CONFIRMATION"),
        (ACCOUNT, None, "no version is promoted"),
        (ACCOUNT, Pointed(9, "paper", ()), "version 9 is promoted to paper"),
    ],
)
def test_live_requires_a_confirmation_and_a_live_version(
    confirmation: str, promoted: Pointed | None, missing: str
) -> None:
    config = TraderConfig(live_confirmation=confirmation)
    with pytest.raises(SettingsError, match=missing):
        choose_venue(Mode.LIVE, config, token="t", account=ACCOUNT, promoted=promoted)


def test_live_uses_the_live_hosts() -> None:
    config = TraderConfig(live_confirmation=ACCOUNT)
    venue = choose_venue(Mode.LIVE, config, token="t", account=ACCOUNT, promoted=LIVE)
    assert venue.api_url == "https://api-fxtrade.oanda.com"
    assert venue.stream_url == "https://stream-fxtrade.oanda.com"


def test_entries_have_a_stop_and_live_requires_one() -> None:
    assert TraderConfig().stop_loss_pips > 0
    bare = TraderConfig(live_confirmation=ACCOUNT, stop_loss_pips=0.0)
    with pytest.raises(SettingsError, match="STOP_LOSS_PIPS is 0"):
        choose_venue(Mode.LIVE, bare, token="t", account=ACCOUNT, promoted=LIVE)
    choose_venue(Mode.PRACTICE, bare, token="t", account=ACCOUNT, promoted=None)
    meant = replace(bare, live_without_stop=True)
    assert choose_venue(Mode.LIVE, meant, token="t", account=ACCOUNT, promoted=LIVE).token == "t"


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        (TraderConfig, "units", 0),
        (TraderConfig, "history_bars", 150),
        (TraderConfig, "broker_url", "localhost"),
        (TraderConfig, "stop_loss_pips", -1.0),
        (TraderConfig, "lease_seconds", 0.0),
        (TraderConfig, "flatten_retry_max_seconds", 0.5),
        (TraderConfig, "inference_deadline_ms", float("nan")),
        (GuardConfig, "max_spread_pips", 0.0),
        (GuardConfig, "daily_loss_pips", float("nan")),
        (GuardConfig, "max_rejects", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(group: type, name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        group(**{name: value})


def offered(*names: str) -> list[InstrumentDetails]:
    return [InstrumentDetails(name, -1, 2, 0, Decimal(1)) for name in names]


def test_the_instrument_and_its_pip_come_from_the_broker() -> None:
    gold = Instrument("XAU_USD", -1)
    assert chosen_instrument(offered("XAU_USD"), "", "url") == gold
    with pytest.raises(BrokerError, match="offers no instrument"):  # retried: no setting is wrong
        chosen_instrument([], "", "url")
    assert chosen_instrument(offered("EUR_USD", "XAU_USD"), "xau_usd", "url") == gold
    with pytest.raises(SettingsError, match=r"INSTRUMENT is GBP_JPY, but .* trades EUR_USD, XAU_USD"):
        chosen_instrument(offered("EUR_USD", "XAU_USD"), "GBP_JPY", "url")
    with pytest.raises(SettingsError, match=r"INSTRUMENT is not set, but .* trades 2 instruments"):
        chosen_instrument(offered("EUR_USD", "XAU_USD"), "", "url")


def test_a_version_is_not_traded_on_another_instrument_or_pip() -> None:
    gold = Instrument("XAU_USD", -1)
    trained = manifest(9).model_copy(update={"settings": instrument_settings(gold)})
    require_trained_on(trained, gold)
    require_trained_on(manifest(9), gold)  # an earlier release did not record the instrument
    for other in (Instrument("GBP_JPY", -2), Instrument("XAU_USD", -2)):
        with pytest.raises(
            SettingsError, match=rf"version 9 was trained on XAU_USD .*would trade {other.name}"
        ):
            require_trained_on(trained, other)
