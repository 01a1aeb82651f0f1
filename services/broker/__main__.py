"""`python -m services.broker`: the paper broker in the foreground."""

import sys
from collections.abc import Sequence

from services.broker.service import BrokerService
from services.broker.settings import BrokerSettings
from shared.runtime.entry import service_main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until asked to stop; returns the exit status."""
    return service_main("broker", BrokerSettings, lambda settings: BrokerService(settings).run, arguments)


if __name__ == "__main__":
    sys.exit(main())
