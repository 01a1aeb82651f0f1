"""A process that publishes checkpoints from forks that are killed on request.

Each line of stdin is one request. `N`: a fork publishes a version and kills itself just before file system
step N. `after S`: a fork publishes a version and is killed from outside after S seconds. The answer is 1 if
the fork was killed before it finished, otherwise 0.
"""

import os
import signal
import sys
import time
from pathlib import Path

from shared.adapters.versions.manifest import Pointer
from shared.adapters.versions.store import CheckpointStore
from tests.shared.adapters.versions.checkpoint_versions import manifest, tensors

#: Audit events of Python (`sys.addaudithook`) for creating, writing, moving and removing files.
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}

NUM_KEPT_VERSIONS = 2


def publish(root: Path | str) -> None:
    """Save one more version, set the pointer to it and remove the oldest version."""
    store = CheckpointStore(root)
    version = store.versions()[-1] + 1
    store.save(manifest(version), tensors(version), tensors(version + 1))
    store.point(Pointer.LATEST, version)
    store.collect_garbage(keep=NUM_KEPT_VERSIONS)


def killed_at(step: int, root: Path | str) -> bool:
    """Publish in a fork that kills itself before a step; False if it finished before that step."""
    child = os.fork()
    if child == 0:
        steps_left = step

        def count(event: str, _: object) -> None:
            nonlocal steps_left
            if event in STEPS:
                steps_left -= 1
                if steps_left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        publish(root)
        os._exit(0)
    return _was_killed(child)


def killed_after(seconds: float, root: Path | str) -> bool:
    """Publish in a fork that is killed after some time; False if it finished before."""
    child = os.fork()
    if child == 0:
        publish(root)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return _was_killed(child)


def _was_killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    root = sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1])
    for line in sys.stdin:
        after, _, number = line.strip().rpartition(" ")
        killed = killed_after(float(number), root) if after else killed_at(int(number), root)
        print(int(killed), flush=True)
