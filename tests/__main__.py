"""Everything that must hold before a change lands: `./run test`.

Format, lint and import layers run first because they are quick; a failure of one does not hide the others.
Types are checked while the tests run, and told of after them.
Arguments go to pytest (`./run test -k features`).
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

#: A process per core, a file of tests at a time, in the order of collection.
PARALLEL = ["-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]

QUICK: dict[str, list[str]] = {
    "format": [str(BIN / "ruff"), "format", "--check", "."],
    "lint": [str(BIN / "ruff"), "check", "--no-cache", "."],  # its cache misses that a module came or went
    "import layers": [str(BIN / "lint-imports")],
}

TYPES = [str(BIN / "mypy")]


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
        tell(name, subprocess.run(command, cwd=ROOT).returncode, started)

    for name, command in QUICK.items():
        run(name, command)
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        with subprocess.Popen(TYPES, cwd=ROOT, stdout=output, stderr=output) as types:
            run("tests", [sys.executable, "-m", "pytest", *PARALLEL, *sys.argv[1:]])
        output.seek(0)
        print(output.read(), end="")
        tell("types", types.returncode, started)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
