"""Which broker a mode trades at, and what real money asks for first."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from services.trader.config import Mode, TraderConfig
from shared.adapters.oanda.client import LIVE_API, LIVE_STREAM, PRACTICE_API, PRACTICE_STREAM
from shared.adapters.oanda.records import InstrumentDetails
from shared.adapters.versions.agents import trained_instrument
from shared.adapters.versions.manifest import Manifest, Pointed
from shared.errors import BrokerError, SettingsError
from shared.market.bar import Instrument, normal_name

_OANDA_DOMAIN = "oanda.com"

#: The paper broker's own default, which local runs replace by a secret of theirs.
PAPER_TOKEN = "paper"  # noqa: S105


@dataclass(frozen=True)
class Venue:
    """Where requests go, and with what token."""

    api_url: str
    stream_url: str
    token: str


def rest_url(mode: Mode, config: TraderConfig) -> str:
    """Where the requests of a mode go."""
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
        config: the trader's.
        token: OANDA_TOKEN, empty when unset.
        account: OANDA_ACCOUNT, empty when unset.
        promoted: where the store's `promoted` pointer stands; looked at for live only.
        may_hold: a position may be open. Live then begins without a version promoted to live, to manage the
            exit; a guard forbids entries.
    Raises:
        SettingsError: something that the mode asks for is missing; says what.
    """
    if mode is Mode.PAPER:
        host = urlsplit(config.broker_url).hostname or ""
        if host == _OANDA_DOMAIN or host.endswith(f".{_OANDA_DOMAIN}"):
            raise SettingsError(
                f"MM_TRADER__BROKER_URL is {config.broker_url} in paper mode: "
                "set TRADER_MODE to practice or live to trade at OANDA"
            )
        return Venue(rest_url(mode, config), config.broker_url, token or PAPER_TOKEN)
    if config.trade_unproven:
        raise SettingsError(
            f"MM_TRADER__TRADE_UNPROVEN is true in mode {mode}: a version that passed no gate may be traded "
            "in paper mode only"
        )
    for name, value in (("OANDA_TOKEN", token), ("OANDA_ACCOUNT", account)):
        if not value:
            raise SettingsError(f"{name} is not set: mode {mode} needs it")
    if mode is Mode.PRACTICE:
        return Venue(rest_url(mode, config), PRACTICE_STREAM, token)
    if config.live_confirmation != account:
        raise SettingsError(
            "mode live trades real money: MM_TRADER__LIVE_CONFIRMATION must be the account id "
            f"that OANDA_ACCOUNT is, it is {config.live_confirmation!r}"
        )
    if not config.stop_loss_pips and not config.live_without_stop:
        raise SettingsError(
            "mode live sends a stop with every entry and MM_TRADER__STOP_LOSS_PIPS is 0: set it above 0, or "
            "set MM_TRADER__LIVE_WITHOUT_STOP to true to trade real money without a stop"
        )
    if not may_hold and (promoted is None or promoted.stage != "live"):
        have = (
            f"version {promoted.version} is promoted to {promoted.stage}" if promoted else "none is promoted"
        )
        raise SettingsError(
            f"mode live needs a version that passed the live gate, {have}: "
            "promote one with `checkpoints promote VERSION --stage live`"
        )
    return Venue(rest_url(mode, config), LIVE_STREAM, token)


def chosen_instrument(offered: Sequence[InstrumentDetails], name: str, url: str) -> Instrument:
    """The instrument to trade, with the broker's pip.

    Args:
        offered: what the account can trade.
        name: as the setting has it; empty takes the only one offered.
        url: of the broker, for the error.
    Raises:
        BrokerError: nothing is offered, which no setting could change.
        SettingsError: it is not offered, or several are and none is named.
    """
    if not offered:
        raise BrokerError(f"the broker at {url} names no instrument that the account can trade")
    wanted = name and normal_name(name)
    matching = [one for one in offered if wanted in ("", one.name)]
    names = ", ".join(one.name for one in offered[:5]) + (", ..." if len(offered) > 5 else "")
    if not matching:
        raise SettingsError(
            f"MM_TRADER__INSTRUMENT is {name}, but the broker at {url} trades {names}: set it to what is "
            "traded there, or unset it where that is a single instrument"
        )
    if len(matching) > 1:
        raise SettingsError(
            f"MM_TRADER__INSTRUMENT is not set and the broker at {url} trades {len(offered)} instruments: "
            "set it to the one that the promoted version was trained on"
        )
    return Instrument(matching[0].name, matching[0].pip_location)


def require_trained_on(manifest: Manifest, instrument: Instrument) -> None:
    """Check that a version was trained on the instrument that is traded.

    Raises:
        SettingsError: it was trained on another one, or with another pip.
        CheckpointError: the manifest is damaged.
    """
    trained_on = trained_instrument(manifest)
    if trained_on not in (None, instrument):
        raise SettingsError(
            f"version {manifest.version} was trained on {trained_on.name} with a pip of {trained_on.pip:g}, "
            f"but the trader is to trade {instrument.name} with a pip of {instrument.pip:g}: set "
            "MM_TRADER__INSTRUMENT to the former, or promote a version of the latter"
        )
