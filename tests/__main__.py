"""Everything that must hold before a change lands: `./run test`.

Format, lint and import layers run first because they are quick; a failure of one does not hide the others.
Types are checked while the kernels are compiled: each takes a core for a minute on a fresh machine. Without
that, test processes and `up` would each compile the same kernels at the same time.
Arguments go to pytest (`./run test -k features`).
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared.numeric import COMPILED_MARK

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

#: NumPy's threads spin while they wait, and every core has a test process.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

#: Two processes more than cores, since many tests wait. Each takes a file of tests at a time, in order.
PARALLEL = ["-n", str((os.cpu_count() or 1) + 2), "--dist", "loadfile", "--no-loadscope-reorder"]

QUICK: dict[str, list[str]] = {
    "format": [str(BIN / "ruff"), "format", "--check", "."],
    "lint": [str(BIN / "ruff"), "check", "--no-cache", "."],  # its cache misses that a module came or went
    "import layers": [str(BIN / "lint-imports")],
}

TYPES = [str(BIN / "mypy")]
KERNELS = [sys.executable, "-m", "cli.main", "compile"]


def main() -> int:
    """Run every check and the tests; return 1 when anything failed."""
    failed = []

    def tell(name: str, status: int, started: float) -> None:
        if status != 0:
            failed.append(name)
        print(f"== {name}: {'FAILED' if status else 'ok'} ({time.monotonic() - started:.0f} s)", flush=True)

    def run(name: str, command: list[str]) -> None:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        tell(name, subprocess.run(command, cwd=ROOT, env=ONE_THREAD).returncode, started)

    for name, command in QUICK.items():
        run(name, command)
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        with subprocess.Popen(TYPES, cwd=ROOT, stdout=output, stderr=output) as types:
            if not COMPILED_MARK.is_file():
                run("kernels", KERNELS)
        output.seek(0)
        print(output.read(), end="")
        tell("types", types.returncode, started)
    run("tests", [sys.executable, "-m", "pytest", *PARALLEL, *sys.argv[1:]])
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
