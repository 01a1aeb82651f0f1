"""The inner loop of every matrix product: a few rows times two vector registers of columns.

Numba has no vector types, and a scalar loop reaches a fraction of the speed of the processor. So this loop
is written in LLVM instructions. The sums of a tile stay in registers over the full depth, and each step loads
two registers of weights and one number per row. The width of the vectors is that of the processor.

    y[i, j]   = max(floor, table[index[i], j] + Σ_t Σ_k x[i stride + t step + k] w[t depth + k, j])
    out[i, j] = max(floor, y[i, j] + residual[i, j])

The sum of a row always runs over the depth in the same order, so a row has the same bits in any batch.

In bfloat16 a 32-bit word holds two neighbouring numbers of a row, the first one in the low half. One
instruction adds both products to a float32 sum. On processors without that instruction, both halves are
converted to float32 and multiplied separately.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from shared.engine.processor import HAS_BFLOAT16, LANES
from shared.numeric import Float32

#: Width of a tile in registers, and in columns.
REGISTERS = 2
PANEL = REGISTERS * LANES

_FLOAT, _WORD, _HALF, _INDEX = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(64)
_FLOATS, _WORDS, _HALVES = (ir.VectorType(kind, LANES) for kind in (_FLOAT, _WORD, _HALF))


class _BFloats(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """The LLVM type of a bfloat16 vector, which llvmlite lacks."""

    def _to_string(self) -> str:
        return f"<{2 * LANES} x bfloat>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloats)

    def __hash__(self) -> int:
        return hash(_BFloats)


#: Possible numbers of rows in a tile, largest first. More rows are not faster: eight rows already keep the
#: multipliers busy, and the addresses of twelve do not fit into registers. AVX2 needs fewer rows, because it
#: has 16 vector registers instead of 32.
TILE_ROWS = (4, 2, 1) if LANES == 8 else (8, 4, 2, 1)


class Rows(NamedTuple):
    """Rows in a buffer of 32-bit words. Row i starts at `at + i * stride`."""

    buffer: Float32
    at: int
    stride: int


def _tile(
    typing: Any,
    count: Any,
    paired: Any,
    source: Any,
    taps: Any,
    tap_step: Any,
    depth: Any,
    tape: Any,
    weights_at: Any,
    tables_at: Any,
    table_size: Any,
    index: Any,
    floor: Any,
    residual: Any,
    target: Any,
    row: Any,
    column: Any,
    target_paired: Any,
) -> Any:
    """Compute a tile of `count` rows (one of `TILE_ROWS`) and `PANEL` columns, starting at `row`, `column`.

    `source`, `residual` and `target` are `Rows`; a residual with stride 0 is not added. Depth, steps and
    offsets on the tape are in 32-bit words. `floor` is the lower bound of the sums, before and after adding
    the residual. With `target_paired` the tile is written as bfloat16.
    """
    integer = types.int64
    signature = types.int64(
        integer, types.boolean, source, integer, integer, integer, tape, integer, integer, integer, index,
        types.float32, residual, target, integer, integer, types.boolean,
    )  # fmt: skip

    def generate(context: Any, builder: Any, call: Any, values: Sequence[Any]) -> Any:
        def data(kind: Any, array: Any) -> Any:
            return context.make_array(kind)(context, builder, array).data

        def rows(at: int) -> tuple[Any, Any, Any]:
            fields = [builder.extract_value(values[at], field) for field in range(3)]
            return data(call.args[at].types[0], fields[0]), fields[1], fields[2]

        operands = _Operands(
            source=rows(2),
            taps=values[3],
            tap_step=values[4],
            depth=values[5],
            tape=data(call.args[6], values[6]),
            weights_at=values[7],
            tables_at=values[8],
            table_size=values[9],
            index=data(call.args[10], values[10]),
            floor=values[11],
            residual=rows(12),
            target=rows(13),
            row=values[14],
            column=values[15],
            target_paired=values[16],
        )
        end = builder.append_basic_block("tile.end")
        for is_paired in (True, False):
            for size in TILE_ROWS:
                fits = builder.and_(
                    builder.icmp_signed("==", values[0], _int64(size)),
                    builder.icmp_unsigned("==", values[1], ir.Constant(values[1].type, int(is_paired))),
                )
                with builder.if_then(fits):
                    _Emitter(builder, operands, size, paired=is_paired).emit()
                    builder.branch(end)
        builder.branch(end)
        builder.position_at_end(end)
        return values[0]

    return signature, generate


#: Callable only from kernels.
tile: Callable[..., int] = intrinsic(_tile)


@dataclass(frozen=True)
class _Operands:
    """The operands of a tile as LLVM values."""

    source: tuple[Any, Any, Any]  # buffer, offset, stride
    taps: Any
    tap_step: Any
    depth: Any
    tape: Any
    weights_at: Any
    tables_at: Any
    table_size: Any
    index: Any
    floor: Any
    residual: tuple[Any, Any, Any]
    target: tuple[Any, Any, Any]
    row: Any
    column: Any
    target_paired: Any


class _Emitter:
    """Emits the instructions of one tile."""

    def __init__(self, builder: Any, operands: _Operands, rows: int, *, paired: bool) -> None:
        self._builder, self._of, self._rows, self._paired = builder, operands, rows, paired

    def emit(self) -> None:
        """Emit all instructions."""
        sums = self._products(self._tables())
        sums = [[self._bounded(value) for value in row] for row in sums]
        self._finish(self._with_residual(sums))

    def _tables(self) -> list[list[Any]]:
        """Load the bias vector of each row as the initial sums."""
        b, of = self._builder, self._of
        sums = []
        for row in range(self._rows):
            which = b.load(b.gep(of.index, [b.add(of.row, _int64(row))]))
            at = b.add(of.tables_at, b.mul(b.sext(which, _INDEX), of.table_size))
            sums.append(self._vectors(of.tape, at))
        return sums

    def _products(self, start: list[list[Any]]) -> list[list[Any]]:
        """Add the products over all taps and the full depth to the sums."""
        b, of = self._builder, self._of
        x = of.source[0]
        starts = [self._row(of.source, row) for row in range(self._rows)]
        entry = b.block
        outer, inner = b.append_basic_block("tap"), b.append_basic_block("depth")
        onward, end = b.append_basic_block("tap.end"), b.append_basic_block("products.end")
        b.branch(outer)

        b.position_at_end(outer)
        tap = self._counter(entry)
        carried = self._phis()
        shift = b.mul(tap, of.tap_step)
        offsets = [b.add(start, shift) for start in starts]
        weights = b.add(of.weights_at, b.mul(tap, b.mul(of.depth, _int64(PANEL))))
        b.branch(inner)

        b.position_at_end(inner)
        step = self._counter(outer)
        running = self._phis()
        columns = self._vectors(of.tape, b.add(weights, b.mul(step, _int64(PANEL))))
        sums = []
        for row, offset in enumerate(offsets):
            word = b.load(b.gep(x, [b.add(offset, step)]))
            sums.append([self._fused(word, w, s) for w, s in zip(columns, running[row], strict=True)])
        following = b.add(step, _int64(1))
        step.add_incoming(following, inner)
        _feed(running, carried, outer)
        _feed(running, sums, inner)
        b.cbranch(b.icmp_signed("<", following, of.depth), inner, onward)

        b.position_at_end(onward)
        following = b.add(tap, _int64(1))
        tap.add_incoming(following, onward)
        _feed(carried, start, entry)
        _feed(carried, sums, onward)
        b.cbranch(b.icmp_signed("<", following, of.taps), outer, end)
        b.position_at_end(end)
        return sums

    def _with_residual(self, sums: list[list[Any]]) -> list[list[Any]]:
        """Add the residual rows if the stride is not 0."""
        b, of = self._builder, self._of
        entry = b.block
        added, onward = b.append_basic_block("residual"), b.append_basic_block("residual.end")
        b.cbranch(b.icmp_signed("!=", of.residual[2], _int64(0)), added, onward)
        b.position_at_end(added)
        totals = []
        for row, vectors in enumerate(sums):
            residuals = self._vectors(of.residual[0], b.add(self._row(of.residual, row), of.column))
            totals.append([self._bounded(b.fadd(s, r)) for s, r in zip(vectors, residuals, strict=True)])
        b.branch(onward)
        b.position_at_end(onward)
        merged = self._phis()
        _feed(merged, sums, entry)
        _feed(merged, totals, added)
        return merged

    def _finish(self, sums: list[list[Any]]) -> None:
        """Store the tile."""
        b, of = self._builder, self._of
        offsets = [self._row(of.target, row) for row in range(self._rows)]
        with b.if_else(of.target_paired) as (as_halves, as_floats):
            with as_halves:
                halves = b.bitcast(of.target[0], _HALF.as_pointer())
                for offset, row in zip(offsets, sums, strict=True):
                    at = b.add(b.mul(offset, _int64(2)), of.column)
                    self._store(halves, at, [self._rounded(value) for value in row], _HALVES)
            with as_floats:
                for offset, row in zip(offsets, sums, strict=True):
                    self._store(of.target[0], b.add(offset, of.column), row, _FLOATS)

    def _row(self, rows: tuple[Any, Any, Any], row: int) -> Any:
        """The offset of a row of the tile."""
        b = self._builder
        return b.add(rows[1], b.mul(b.add(self._of.row, _int64(row)), rows[2]))

    def _store(self, buffer: Any, at: Any, vectors: Sequence[Any], kind: Any) -> None:
        b = self._builder
        for register, vector in enumerate(vectors):
            to = b.gep(buffer, [b.add(at, _int64(register * LANES))])
            b.store(vector, b.bitcast(to, kind.as_pointer()), align=2)

    def _bounded(self, value: Any) -> Any:
        """The maximum of vector and floor; NaN stays NaN."""
        b = self._builder
        floors = self._spread(self._of.floor)
        return b.select(b.fcmp_unordered("<", floors, value), value, floors)

    def _fused(self, word: Any, weights: Any, total: Any) -> Any:
        """`total + word * weights`; if paired, the sum includes the products of both halves."""
        b = self._builder
        if not self._paired:
            return self._multiplied(self._spread(word), weights, total)
        if HAS_BFLOAT16:
            kind = ir.FunctionType(_FLOATS, [_FLOATS, _BFloats(), _BFloats()])
            dot = self._external("llvm.x86.avx512bf16.dpbf16ps.512", kind)
            spread = b.bitcast(self._spread(word), _BFloats())
            return b.call(dot, [total, spread, b.bitcast(weights, _BFloats())])
        for half in (self._low, self._high):
            total = self._multiplied(half(self._spread(word)), half(weights), total)
        return total

    def _multiplied(self, left: Any, right: Any, total: Any) -> Any:
        b = self._builder
        kind = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS, _FLOATS])
        return b.call(self._external(f"llvm.fma.v{LANES}f32", kind), [left, right, total])

    def _external(self, name: str, kind: Any) -> Any:
        declare: Any = cgutils.get_or_insert_function
        return declare(self._builder.module, kind, name)

    def _low(self, pairs: Any) -> Any:
        b = self._builder
        return b.bitcast(b.shl(b.bitcast(pairs, _WORDS), _words(16)), _FLOATS)

    def _high(self, pairs: Any) -> Any:
        b = self._builder
        return b.bitcast(b.and_(b.bitcast(pairs, _WORDS), _words(0xFFFF0000)), _FLOATS)

    def _rounded(self, value: Any) -> Any:
        """The nearest bfloat16, ties to even."""
        b = self._builder
        bits = b.bitcast(value, _WORDS)
        odd = b.and_(b.lshr(bits, _words(16)), _words(1))
        return b.trunc(b.lshr(b.add(bits, b.add(odd, _words(0x7FFF))), _words(16)), _HALVES)

    def _spread(self, value: Any) -> Any:
        b = self._builder
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = b.insert_element(undefined, value, ir.Constant(_WORD, 0))
        return b.shuffle_vector(first, undefined, _words(0))

    def _vectors(self, array: Any, at: Any) -> list[Any]:
        """Load `PANEL` numbers from an offset."""
        b = self._builder
        return [
            b.load(b.bitcast(b.gep(array, [b.add(at, _int64(r * LANES))]), _FLOATS.as_pointer()), align=4)
            for r in range(REGISTERS)
        ]

    def _phis(self) -> list[list[Any]]:
        return [[self._builder.phi(_FLOATS) for _ in range(REGISTERS)] for _ in range(self._rows)]

    def _counter(self, entry: Any) -> Any:
        counter = self._builder.phi(_INDEX)
        counter.add_incoming(_int64(0), entry)
        return counter


def _feed(phis: Any, values: Any, block: Any) -> None:
    for phi_row, row in zip(phis, values, strict=True):
        for phi, value in zip(phi_row, row, strict=True):
            phi.add_incoming(value, block)


def _int64(value: int) -> Any:
    return ir.Constant(_INDEX, value)


def _words(value: int) -> Any:
    return ir.Constant(_WORDS, [value] * LANES)
