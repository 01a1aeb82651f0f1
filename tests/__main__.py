"""`./run test`: all checks and tests that must pass before a change is merged.

Format, lint and import layers run first because they are quick; all checks run even if one fails. On a fresh
machine the kernels are compiled once before the tests, since otherwise test processes and `up` would compile
the same kernels at the same time. Types are checked meanwhile; both take one core and about a minute.
Arguments are passed to pytest (`./run test -k features`).
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

#: One NumPy thread per process: waiting threads spin, and every core already runs a test process. Bytecode is
#: always cached, because pytest rewrites every test and the tests start hundreds of processes.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "OMP_NUM_THREADS": "1",
}

#: Two processes more than cores, since many tests wait. Each process runs one test file at a time, in order.
PARALLEL = ["-n", str((os.cpu_count() or 1) + 2), "--dist", "loadfile", "--no-loadscope-reorder"]

QUICK: dict[str, list[str]] = {
    "format": [str(BIN / "ruff"), "format", "--check", "."],
    # The cache of ruff does not notice added or removed modules.
    "lint": [str(BIN / "ruff"), "check", "--no-cache", "."],
    "import layers": [str(BIN / "lint-imports")],
}

TYPES = [str(BIN / "mypy")]
KERNELS = [sys.executable, "-m", "cli.main", "compile"]


def main() -> int:
    """Run all checks and tests; returns 1 if any of them failed."""
    failed = []

    def report(name: str, status: int, started: float) -> None:
        if status != 0:
            failed.append(name)
        print(f"== {name}: {'FAILED' if status else 'ok'} ({time.monotonic() - started:.0f} s)", flush=True)

    def run(name: str, command: list[str]) -> None:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        report(name, subprocess.run(command, cwd=ROOT, env=ENVIRONMENT).returncode, started)

    for name, command in QUICK.items():
        run(name, command)
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        with subprocess.Popen(TYPES, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output) as types:
            if not COMPILED_MARK.is_file():
                run("kernels", KERNELS)
        output.seek(0)
        print(output.read(), end="")
        report("types", types.returncode, started)
    run("tests", [sys.executable, "-m", "pytest", *PARALLEL, *sys.argv[1:]])
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
