"""Kernels: they sum in order, their cache depends on their sources, and `compile` compiles all of them."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from shared.numeric import Float32, kernel, kernel_digest, reordering_kernel
from tests.conftest import ROOT

_DECORATORS = {"kernel", "reordering_kernel", "parallel_kernel"}

_LISTED = """
import cli.compile
from shared.numeric import KERNELS
print(*KERNELS)
"""


@kernel
def _total(values: Float32) -> np.float32:
    total = np.float32(0.0)
    for i in range(len(values)):
        total += values[i]
    return total


@reordering_kernel
def _total_within(values: Float32) -> np.float32:
    return _total(values)


def test_a_kernel_sums_in_order_even_if_a_reordering_kernel_compiled_it() -> None:
    values = np.random.default_rng(0).normal(size=10_007).astype(np.float32)
    _total_within(values)  # compiles `_total`, too
    assert _total(values) == np.add.accumulate(values)[-1]


def test_a_cache_belongs_to_the_folder_times_and_contents_of_the_kernels(tmp_path: Path) -> None:
    """Numba recompiles a kernel after a change of its file's path or time, not of a kernel that it calls."""
    checkout = tmp_path / "checkout"
    source = checkout / "services" / "trainer" / "module.py"
    source.parent.mkdir(parents=True)
    source.write_text("@kernel\ndef f(): ...\n", encoding="utf-8")
    os.utime(source, ns=(10, 10))
    first = kernel_digest(checkout)

    shutil.copytree(checkout, tmp_path / "clone")
    assert kernel_digest(tmp_path / "clone") != first, "the folder does not count"

    os.utime(source, ns=(10, 11))
    assert kernel_digest(checkout) != first, "the time does not count"

    os.utime(source, ns=(10, 10))
    (source.parent / "other.py").write_text("x = 1\n", encoding="utf-8")
    assert kernel_digest(checkout) == first, "a file without kernels counts"

    source.write_text("@kernel\ndef g(): ...\n", encoding="utf-8")
    os.utime(source, ns=(10, 10))
    assert kernel_digest(checkout) != first, "the contents do not count"


def test_compile_knows_every_kernel_of_the_services() -> None:
    """`compile` itself fails if the cache lacks one of the kernels that it knows."""
    listed = subprocess.run(
        [sys.executable, "-c", _LISTED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(listed.stdout.split()) == {
        f"{path.stem}.{function.name}"
        for folder in ("shared", "services")
        for path in (ROOT / folder).rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id in _DECORATORS for d in function.decorator_list)
    }
