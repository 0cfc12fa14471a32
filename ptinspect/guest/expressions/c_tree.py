"""C expressions as they are typed, and the trees that they are: precedence, casts, members, constants.

Source: ISO/IEC 9899:2018, 6.4.4 (constants) and 6.5 (expressions). Read without knowing any type: a name in
parentheses is one where nothing else makes sense, or its name says so (`pte_t`).
"""

from __future__ import annotations

import re

from ptinspect.dataclass import dataclass
from ptinspect.errors import UserError
from ptinspect.guest.expression import DECIMAL, HEX, parse_number, parse_size
from ptinspect.linux.image.c_types import PLAIN_NAMES

HELP = "C: numbers, SYMBOL, $REGISTER, + - * / % << >> & | ^ ~ ! < == && ?:, (TYPE), *, ->, [], sizeof"
MOST_DEPTH = 64
"""Parentheses and operators within each other."""
MOST_TOKENS = 300
_SUFFIX = r"isra|part|constprop|cold|llvm|lto_priv"
_TOKEN = re.compile(
    r"\s*(?:(?P<physical>[pP][aA]:(?=[\w]))|(?P<register>\$\w+)"
    rf"|(?P<number>[0-9a-fA-F]{{16}}(?![\w])|(?:{HEX}|0[bB]_*[01][01_]{{0,99}})[uUlL]*"
    rf"|{DECIMAL}(?:[kKMGTP](?:i?B)?(?!\w)|[uUlL]*)(?![\w.]))"
    rf"|(?P<name>[A-Za-z_]\w*(?:\.(?:{_SUFFIX})(?:\.\d+)*|\.\d+)*)"
    r"|(?P<char>'(?:[^'\\\n]|\\(?:[0-7]{1,3}|x[0-9a-fA-F]{1,2}|.))')"
    r"|(?P<sign>->|<<=?|>>=?|<=|>=|==|!=|&&|\|\||\+\+|--|[-+*/%&|^~!<>=?:()\[\].,]))"
)
_ESCAPES = {"n": 10, "t": 9, "r": 13, "0": 0, "a": 7, "b": 8, "f": 12, "v": 11, "e": 27}
_LEVELS = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"),
    ("+", "-"), ("*", "/", "%"),
)  # fmt: skip
"""Binary operators, those that bind least first (6.5.5 to 6.5.14)."""
_KEYWORDS = frozenset(
    {"struct", "union", "enum", "unsigned", "signed", "const", "volatile", "long", "short", "int", "char"}
)
FUNCTIONS = ("offsetof", "container_of", "BIT", "GENMASK")


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: int
    suffix: str = ""
    """u and l as typed, in small letters; `c` for a character."""
    decimal: bool = True


@dataclass(frozen=True)
class Name:
    """A symbol or a constant of an enum."""

    text: str


@dataclass(frozen=True)
class Register:
    """A register, without `$`."""

    text: str


@dataclass(frozen=True)
class Physical:
    """What follows `pa:`: a physical address, or where a symbol lies."""

    of: Node


@dataclass(frozen=True)
class Unary:
    """`-`, `+`, `~`, `!`, `*`, `&` before an operand."""

    sign: str
    of: Node


@dataclass(frozen=True)
class Binary:
    """Two operands and what is between them."""

    sign: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Choice:
    """`A ? B : C`."""

    condition: Node
    yes: Node
    no: Node


@dataclass(frozen=True)
class TypeName:
    """A type as typed."""

    words: tuple[str, ...]
    stars: int = 0
    counts: tuple[int, ...] = ()
    """Of an array, the outermost first."""
    outer_stars: int = 0
    """Of pointers to that array: `char (*)[16]`."""


@dataclass(frozen=True)
class Cast:
    """`(TYPE) A`."""

    type: TypeName
    of: Node


@dataclass(frozen=True)
class SizeOf:
    """`sizeof A` or `sizeof(TYPE)`."""

    of: Node | TypeName


@dataclass(frozen=True)
class Member:
    """`A.NAME`, or `A->NAME`."""

    of: Node
    name: str
    arrow: bool


@dataclass(frozen=True)
class Index:
    """`A[B]`."""

    of: Node
    index: Node


@dataclass(frozen=True)
class Call:
    """One of the kernel's macros: `offsetof(TYPE, MEMBER)`, `BIT(N)`."""

    function: str
    arguments: tuple[Node | TypeName, ...]


Node = Number | Name | Register | Physical | Unary | Binary | Choice | Cast | SizeOf | Member | Index | Call


@dataclass(frozen=True)
class Token:
    """A word or a sign."""

    kind: str
    """number, name, register, char, physical, sign; end."""
    text: str


def parse(text: str) -> Node:
    """Read an expression. Raises UserError."""
    return _Parser(text).whole()


def parse_type_or_expression(text: str) -> TypeName | Node:
    """Read the name of a type, or else an expression. Raises UserError."""
    return _Parser(text).type_or_whole()


def tokens(text: str) -> list[Token]:
    """Split an expression. Raises UserError for what is part of none."""
    found, at = list[Token](), 0
    while text[at:].strip():
        if len(found) >= MOST_TOKENS:
            raise UserError(f"{text[:40]!r}…: too long")
        match = _TOKEN.match(text, at)
        if match is None:
            raise UserError(f"{text!r}: {text[at:].strip()[:20]!r} is part of no expression", HELP)
        kind = match.lastgroup or ""
        found.append(Token(kind, match[kind]))
        at = match.end()
    return [*found, Token("end", "")]


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._tokens, self._at, self._depth = text, tokens(text), 0, 0

    # -- tokens ---------------------------------------------------------------------------------

    @property
    def _now(self) -> Token:
        return self._tokens[self._at]

    def _peek(self, ahead: int) -> Token:
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)]

    def _take(self) -> Token:
        found = self._now
        self._at += found.kind != "end"
        return found

    def _is(self, *signs: str) -> bool:
        return self._now.kind == "sign" and self._now.text in signs

    def _skip(self, sign: str) -> bool:
        found = self._is(sign)
        self._at += found
        return found

    def _need(self, sign: str) -> None:
        if not self._skip(sign):
            raise self._wrong(f"{sign!r} is missing")

    def _wrong(self, why: str = "") -> UserError:
        at = self._now.text
        changes = at in ("=", "++", "--", "<<=", ">>=") or (at == "" and "=" in why)
        if changes:
            return UserError(f"{self._text!r}: {at} would change something", "poke writes memory")
        return UserError(
            f"{self._text!r}: {why or 'an operand is missing'} {f'before {at!r}' if at else 'at the end'}",
            HELP,
        )

    # -- expressions ----------------------------------------------------------------------------

    def whole(self) -> Node:
        found = self._choice()
        if self._now.kind != "end":
            raise self._wrong("an operator is missing")
        return found

    def type_or_whole(self) -> TypeName | Node:
        start = self._at
        if self._type_begins(0, surely=False):
            try:
                found = self._type()
            except UserError:
                found = None
            if found is not None and self._now.kind == "end":
                return found
            self._at = start
        return self.whole()

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise UserError(f"{self._text[:40]!r}…: too deep")
        condition = self._binary(0)
        if self._skip("?"):
            yes = self._choice()
            self._need(":")
            condition = Choice(condition, yes, self._choice())
        self._depth -= 1
        return condition

    def _binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._unary()
        left = self._binary(level + 1)
        while self._is(*_LEVELS[level]):
            left = Binary(self._take().text, left, self._binary(level + 1))
        return left

    def _unary(self) -> Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise UserError(f"{self._text[:40]!r}…: too deep")
        found = self._prefixed()
        self._depth -= 1
        return found

    def _prefixed(self) -> Node:
        if self._is("-", "+", "~", "!", "*", "&"):
            return Unary(self._take().text, self._unary())
        if self._now.text == "sizeof":
            self._take()
            if self._is("(") and self._type_begins(1, surely=False, closed=True):
                return SizeOf(self._in_parentheses())
            return SizeOf(self._unary())
        if self._is("(") and self._casts():
            return Cast(self._in_parentheses(), self._unary())
        return self._postfix()

    def _in_parentheses(self) -> TypeName:
        self._need("(")
        found = self._type()
        self._need(")")
        return found

    def _postfix(self) -> Node:
        found = self._primary()
        while True:
            if self._is(".", "->"):
                arrow = self._take().text == "->"
                if self._now.kind != "name":
                    raise self._wrong("a member's name is missing")
                found = Member(found, self._take().text, arrow)
            elif self._skip("["):
                found = Index(found, self._choice())
                self._need("]")
            else:
                return found

    def _primary(self) -> Node:
        if self._skip("("):
            found = self._choice()
            self._need(")")
            return found
        token = self._take()
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "char":
            return Number(_character(token.text[1:-1]), "c")
        if token.kind == "register":
            return Register(token.text[1:])
        if token.kind == "physical":
            return Physical(self._primary())
        if token.kind == "name":
            return self._call(token.text) if self._is("(") else Name(token.text)
        self._at -= token.kind != "end"
        raise self._wrong()

    def _call(self, name: str) -> Node:
        if name not in FUNCTIONS:
            raise UserError(
                f"{name}(): the guest's functions cannot be called", f"known: {', '.join(FUNCTIONS)}"
            )
        self._need("(")
        arguments: list[Node | TypeName] = []
        while not arguments or self._skip(","):
            surely = name in ("offsetof", "container_of") and len(arguments) == (name == "container_of")
            arguments.append(self._type() if surely else self._choice())
        self._need(")")
        return Call(name, tuple(arguments))

    # -- types ----------------------------------------------------------------------------------

    def _type_begins(self, ahead: int, *, surely: bool, closed: bool = False) -> bool:
        """Tell whether a type begins so many tokens ahead: by its first word, or (`closed`) by its end."""
        first = self._peek(ahead)
        if first.kind != "name":
            return False
        if first.text in _KEYWORDS or first.text in PLAIN_NAMES:
            return True
        if not surely and not closed:
            return True
        after = ahead + 1
        while self._peek(after).text == "*":
            after += 1
        if self._peek(after).text != ")":
            return False
        return after > ahead + 1 or first.text.endswith("_t")

    def _casts(self) -> bool:
        """Tell whether the parenthesis that begins here holds the type of a cast."""
        if self._type_begins(1, surely=True):
            return True
        if self._peek(1).kind != "name" or self._peek(2).text != ")":
            return False
        after = self._peek(3)  # (NAME) followed by an operand: NAME is no operand itself
        return after.kind in ("number", "name", "register", "char", "physical") or after.text in ("~", "!")

    def _type(self) -> TypeName:
        words: list[str] = []
        while self._now.kind == "name":
            words.append(self._take().text)
        if not words:
            raise self._wrong("a type is missing")
        stars, outer = self._stars(), 0
        if self._is("(") and self._peek(1).text == "*":
            self._take()
            outer = self._stars()
            self._need(")")
            if not self._is("["):
                raise self._wrong("'[' is missing")
        counts = []
        while self._skip("["):
            count = parse_number(self._take().text)
            if count is None:
                raise self._wrong("the number of elements is missing")
            counts.append(count)
            self._need("]")
        return TypeName(tuple(words), stars, tuple(counts), outer)

    def _stars(self) -> int:
        found = 0
        while self._is("*") or self._now.text in ("const", "volatile"):
            found += self._take().text == "*"
        return found


def _number(text: str) -> Number:
    digits = text.rstrip("uUlL")
    suffix = text[len(digits) :].lower()
    if re.fullmatch(r"[0-9a-fA-F]{16}", digits):  # as kernels print
        return Number(int(digits, 16), "ul", decimal=False)
    if (
        (size := parse_size(digits)) is not None
        and digits[-1] in "KMGTPBkiI"
        and digits[:2] not in ("0x", "0X")
    ):
        return Number(size)
    plain = digits.replace("_", "")
    if plain[:2] in ("0x", "0X", "0b", "0B"):
        return Number(int(plain, 0), suffix, decimal=False)
    if plain != "0" and plain.startswith("0"):
        try:
            return Number(int(plain, 8), suffix, decimal=False)
        except ValueError:
            raise UserError(f"{text}: it begins with 0, so it is octal, and has no 8 and 9") from None
    return Number(int(plain), suffix)


def _character(text: str) -> int:
    if not text.startswith("\\"):
        if ord(text) > 0x7F:
            raise UserError(f"{text!r} is no character of one byte")
        return ord(text)
    body = text[1:]
    if body[0] == "x" and len(body) > 1:
        return int(body[1:], 16)
    if body[0] in "01234567":
        return int(body, 8) & 0xFF
    return _ESCAPES.get(body, ord(body))
