"""A process that publishes checkpoints and kills itself at the step of the file system that it is told.

Each line read is a step's number; a fork of this process publishes a version and is gone just before
that step. The line printed says whether it got that far.
"""

import os
import signal
import sys
from pathlib import Path

from shared.adapters.checkpoints import CheckpointStore, Pointer
from tests.shared.adapters.checkpoint_versions import manifest, tensors

#: What Python tells of (`sys.addaudithook`) when files are made, written to, moved and removed.
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}

#: Versions kept.
KEPT = 2


def publish(root: Path) -> None:
    """Save one more version, point at it and remove the oldest."""
    store = CheckpointStore(root)
    version = store.versions()[-1] + 1
    store.save(manifest(version), tensors(version), tensors(version + 1))
    store.point(Pointer.LATEST, version)
    store.collect_garbage(keep=KEPT)


def killed_at(step: int, root: Path) -> bool:
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
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    for line in sys.stdin:
        print(int(killed_at(int(line), Path(sys.argv[1]))), flush=True)
