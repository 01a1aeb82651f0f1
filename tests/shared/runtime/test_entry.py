"""The command line of a service: signals before it has started, and late imports."""

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
def test_a_signal_during_the_imports_exits_at_once_without_a_traceback(
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


def test_slow_modules_are_imported_by_compose_and_not_before() -> None:
    program = """
import sys
from services.selfplay import __main__ as selfplay, settings as selfplay_settings
from services.validator import __main__ as validator, settings as validator_settings
from services.trainer import __main__ as trainer, settings as trainer_settings

def imported():
    return {name for name in sys.modules if name in WANTED}

WANTED = {"torch", *(f"services.{name}.service" for name in ("selfplay", "validator", "trainer"))}
assert not imported(), imported()
selfplay.compose(selfplay_settings.SelfPlaySettings.model_construct())
validator.compose(validator_settings.ValidatorSettings.model_construct())
assert imported() == {"services.selfplay.service", "services.validator.service"}, imported()
trainer.compose(trainer_settings.TrainerSettings.model_construct())
assert imported() == WANTED, imported()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=300)
