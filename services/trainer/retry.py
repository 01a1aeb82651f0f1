"""How the trainer waits while the disk or the checkpoint store fails."""

import structlog

from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

#: Wait before a failed disk or store operation is tried again.
RETRY_SECONDS = 5.0


async def wait_to_retry(event: str, failure: Exception, lifecycle: Lifecycle) -> bool:
    """Log a failure and wait for the next attempt; return False if the service is asked to stop."""
    log.error(event, error=str(failure), retry_seconds=RETRY_SECONDS)
    await lifecycle.sleep(RETRY_SECONDS)
    return not lifecycle.stopping.is_set()
