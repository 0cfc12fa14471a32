"""The words of annotations, for what every start imports: typing takes longer to import than all of that.

Type checkers see typing's own. At run time they stand for little, as nobody looks at annotations; results,
whose schemas are made of theirs, take `Literal` from typing (`output.encode.schema_of`).
"""

from types import GenericAlias

__all__ = ["IO", "TYPE_CHECKING", "Any", "BinaryIO", "ClassVar", "Final", "Literal", "NewType", "NoReturn"]
__all__ += ["Protocol", "TextIO", "TypeVar", "cast"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import (
        IO,
        Any,
        BinaryIO,
        ClassVar,
        Final,
        Literal,
        NewType,
        NoReturn,
        Protocol,
        TextIO,
        TypeVar,
        cast,
    )
else:
    IO = Any = BinaryIO = ClassVar = Final = NoReturn = Protocol = TextIO = object

    class Literal:
        """One of some words: `typing.get_args` returns them."""

        __class_getitem__ = classmethod(GenericAlias)

    def NewType(name, kind):  # noqa: N802
        """Return a type whose objects are those of another one."""
        return type(name, (kind,), {"__new__": lambda cls, value: value})

    def TypeVar(name, **more):  # noqa: N802
        """Return what stands for any type."""
        return object

    def cast(kind, value):
        """Return a value."""
        return value
