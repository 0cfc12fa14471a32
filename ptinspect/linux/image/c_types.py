"""Types as C has them on arm64 Linux: those of the language, and a kernel's own from its BTF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ptinspect.dataclass import dataclass, replace
from ptinspect.errors import KernelFileError, UserError
from ptinspect.linux.image import btf_kinds as btf
from ptinspect.text import similar

if TYPE_CHECKING:
    from ptinspect.linux.image.btf import BtfTypes, Entry

MOST_QUALIFIERS = 32
MOST_WITHIN = 64
"""Types that a type may be made of, each of the next."""


@dataclass(frozen=True)
class CType:
    """A type."""

    kind: Literal["void", "int", "bool", "float", "enum", "pointer", "array", "struct", "union", "function"]
    name: str
    """As C writes it; empty for an anonymous struct, union or enum."""
    size: int
    """Bytes; 0 where it has none: void, a function, a struct that is only declared."""
    signed: bool = False
    id: int = 0
    """Of the kernel's type; 0 for one of the language."""
    of: CType | int | None = None
    """What a pointer leads to, an array is made of: the type, or the kernel's id of it (0 is void)."""
    count: int = 0
    """Elements of an array."""

    @property
    def scalar(self) -> bool:
        """Whether it has one value."""
        return self.kind in ("int", "bool", "enum", "pointer")

    @property
    def is_text(self) -> bool:
        """Whether it is a character."""
        return self.kind == "int" and self.size == 1 and "char" in self.name.split()


@dataclass(frozen=True)
class Field:
    """A member of a struct or union."""

    name: str
    """Empty for an anonymous struct or union."""
    type: CType
    offset: int
    """Bits from the start of the struct."""
    bits: int
    """Width of a bit field; 0 for others."""


def _int(name: str, size: int, *, signed: bool) -> CType:
    return CType("int", name, size, signed)


VOID = CType("void", "void", 0)
BOOL = CType("bool", "bool", 1)
CHAR = _int("char", 1, signed=False)
"""Unsigned on arm64 (AAPCS64, section 10.1.1)."""
INT, UINT = _int("int", 4, signed=True), _int("unsigned int", 4, signed=False)
LONG, ULONG = _int("long", 8, signed=True), _int("unsigned long", 8, signed=False)
_OF_THE_LANGUAGE = {
    "void": VOID,
    "bool": BOOL,
    "_Bool": BOOL,
    "char": CHAR,
    "signed char": _int("signed char", 1, signed=True),
    "unsigned char": _int("unsigned char", 1, signed=False),
    "short": _int("short", 2, signed=True),
    "unsigned short": _int("unsigned short", 2, signed=False),
    "int": INT,
    "unsigned int": UINT,
    "long": LONG,
    "unsigned long": ULONG,
    "long long": _int("long long", 8, signed=True),
    "unsigned long long": _int("unsigned long long", 8, signed=False),
    "size_t": _int("size_t", 8, signed=False),
    "ssize_t": _int("ssize_t", 8, signed=True),
    "uintptr_t": _int("uintptr_t", 8, signed=False),
    "phys_addr_t": _int("phys_addr_t", 8, signed=False),
    **{f"{u}{8 * n}": _int(f"{u}{8 * n}", n, signed=u == "s") for n in (1, 2, 4, 8) for u in ("u", "s")},
    **{f"__{u}{8 * n}": _int(f"__{u}{8 * n}", n, signed=u == "s") for n in (1, 2, 4, 8) for u in ("u", "s")},
    **{f"int{8 * n}_t": _int(f"int{8 * n}_t", n, signed=True) for n in (1, 2, 4, 8)},
    **{f"uint{8 * n}_t": _int(f"uint{8 * n}_t", n, signed=False) for n in (1, 2, 4, 8)},
}
_QUALIFIERS = (btf.CONST, btf.VOLATILE, btf.RESTRICT, btf.TYPE_TAG, btf.DECL_TAG)
_TAGS = {"struct": (btf.STRUCT,), "union": (btf.UNION,), "enum": (btf.ENUM, btf.ENUM64)}
PLAIN_NAMES = frozenset(_OF_THE_LANGUAGE)
"""Types that need no kernel."""


VARIABLES = {
    "arm64_use_ng_mappings": "bool",  # arch/arm64/kernel/cpufeature.c
    "boot_command_line": "char []",  # init/main.c
    "init_cred": "struct cred",  # kernel/cred.c
    "init_mm": "struct mm_struct",  # mm/init-mm.c
    "init_nsproxy": "struct nsproxy",  # kernel/nsproxy.c
    "init_pid_ns": "struct pid_namespace",  # kernel/pid.c
    "init_task": "struct task_struct",  # init/init_task.c
    "init_user_ns": "struct user_namespace",  # kernel/user.c
    "init_uts_ns": "struct uts_namespace",  # init/version.c
    "jiffies": "unsigned long",  # include/linux/jiffies.h
    "jiffies_64": "u64",  # kernel/time/timer.c
    "kimage_voffset": "u64",  # arch/arm64/mm/mmu.c
    "linux_banner": "char []",  # init/version.c
    "loops_per_jiffy": "unsigned long",  # init/calibrate.c
    "memstart_addr": "s64",  # arch/arm64/mm/init.c
    "nr_cpu_ids": "unsigned int",  # kernel/smp.c
    "oops_in_progress": "int",  # lib/bust_spinlocks.c
    "panic_timeout": "int",  # kernel/panic.c
    "saved_command_line": "char *",  # init/main.c
    "system_state": "enum system_states",  # init/main.c
    "vabits_actual": "u64",  # arch/arm64/mm/mmu.c
}
"""Variables that are asked for and that no BTF describes, as they have been declared since v4.17."""


def pointer_to(target: CType) -> CType:
    """Return the type of a pointer."""
    return CType("pointer", _pointing_to(target.name, "*"), 8, of=target)


def _pointing_to(name: str, stars: str) -> str:
    """Write a pointer to a type of this name: `struct page *`, `char (*)[16]`."""
    first, bracket, rest = name.partition("[")
    if first.endswith("*)"):
        return f"{first[:-1]}{stars}){bracket}{rest}"
    if bracket:
        return f"{first}({stars}){bracket}{rest}"
    return f"{name}{'' if name.endswith('*') else ' '}{stars}"


def array_of(element: CType, count: int) -> CType:
    """Return the type of an array."""
    first, bracket, rest = element.name.partition("[")
    name = f"{first.rstrip()} [{count or ''}]{bracket}{rest}"
    return CType("array", name, element.size * count, of=element, count=count)


def spelt(words: tuple[str, ...]) -> str:
    """Return C's one name for a type of the language: `long unsigned int` is `unsigned long`."""
    left = [word for word in words if word not in ("const", "volatile", "signed", "int", "unsigned")]
    if {"signed", "unsigned", "int"} & set(words) and set(left) <= {"long", "short", "char"}:
        sign = "unsigned " if "unsigned" in words else "signed " if "char" in words else ""
        return sign + (" ".join(left) or "int")
    return " ".join(left)


class CTypes:
    """Types by name; without BTF those of the language alone."""

    def __init__(self, kernel: BtfTypes | None, why: str = "") -> None:
        """`why`: why there are none of a kernel."""
        self._kernel, self._why = kernel, why
        self._made: dict[int, CType] = {}
        self._making: set[int] = set()

    @property
    def _known(self) -> BtfTypes:
        if self._kernel is None:
            from ptinspect.linux.image.image import GET_BTF

            raise KernelFileError(self._why or "the kernel's types are not known", GET_BTF)
        return self._kernel

    def named(self, words: tuple[str, ...]) -> CType:
        """Return the type that words name: `struct page`, `unsigned long`, `pte_t`. Raises UserError."""
        name = spelt(words)
        tag, _, tagged = name.partition(" ")
        if name in _OF_THE_LANGUAGE:
            return _OF_THE_LANGUAGE[name]
        kinds = _TAGS.get(tag, (btf.TYPEDEF, btf.INT, btf.FLOAT)) if tagged or tag not in _TAGS else ()
        wanted = tagged if tag in _TAGS else name
        found = self._known.named(wanted, kinds)
        if found:
            return self.of(found)
        known = [each for kind in kinds for each in self._known.names(kind)]
        other = next((t for t, k in _TAGS.items() if self._known.named(wanted, k)), "")
        close = [f"{tag} {other}" if tagged else other for other in similar(wanted, known, 2)]
        hint = f"did you mean {' or '.join(close)}?" if close else "ptype shows the types that there are"
        raise UserError(f"the kernel has no type {name!r}", f"{other} {wanted}" if other else hint)

    def variable(self, name: str) -> tuple[CType, bool] | None:
        """Return the type of a variable, and whether each CPU has its own; None if it is not known."""
        if self._kernel is None:
            return None
        found = self._kernel.named(name, (btf.VAR,))
        if found:
            each = self._kernel.sections.get(found, "").endswith("percpu")
            return self.of(self._kernel.entry(found).target), each
        words = VARIABLES.get(name)
        try:
            return None if words is None else (self._declared(words), False)
        except UserError:  # another kernel's
            return None

    def _declared(self, text: str) -> CType:
        plain = text.rstrip("*[] ")
        found = self.named(tuple(plain.split()))
        for _ in range(text.count("*")):
            found = pointer_to(found)
        return array_of(found, 0) if text.endswith("[]") else found

    def constant(self, name: str) -> int | None:
        """Return the value of an enum's constant, None if there is none of this name."""
        return None if self._kernel is None else self._kernel.constants.get(name)

    def enumerators(self, of: CType) -> dict[int, str]:
        """Return the names of an enum's values."""
        return self._known.enumerators(of.id) if of.kind == "enum" else {}

    def target(self, of: CType) -> CType:
        """Return what a pointer leads to, or an array is made of."""
        if isinstance(of.of, CType):
            return of.of
        return VOID if not of.of else self.of(of.of)

    def fields(self, of: CType) -> list[Field]:
        """Return the members of a struct or union in their order."""
        return [Field(m.name, self.of(m.type_id), m.offset, m.bits) for m in self._known.members(of.id)]

    def field(self, of: CType, name: str) -> Field:
        """Return a member, of an anonymous struct in it too. Raises UserError if there is none."""
        if of.kind not in ("struct", "union"):
            raise UserError(f"{of.name or 'this'} has no members: {name}", "whatis EXPR tells the type")
        if not of.size:
            raise UserError(f"the kernel's types do not tell what {of.name} is made of")
        found = self._known.member(of.id, name)
        if found is None:
            known = [each.name for each in self.fields(of) if each.name]
            close = similar(name, known, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"ptype {of.name} lists them"
            raise UserError(f"{of.name} has no member {name!r}", hint)
        return Field(found.name, self.of(found.type_id), found.offset, found.bits)

    def of(self, type_id: int) -> CType:
        """Return the kernel's type of an id. Raises KernelFileError on types that make no sense."""
        if type_id == 0:
            return VOID
        if type_id not in self._made:
            if type_id in self._making or len(self._making) > MOST_WITHIN:
                raise KernelFileError("the BTF has a type that contains itself, or too many within one")
            self._making.add(type_id)
            try:
                self._made[type_id] = self._make(type_id)
            finally:
                self._making.discard(type_id)
        return self._made[type_id]

    def _make(self, type_id: int) -> CType:
        entry = self._known.entry(type_id)
        name = entry.name
        if entry.kind in _QUALIFIERS:
            made = self.of(entry.target)
        elif entry.kind == btf.TYPEDEF:
            made = replace(self.of(self._known.resolve(type_id)), name=name)
        elif entry.kind == btf.INT:
            plain = spelt(tuple(name.split()))
            made = CType("bool" if entry.boolean else "int", plain, entry.size, entry.signed, type_id)
        elif entry.kind == btf.PTR:
            made = CType("pointer", self._pointer_name(entry.target), 8, id=type_id, of=entry.target)
        elif entry.kind == btf.ARRAY:
            made = replace(array_of(self.of(entry.target), entry.count), id=type_id)
        elif entry.kind in (btf.ENUM, btf.ENUM64):
            made = CType("enum", f"enum {name}".strip(), entry.size, entry.signed, type_id)
        elif entry.kind in (btf.STRUCT, btf.UNION, btf.FWD):
            made = self._struct(entry, type_id)
        elif entry.kind == btf.FLOAT:
            made = CType("float", name, entry.size, True, type_id)
        else:
            made = CType("function", f"{name or 'function'} ()", 0, id=type_id)
        return made

    def _struct(self, entry: Entry, type_id: int) -> CType:
        """Return a struct or union; of one that is only declared, its definition if there is one."""
        union = entry.kind == btf.UNION or (entry.kind == btf.FWD and entry.signed)
        kind: Literal["struct", "union"] = "union" if union else "struct"
        if entry.kind == btf.FWD:
            found = self._known.named(entry.name, _TAGS[kind])
            return self.of(found) if found else CType(kind, f"{kind} {entry.name}", 0, id=type_id)
        return CType(kind, f"{kind} {entry.name}".strip(), entry.size, id=type_id)

    def _pointer_name(self, target: int) -> str:
        """Return how a pointer is written. What it leads to may lead back to it only through a name."""
        stars = "*"
        for _ in range(MOST_QUALIFIERS):
            entry = self._known.entry(target) if target else None
            if entry is None:
                return f"void {stars}"
            if entry.kind == btf.PTR:
                stars += "*"
            elif entry.kind == btf.FUNC_PROTO:
                return f"function {stars}"
            elif entry.kind not in _QUALIFIERS:
                return _pointing_to(self.of(target).name or "struct", stars)
            target = entry.target
        raise KernelFileError("the BTF has a type that leads to itself")
