"""Everything that must hold before a change lands: `./run test`.

Format, lint, types and import layers run first because they are quick; a failure of one does not
hide the others. Arguments go to pytest (`./run test -k features`).
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

#: A process per core, a file of tests at a time, in the order of collection.
PARALLEL = ["-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]

CHECKS: dict[str, list[str]] = {
    "format": [str(BIN / "ruff"), "format", "--check", "."],
    "lint": [str(BIN / "ruff"), "check", "--no-cache", "."],  # its cache misses that a module came or went
    "types": [str(BIN / "mypy")],
    "import layers": [str(BIN / "lint-imports")],
}


def main() -> int:
    """Run every check, then the tests; return 1 when anything failed."""
    failed = []
    tests = [sys.executable, "-m", "pytest", *PARALLEL, *sys.argv[1:]]
    for name, command in {**CHECKS, "tests": tests}.items():
        print(f"== {name}", flush=True)
        started = time.monotonic()
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            failed.append(name)
        print(
            f"== {name}: {'FAILED' if name in failed else 'ok'} ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
