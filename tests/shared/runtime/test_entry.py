"""The way into a service: what a signal does before the service has begun."""

import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

IMPORTING = """
import signal, sys, time
from shared.runtime.entry import service_main
from shared.runtime.settings import ServiceSettings

signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts background jobs

def compose(settings):
    print("importing", flush=True)
    time.sleep(600)

sys.exit(service_main("probe", ServiceSettings, compose, []))
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_service_that_still_imports_ends_at_once_and_without_a_traceback(
    signum: signal.Signals, status: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", IMPORTING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "importing\n"
            process.send_signal(signum)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == status
    assert errors == ""


def test_heavy_imports_come_after_help_and_before_the_service_begins() -> None:
    program = """
import sys
from services.selfplay import __main__ as selfplay, settings as selfplay_settings
from services.validator import __main__ as validator, settings as validator_settings
from services.trainer import __main__ as trainer, settings as trainer_settings

def heavy():
    return {name for name in sys.modules if name in WANTED}

WANTED = {"torch", *(f"services.{name}.service" for name in ("selfplay", "validator", "trainer"))}
assert not heavy(), heavy()
selfplay.compose(selfplay_settings.SelfPlaySettings.model_construct())
validator.compose(validator_settings.ValidatorSettings.model_construct())
assert heavy() == {"services.selfplay.service", "services.validator.service"}, heavy()
trainer.compose(trainer_settings.TrainerSettings.model_construct())
assert heavy() == WANTED, heavy()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=300)
