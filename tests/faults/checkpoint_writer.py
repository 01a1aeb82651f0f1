"""A process that publishes checkpoints and kills itself at the step that it is told, or is killed.

Each line read is one order. A number `N`: a fork of this process publishes a version and is gone just
before step N of the file system. `after S`: it is killed from outside after S seconds, wherever it is then.
The line printed says whether it was killed before it ended.
"""

import os
import signal
import sys
import time
from pathlib import Path

from shared.adapters.versions.manifest import Pointer
from shared.adapters.versions.store import CheckpointStore
from tests.shared.adapters.versions.checkpoint_versions import manifest, tensors

#: What Python tells of (`sys.addaudithook`) when files are made, written to, moved and removed.
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}

#: Versions kept.
KEPT = 2


def publish(root: Path | str) -> None:
    """Save one more version, point at it and remove the oldest."""
    store = CheckpointStore(root)
    version = store.versions()[-1] + 1
    store.save(manifest(version), tensors(version), tensors(version + 1))
    store.point(Pointer.LATEST, version)
    store.collect_garbage(keep=KEPT)


def killed_at(step: int, root: Path | str) -> bool:
    """Publish in a fork that kills itself before a step; False when it ended before."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        publish(root)
        os._exit(0)
    return _was_killed(child)


def killed_after(seconds: float, root: Path | str) -> bool:
    """Publish in a fork that is killed after some time; False when it ended before."""
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
    where = sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1])
    for line in sys.stdin:
        order, _, seconds = line.strip().rpartition(" ")
        killed = killed_after(float(seconds), where) if order else killed_at(int(seconds), where)
        print(int(killed), flush=True)
