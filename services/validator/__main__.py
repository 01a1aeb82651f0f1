"""Composes and runs the validator."""

import asyncio
import sys
from collections.abc import Sequence

from services.validator.settings import ValidatorSettings
from shared.runtime.entry import service_main
from shared.runtime.lifecycle import Lifecycle, Main


def compose(settings: ValidatorSettings) -> Main:
    """Wire the validator to its settings."""
    from services.validator.service import ValidatorService
    from services.validator.storage import Storage
    from services.validator.validation import Standards, Validator
    from shared.adapters.tables.dataset import read_dataset
    from shared.adapters.versions.store import CheckpointStore
    from shared.market.session import Split

    async def run(lifecycle: Lifecycle) -> None:
        standards = Standards(
            environment=settings.environment,
            search=settings.search,
            validation=settings.validation,
            monte_carlo=settings.monte_carlo,
            sizing=settings.sizing,
            gate=settings.gate,
        )

        def prepare() -> Validator:
            return Validator(read_dataset(settings.dataset), Split.VALIDATION, standards)

        validator = await asyncio.to_thread(prepare)
        storage = Storage(
            CheckpointStore(settings.checkpoint_root), settings.validation_root, settings.precision
        )
        await ValidatorService(lifecycle, validator, storage, settings.validation).run()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until asked to stop; return the exit status."""
    return service_main("validator", ValidatorSettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
