"""What a C expression means: its types and conversions, on numbers of a stopped guest or in words for GDB.

Source: ISO/IEC 9899:2018, 6.3.1.8 (the usual conversions) and 6.5; sizes and signs of arm64 Linux (AAPCS64).
More is allowed than in C: a number may be dereferenced (`*0xffff…` has 8 bytes), pointers take part in & | ^.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ptinspect.arch.bits import MASK64
from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import KernelFileError, PtinspectError, UserError
from ptinspect.guest.expressions import c_tree as c
from ptinspect.linux.image.c_types import CHAR as CHARACTER
from ptinspect.linux.image.c_types import INT, LONG, UINT, ULONG, CType, CTypes, array_of, pointer_to

Word = int | str
"""A number, or what GDB calls one that is known only when the guest has stopped."""


@dataclass(frozen=True)
class Variable:
    """A variable of the kernel's."""

    type: CType
    address: int
    """Where it lies."""
    physical: bool
    """That is a physical address: it is not known yet where the kernel runs."""


class Scope(Protocol):
    """What an expression may ask of the guest. All raise PtinspectError for what is not known."""

    @property
    def types(self) -> CTypes:
        """The types, of the kernel's too if it tells them."""
        ...

    def symbol(self, name: str) -> int:
        """Return the address of a symbol."""
        ...

    def physical(self, name: str) -> int:
        """Return where a symbol lies in physical memory."""
        ...

    def variable(self, name: str) -> Variable | None:
        """Return a variable; None for a symbol whose type is not known."""
        ...

    def register(self, name: str) -> int:
        """Return a register of the chosen CPU, unsigned."""
        ...

    def spelling(self, name: str) -> str:
        """Return how GDB spells a register."""
        ...

    def task(self) -> int:
        """Return the address of the task that the chosen CPU runs."""
        ...

    def read(self, address: int, length: int, *, physical: bool) -> bytes:
        """Return what memory holds."""
        ...


class Machine(Protocol):
    """Do what an expression does with words that have a type already."""

    def register(self, name: str, type: CType) -> Word:
        """Return a register."""
        ...

    def task(self) -> Word:
        """Return the address of the task that runs."""
        ...

    def load(self, address: Word, type: CType, *, physical: bool) -> Word:
        """Return the integer of this type at an address."""
        ...

    def convert(self, value: Word, type: CType) -> Word:
        """Return a value as one of this type."""
        ...

    def binary(self, sign: str, left: Word, right: Word, type: CType) -> Word:
        """Return what an operator makes of two values of one type (of a shift: the left one's)."""
        ...

    def choose(self, condition: Word, yes: Callable[[], Word], no: Callable[[], Word]) -> Word:
        """Return one of two values, and look at no other."""
        ...


@dataclass(frozen=True)
class Operand:
    """What a part of an expression stands for."""

    type: CType
    value: Word | None = None
    """Of a scalar that lies nowhere, or of a pointer to an array or function: its address."""
    address: Word | None = None
    """Where it lies; None for what is only a value."""
    physical: bool = False
    """The address is a physical one; of a value: what it leads to is there."""
    shift: int = 0
    bits: int = 0
    """Of a bit field: its lowest bit, counted from the address, and its width."""


class Evaluator:
    """Find out what an expression stands for."""

    def __init__(self, scope: Scope, machine: Machine) -> None:
        self._scope, self._machine = scope, machine

    # -- values ---------------------------------------------------------------------------------

    def value(self, operand: Operand) -> Word:
        """Return the one value of an operand: of an array or function its address. Raises UserError."""
        if operand.type.kind in ("array", "function"):
            return self._where(operand)
        if not operand.type.scalar:
            raise UserError(
                f"{operand.type.name} has no one value", "a member: EXPR.NAME; ptype EXPR lists them"
            )
        if operand.address is None:
            assert operand.value is not None
            return operand.value
        if not operand.bits:
            return self._machine.load(operand.address, operand.type, physical=operand.physical)
        return self._bit_field(operand)

    def _bit_field(self, field: Operand) -> Word:
        assert field.address is not None
        at, shift = self._machine.binary("+", field.address, field.shift // 64 * 8, ULONG), field.shift % 64
        if shift + field.bits > 64:
            raise UserError("a bit field that crosses 8 bytes is not read")
        word = self._machine.load(at, ULONG, physical=field.physical)
        kind = LONG if field.type.signed else ULONG
        up = self._machine.binary("<<", word, 64 - shift - field.bits, ULONG)
        return self._machine.convert(
            self._machine.binary(">>", self._machine.convert(up, kind), 64 - field.bits, kind), field.type
        )

    def _where(self, operand: Operand) -> Word:
        found = operand.value if operand.address is None else operand.address
        assert found is not None
        return found

    def _number(self, operand: Operand) -> tuple[Word, CType]:
        """Return a value after the integer promotions (6.3.1.1), and its type."""
        value, kind = self.value(operand), operand.type
        if kind.kind in ("array", "function", "pointer"):
            return value, ULONG
        if kind.size < 4 or (operand.bits and operand.bits < 32):
            return value, INT
        plain = {(4, True): INT, (4, False): UINT, (8, True): LONG, (8, False): ULONG}
        return value, plain.get((kind.size, kind.signed), kind)

    def truth(self, operand: Operand) -> Word:
        """Return 1 for what is not 0, else 0."""
        value, kind = self._number(operand)
        return self._machine.binary("!=", value, 0, kind)

    # -- nodes ----------------------------------------------------------------------------------

    def operand(self, node: c.Node) -> Operand:
        """Return what a tree stands for. Raises PtinspectError."""
        handler: Callable[[Evaluator, c.Node], Operand] = _HANDLERS[type(node)]
        return handler(self, node)

    def of_number(self, node: c.Number) -> Operand:
        """Give a constant the first type that holds it (6.4.4.1)."""
        if node.suffix == "c":
            return Operand(CHARACTER, node.value)
        if node.value > MASK64:
            raise UserError(f"{node.value:#x} has more than 64 bits")
        kinds = [kind for kind in (INT, UINT, LONG, ULONG) if kind.size == 8 or "l" not in node.suffix]
        kinds = [kind for kind in kinds if not (kind.signed and "u" in node.suffix)]
        if node.decimal and "u" not in node.suffix:
            kinds = [kind for kind in kinds if kind.signed]
        for kind in kinds:
            if node.value < 1 << (8 * kind.size - kind.signed):
                return Operand(kind, node.value)
        return Operand(ULONG, node.value)

    def of_name(self, node: c.Name) -> Operand:
        """Find a variable, a symbol, or a constant of an enum."""
        try:
            known = self._scope.variable(node.text)
            if known is not None:
                return Operand(known.type, address=known.address, physical=known.physical)
            return Operand(ULONG, self._scope.symbol(node.text))
        except KernelFileError:
            constant = self._scope.types.constant(node.text)
            if constant is None:
                raise
            return Operand(self.of_number(c.Number(abs(constant))).type, constant)

    def of_register(self, node: c.Register) -> Operand:
        """Read a register: w0 has 32 bits, $current is the task that runs."""
        if node.text == "current":
            return Operand(
                pointer_to(self._scope.types.named(("struct", "task_struct"))), self._machine.task()
            )
        low = node.text.lower()
        kind = INT if low[:1] == "w" and low[1:].isdigit() else LONG
        if low in ("sp", "pc", "fp", "lr"):
            kind = ULONG
        return Operand(kind, self._machine.register(node.text, kind))

    def of_physical(self, node: c.Physical) -> Operand:
        """Take an address as a physical one."""
        if isinstance(node.of, c.Name):
            return Operand(ULONG, self._scope.physical(node.of.text), physical=True)
        value, _ = self._number(self.operand(node.of))
        return Operand(ULONG, self._machine.convert(value, ULONG), physical=True)

    def of_unary(self, node: c.Unary) -> Operand:
        """Apply an operator to one operand (6.5.3)."""
        operand = self.operand(node.of)
        if node.sign == "*":
            return self._deref(operand)
        if node.sign == "&":
            return self._address_of(operand)
        if node.sign == "!":
            return Operand(INT, self._machine.binary("==", self.truth(operand), 0, INT))
        value, kind = self._number(operand)
        if node.sign == "+":
            return Operand(kind, value)
        if node.sign == "-":
            return Operand(kind, self._machine.binary("-", 0, value, kind))
        return Operand(kind, self._machine.binary("^", value, self._machine.convert(-1, kind), kind))

    def _deref(self, operand: Operand) -> Operand:
        value, kind = self.value(operand), operand.type
        target = self._scope.types.target(kind) if kind.kind in ("pointer", "array") else ULONG
        if kind.kind == "pointer" and target.kind in ("void", "function"):
            raise UserError(f"what {kind.name} leads to has no size", "cast it first: *(TYPE *) EXPR")
        return Operand(target, address=self._machine.convert(value, ULONG), physical=operand.physical)

    def _address_of(self, operand: Operand) -> Operand:
        if operand.bits:
            raise UserError("a bit field has no address")
        if operand.address is None:
            if operand.type is ULONG and operand.value is not None:  # a symbol is its address already
                return operand
            raise UserError("only what lies in memory has an address", "&NAME, &EXPR->MEMBER")
        return Operand(pointer_to(operand.type), operand.address, physical=operand.physical)

    def of_binary(self, node: c.Binary) -> Operand:
        """Apply an operator to two operands (6.5.5 to 6.5.14)."""
        if node.sign in ("&&", "||"):
            return self._logic(node)
        left, right = self._in_sums(self.operand(node.left)), self._in_sums(self.operand(node.right))
        physical = left.physical or right.physical
        step, other = self._step(left), self._step(right)
        if node.sign in ("+", "-") and (step or (other and node.sign == "+")):
            return self._moved(node.sign, left, right, step, other)
        (a, kind_a), (b, kind_b) = self._number(left), self._number(right)
        if node.sign in ("<<", ">>"):
            self._check_shift(node, b, kind_a)
            return Operand(kind_a, self._machine.binary(node.sign, a, b, kind_a), physical=physical)
        kind = common(kind_a, kind_b)
        a, b = self._machine.convert(a, kind), self._machine.convert(b, kind)
        found = self._machine.binary(node.sign, a, b, kind)
        compares = node.sign in ("==", "!=", "<", ">", "<=", ">=")
        return Operand(INT, found) if compares else Operand(kind, found, physical=physical)

    def _in_sums(self, operand: Operand) -> Operand:
        """Let a struct stand for its address, as a symbol does wherever an address is typed."""
        if operand.type.kind in ("struct", "union") and operand.address is not None:
            return Operand(ULONG, operand.address, physical=operand.physical)
        return operand

    def _step(self, operand: Operand) -> int:
        """Return the bytes that adding 1 to a pointer goes on by; 0 for what is no pointer."""
        if operand.type.kind not in ("pointer", "array"):
            return 0
        target = self._scope.types.target(operand.type)
        if target.size == 0 and target.kind not in ("void", "function"):
            raise UserError(f"the size of {target.name} is not known", "cast it to another pointer first")
        return target.size or 1

    def _moved(self, sign: str, left: Operand, right: Operand, step: int, other: int) -> Operand:
        """Add to a pointer, or subtract (6.5.6)."""
        machine, physical = self._machine, left.physical or right.physical
        if step and other:
            if step != other:
                raise UserError(f"{left.type.name} and {right.type.name} lead to things of different sizes")
            gap = machine.binary("-", self.value(left), self.value(right), LONG)
            return Operand(LONG, machine.binary("/", gap, step, LONG))
        pointer, number = (left, right) if step else (right, left)
        count, _ = self._number(number)
        bytes_ = machine.binary("*", machine.convert(count, ULONG), step or other, ULONG)
        found = machine.binary(sign, machine.convert(self.value(pointer), ULONG), bytes_, ULONG)
        kind = pointer.type
        if kind.kind == "array":
            kind = pointer_to(self._scope.types.target(kind))
        return Operand(kind, found, physical=physical)

    def _check_shift(self, node: c.Binary, count: Word, kind: CType) -> None:
        if not isinstance(count, int) or 0 <= count < 8 * kind.size:
            return
        hint = "write 1ul << 40" if kind.size == 4 and 0 <= count < 64 else ""
        raise UserError(f"{node.sign} by {count}: {kind.name} has {8 * kind.size} bits", hint)

    def _logic(self, node: c.Binary) -> Operand:
        left = self.truth(self.operand(node.left))

        def right() -> Word:
            return self.truth(self.operand(node.right))

        either = node.sign == "||"
        return Operand(
            INT,
            self._machine.choose(left, (lambda: 1) if either else right, right if either else (lambda: 0)),
        )

    def of_choice(self, node: c.Choice) -> Operand:
        """Take one of two (6.5.15)."""
        condition = self.truth(self.operand(node.condition))
        if isinstance(condition, int):
            return self.operand(node.yes if condition else node.no)
        (yes, kind_yes), (no, kind_no) = (self._number(self.operand(each)) for each in (node.yes, node.no))
        kind = common(kind_yes, kind_no)
        return Operand(kind, self._machine.choose(
            condition, lambda: self._machine.convert(yes, kind), lambda: self._machine.convert(no, kind)
        ))  # fmt: skip

    def of_cast(self, node: c.Cast) -> Operand:
        """Convert a value (6.5.4)."""
        kind = self.type_of(node.type)
        operand = self._in_sums(self.operand(node.of))
        if kind.kind in ("struct", "union", "array", "function", "void", "float"):
            raise UserError(f"nothing is cast to {kind.name}", f"a pointer: *({kind.name} *) ADDRESS")
        value, _ = self._number(operand)
        return Operand(kind, self._machine.convert(value, kind), physical=operand.physical)

    def of_size(self, node: c.SizeOf) -> Operand:
        """Return the size of a type, or of what an expression has."""
        return Operand(ULONG, self.type_of_either(node.of).size)

    def of_member(self, node: c.Member) -> Operand:
        """Go to a member; `.` and `->` are told apart by what is there."""
        operand = self.operand(node.of)
        kind = operand.type
        if kind.kind == "pointer":
            operand = self._deref(operand)
        elif node.arrow and kind.kind not in ("array", "struct", "union"):
            raise UserError(f"{kind.name} is no pointer to a struct", "((struct NAME *) EXPR)->MEMBER")
        elif kind.kind == "array":
            operand = Operand(
                self._scope.types.target(kind), address=self._where(operand), physical=operand.physical
            )
        field = self._scope.types.field(operand.type, node.name)
        return self.field(operand, field.type, field.offset, field.bits)

    def field(self, of: Operand, type: CType, offset: int, bits: int) -> Operand:
        """Return the part of a struct that lies some bits from its start."""
        base = of.address if of.address is not None else of.value
        assert base is not None
        if bits:
            return Operand(type, address=base, physical=of.physical, shift=offset, bits=bits)
        return Operand(
            type, address=self._machine.binary("+", base, offset // 8, ULONG), physical=of.physical
        )

    def of_index(self, node: c.Index) -> Operand:
        """Go to an element: `A[B]` is `*(A + B)`; a number is as an array of 8 bytes each."""
        operand = self.operand(node.of)
        if operand.type.kind not in ("pointer", "array"):
            operand = replace(self._in_sums(operand), type=pointer_to(ULONG))
        return self._deref(self._moved("+", operand, self.operand(node.index), self._step(operand), 0))

    def of_call(self, node: c.Call) -> Operand:
        """Do what a macro of the kernel's does (linux/stddef.h, linux/container_of.h, linux/bits.h)."""
        wanted = {"offsetof": 2, "container_of": 3, "BIT": 1, "GENMASK": 2}[node.function]
        if len(node.arguments) != wanted:
            raise UserError(f"{node.function}() takes {wanted} arguments")
        if node.function in ("BIT", "GENMASK"):
            bits = [
                self._number(self.operand(each))[0]
                for each in node.arguments
                if not isinstance(each, c.TypeName)
            ]
            high, low = bits[0], bits[-1]
            if not isinstance(high, int) or not isinstance(low, int) or not 0 <= low <= high < 64:
                raise UserError(
                    f"{node.function}() takes numbers of bits, the highest first: GENMASK(47, 12)"
                )
            return Operand(ULONG, (1 << high + 1) - (1 << low))
        kind, member = node.arguments[-2:]
        assert isinstance(kind, c.TypeName) and not isinstance(member, c.TypeName)
        struct = self.type_of(kind)
        found = self._member_of(Operand(struct, address=0), member)
        assert isinstance(found.address, int)
        pointer = node.arguments[0]
        if isinstance(pointer, c.TypeName):
            return Operand(ULONG, found.address)
        value, _ = self._number(self._in_sums(self.operand(pointer)))
        return Operand(pointer_to(struct), self._machine.binary("-", value, found.address, ULONG))

    def _member_of(self, struct: Operand, path: c.Node) -> Operand:
        """Follow `a.b[3].c` from a struct."""
        if isinstance(path, c.Name):
            field = self._scope.types.field(struct.type, path.text)
            return self.field(struct, field.type, field.offset, field.bits)
        if isinstance(path, c.Member) and not path.arrow:
            return self._member_of(self._member_of(struct, path.of), c.Name(path.name))
        if isinstance(path, c.Index) and isinstance(path.index, c.Number):
            array = self._member_of(struct, path.of)
            element = self._scope.types.target(array.type)
            return self.field(array, element, 8 * element.size * path.index.value, 0)
        raise UserError("a member is named by names and elements: a.b[3]")

    # -- types ----------------------------------------------------------------------------------

    def type_of(self, name: c.TypeName) -> CType:
        """Return the type of a name. Raises UserError."""
        found = self._scope.types.named(name.words)
        for _ in range(name.stars):
            found = pointer_to(found)
        for count in reversed(name.counts):
            found = array_of(found, count)
        for _ in range(name.outer_stars):
            found = pointer_to(found)
        return found

    def type_of_either(self, of: c.Node | c.TypeName) -> CType:
        """Return the type of a name, or of what an expression stands for."""
        if isinstance(of, c.TypeName):
            plain = len(of.words) == 1 and not of.stars and not of.counts
            if not plain:
                return self.type_of(of)
            of = c.Name(of.words[0])
        if isinstance(of, c.Name):
            try:
                return self.type_of(c.TypeName((of.text,)))
            except (UserError, KernelFileError) as error:
                try:
                    return self.of_name(of).type
                except PtinspectError:
                    raise error from None
        return self.operand(of).type


def common(left: CType, right: CType) -> CType:
    """Return the type in which two promoted operands are calculated with (6.3.1.8)."""
    if left.size != right.size:
        return left if left.size > right.size else right
    return right if left.signed else left


_HANDLERS: dict[type, Callable[..., Operand]] = {
    c.Number: Evaluator.of_number, c.Name: Evaluator.of_name, c.Register: Evaluator.of_register,
    c.Physical: Evaluator.of_physical, c.Unary: Evaluator.of_unary, c.Binary: Evaluator.of_binary,
    c.Choice: Evaluator.of_choice, c.Cast: Evaluator.of_cast, c.SizeOf: Evaluator.of_size,
    c.Member: Evaluator.of_member, c.Index: Evaluator.of_index, c.Call: Evaluator.of_call,
}  # fmt: skip
