"""The broker of each mode, and the checks before the trader may use real money."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from services.trader.config import Mode, TraderConfig
from shared.adapters.oanda.client import LIVE_API, LIVE_STREAM, PRACTICE_API, PRACTICE_STREAM
from shared.adapters.oanda.records import InstrumentDetails
from shared.adapters.versions.agents import trained_instrument
from shared.adapters.versions.manifest import Manifest, Pointed
from shared.errors import BrokerError, SettingsError
from shared.market.bar import Instrument, normalized_name

_OANDA_DOMAIN = "oanda.com"

#: Default token of the paper broker; local runs replace it by a generated secret.
PAPER_TOKEN = "paper"  # noqa: S105


@dataclass(frozen=True)
class Venue:
    """URLs and token of a broker."""

    api_url: str
    stream_url: str
    token: str


def rest_url(mode: Mode, config: TraderConfig) -> str:
    """Base URL of the REST API in a mode."""
    return {Mode.PAPER: config.broker_url, Mode.PRACTICE: PRACTICE_API, Mode.LIVE: LIVE_API}[mode]


def choose_venue(
    mode: Mode,
    config: TraderConfig,
    *,
    token: str,
    account: str,
    promoted: Pointed | None,
    may_hold: bool = False,
) -> Venue:
    """The venue of a mode.

    Args:
        mode: paper, practice or live.
        config: settings of the trader.
        token: OANDA_TOKEN, empty when unset.
        account: OANDA_ACCOUNT, empty when unset.
        promoted: the store's `promoted` pointer; used for live only.
        may_hold: a position may be open. The live trader then requires no version promoted to live, so that
            it can exit; a guard forbids entries.
    Raises:
        SettingsError: a setting that the mode requires is missing or wrong.
    """
    if mode is Mode.PAPER:
        host = urlsplit(config.broker_url).hostname or ""
        if host == _OANDA_DOMAIN or host.endswith(f".{_OANDA_DOMAIN}"):
            raise SettingsError(
                f"MM_TRADER__BROKER_URL is {config.broker_url}, but paper mode must not trade at OANDA: set "
                "the URL of a paper broker, or set TRADER_MODE to practice or live"
            )
        return Venue(rest_url(mode, config), config.broker_url, token or PAPER_TOKEN)
    if config.trade_unproven:
        raise SettingsError(
            f"MM_TRADER__TRADE_UNPROVEN is true in mode {mode}: unset it; only paper mode may trade a "
            "version that passed no gate"
        )
    for name, value in (("OANDA_TOKEN", token), ("OANDA_ACCOUNT", account)):
        if not value:
            raise SettingsError(f"{name} is not set: mode {mode} requires it")
    if mode is Mode.PRACTICE:
        return Venue(rest_url(mode, config), PRACTICE_STREAM, token)
    if config.live_confirmation != account:
        raise SettingsError(
            "mode live trades real money: to confirm, set MM_TRADER__LIVE_CONFIRMATION, now "
            f"{config.live_confirmation!r}, to the account id in OANDA_ACCOUNT"
        )
    if not config.stop_loss_pips and not config.live_without_stop:
        raise SettingsError(
            "MM_TRADER__STOP_LOSS_PIPS is 0, but mode live requires a stop with every entry: set it above 0, "
            "or set MM_TRADER__LIVE_WITHOUT_STOP to true to trade real money without a stop"
        )
    if not may_hold and (promoted is None or promoted.stage != "live"):
        have = (
            f"version {promoted.version} is promoted to {promoted.stage}"
            if promoted
            else "no version is promoted"
        )
        raise SettingsError(
            f"mode live requires a version promoted to live, but {have}: "
            "promote one with `checkpoints promote VERSION --stage live`"
        )
    return Venue(rest_url(mode, config), LIVE_STREAM, token)


def chosen_instrument(offered: Sequence[InstrumentDetails], name: str, url: str) -> Instrument:
    """The instrument to trade, with the broker's pip.

    Args:
        offered: instruments that the account can trade.
        name: value of the setting; empty selects the only one offered.
        url: URL of the broker, for error texts.
    Raises:
        BrokerError: the broker offers the account no instrument.
        SettingsError: the named instrument is not offered, or several are offered and none is named.
    """
    if not offered:
        raise BrokerError(f"the broker at {url} offers no instrument that the account can trade")
    wanted = name and normalized_name(name)
    matching = [one for one in offered if wanted in ("", one.name)]
    names = ", ".join(one.name for one in offered[:5]) + (", ..." if len(offered) > 5 else "")
    if not matching:
        raise SettingsError(
            f"MM_TRADER__INSTRUMENT is {name}, but the broker at {url} trades {names}: set it to one of "
            "these, or unset it if there is only one"
        )
    if len(matching) > 1:
        raise SettingsError(
            f"MM_TRADER__INSTRUMENT is not set, but the broker at {url} trades {len(offered)} instruments: "
            "set it to the one that the promoted version was trained on"
        )
    return Instrument(matching[0].name, matching[0].pip_location)


def require_trained_on(manifest: Manifest, instrument: Instrument) -> None:
    """Check that a version was trained on the traded instrument.

    Raises:
        SettingsError: the version was trained on another instrument, or with another pip.
        CheckpointError: the manifest is damaged.
    """
    trained_on = trained_instrument(manifest)
    if trained_on not in (None, instrument):
        raise SettingsError(
            f"version {manifest.version} was trained on {trained_on.name} with a pip of {trained_on.pip:g}, "
            f"but the trader would trade {instrument.name} with a pip of {instrument.pip:g}: promote "
            "a version trained on this instrument and pip, or change MM_TRADER__INSTRUMENT"
        )
