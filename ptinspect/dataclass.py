"""Dataclasses that cost next to nothing where they are declared: most that a start declares are not used.

The standard library writes and compiles six methods for every class where it is declared, and imports
`inspect` for it: half of the time that a command without a guest took. Here `__init__` is compiled for a
class of which there are more than a few objects, and the other methods are shared by all. Type checkers,
and `dataclasses.fields`, `asdict` and the like, take these for what they are.
"""

from __future__ import annotations

from _thread import RLock
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter

from ptinspect.typed import TYPE_CHECKING, Any

_REQUIRED = object()
"""The default of a field without one."""
_STANDARD = "__dataclass_fields__"
"""Attribute by which the standard library knows a dataclass."""
_WRITTEN = "_fields_as_written"
"""Attribute of our classes: what was written as `field(…)`, `kw_only`, and the fields once they are known."""
_made: dict[type, int] = {}
"""Class -> its objects so far, as long as they are few."""
_lock = RLock()
FEW = 4
"""Objects of a class that are made without a compiled `__init__`, which takes as long as ten of them."""


class _Field:
    """What a class declares of a field."""

    def __init__(
        self,
        default: object = _REQUIRED,
        default_factory: Callable[[], object] | None = None,
        repr: bool = True,
    ) -> None:
        self.default, self.factory, self.repr, self.kw_only = default, default_factory, repr, False


class _Fields:
    """What a class has until somebody asks for the standard library's own fields."""

    def __get__(self, value: object, owner: type) -> object:
        """Have the standard library go through the class, and through those that it inherits from."""
        import dataclasses

        with _lock:
            one: Any
            for one in reversed(owner.__mro__):
                if not isinstance(vars(one).get(_STANDARD), _Fields):
                    continue
                for name, found in _declared(one).items():
                    more: dict[str, Any] = {"repr": found.repr, "kw_only": found.kw_only}
                    if found.factory is not None:
                        more["default_factory"] = found.factory
                    elif found.default is not _REQUIRED:
                        more["default"] = found.default
                    setattr(one, name, dataclasses.field(**more))
                frozen = vars(one).get("__setattr__") is _refuse
                if frozen:  # it makes its own of these
                    del one.__setattr__, one.__delattr__
                dataclasses.dataclass(init=False, repr=False, eq=False, frozen=frozen)(one)
        return getattr(owner, _STANDARD)


def _declared(cls: type) -> Mapping[str, _Field]:
    """Return the fields that a class declares itself; what they are is found out at the first call."""
    if _WRITTEN not in vars(cls):
        return {}
    written, kw_only, known = vars(cls)[_WRITTEN]
    if not known:
        names = [name for name, kind in cls.__annotations__.items() if not str(kind).startswith("ClassVar")]
        found = {name: written.get(name) or _Field(vars(cls).get(name, _REQUIRED)) for name in names}
        for each in found.values():
            each.kw_only = kw_only
        known.update(found)  # at once: another thread may ask too
    fields: Mapping[str, _Field] = known
    return fields


def _fields(cls: type) -> Mapping[str, _Field]:
    """Return the fields of a class, those that it inherits first."""
    if cls.__bases__ == (object,):
        return _declared(cls)
    return {name: found for one in reversed(cls.__mro__) for name, found in _declared(one).items()}


def is_dataclass(cls: type) -> bool:
    """Tell whether a class is a dataclass, one of ours or the standard library's."""
    return hasattr(cls, _WRITTEN) or hasattr(cls, _STANDARD)


def field_names(cls: type) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass, those that it inherits first."""
    return tuple(_fields(cls) or getattr(cls, _STANDARD))


def _declare(cls: Any, frozen: bool, eq: bool, kw_only: bool) -> Any:
    """Give a class its methods, but for those that it has of its own."""
    own = vars(cls)
    written = {name: value for name, value in own.items() if type(value) is _Field}
    for name, found in written.items():
        if found.default is not _REQUIRED:
            setattr(cls, name, found.default)
        else:
            delattr(cls, name)
    setattr(cls, _WRITTEN, (written, kw_only, {}))
    for name, method in _METHODS[frozen, eq]:
        if name not in own:
            setattr(cls, name, method)
    return cls


def _first_init(self: Any, *values: object, **named: object) -> None:
    """Make the first objects of a class; if there are more than a FEW, compile `__init__` for the others.

    It is compiled too where the values are not those that the fields want, and then says so.
    """
    owner: Any = next(one for one in type(self).__mro__ if _WRITTEN in vars(one))
    fields = _fields(owner)
    given = dict(zip((name for name, found in fields.items() if not found.kw_only), values, strict=False))
    _made[owner] = _made.get(owner, 0) + 1
    wrong: object = _made[owner] > FEW or len(given) < len(values) or given.keys() & named.keys()
    given |= named
    for name, found in fields.items():
        if name in given:
            self.__dict__[name] = given.pop(name)
        elif found.factory is not None:
            self.__dict__[name] = found.factory()
        else:
            self.__dict__[name] = found.default
            wrong = wrong or found.default is _REQUIRED
    if wrong or given:
        owner.__init__ = _compiled_init(owner)
        self.__init__(*values, **named)
    elif hasattr(self, "__post_init__"):
        self.__post_init__()


def _compiled_init(cls: type) -> object:
    """Write and compile `__init__`: a default that makes a new object for each is called in it."""
    names: dict[str, Any] = {"_REQUIRED": _REQUIRED}
    plain, by_name, lines = ["self"], ["*"], ["_vars = self.__dict__"]
    for name, found in _fields(cls).items():
        parameter, value = name, name
        if found.factory is not None:
            names[f"_new_{name}"] = found.factory
            parameter, value = f"{name}=_REQUIRED", f"_new_{name}() if {name} is _REQUIRED else {name}"
        elif found.default is not _REQUIRED:
            names[f"_default_{name}"] = found.default
            parameter = f"{name}=_default_{name}"
        (by_name if found.kw_only else plain).append(parameter)
        lines.append(f"_vars[{name!r}] = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    parameters = ", ".join(plain + (by_name if len(by_name) > 1 else []))
    exec(f"def __init__({parameters}):\n " + "\n ".join(lines), names)
    return names["__init__"]


def _values(self: Any) -> object:
    """Return the values of all fields of an object."""
    cls: Any = type(self)
    get = vars(cls).get("_get_values")
    if get is None:
        names = tuple(_fields(cls))
        get = cls._get_values = attrgetter(*names) if names else type
    return get(self)


def _eq(self: object, other: object) -> bool:
    """Compare the values of all fields."""
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: object) -> int:
    """Return a hash of the values of all fields."""
    return hash(_values(self))


def _repr(self: object) -> str:
    """Write the object as the call that makes it."""
    shown = [f"{name}={getattr(self, name)!r}" for name, found in _fields(type(self)).items() if found.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse(self: object, name: str, *value: object) -> None:
    """Leave a frozen object as it is."""
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot change field {name!r}")


class _MatchArgs:
    """The fields that a pattern may name by their places, asked for by the first one that does."""

    def __get__(self, value: object, owner: type) -> tuple[str, ...]:
        """Return their names."""
        return tuple(name for name, found in _fields(owner).items() if not found.kw_only)


def _methods(*, frozen: bool, eq: bool) -> Iterator[tuple[str, object]]:
    """Yield what a class gets that has none of its own."""
    yield from (("__init__", _first_init), ("__repr__", _repr))
    yield from (("__match_args__", _MatchArgs()), (_STANDARD, _Fields()))
    if eq:
        yield from (("__eq__", _eq), ("__hash__", _hash if frozen else None))
    if frozen:
        yield from (("__setattr__", _refuse), ("__delattr__", _refuse))


_METHODS = {
    (frozen, eq): tuple(_methods(frozen=frozen, eq=eq)) for frozen in (True, False) for eq in (True, False)
}

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414
    from dataclasses import field as field  # noqa: PLC0414
    from dataclasses import replace as replace  # noqa: PLC0414
else:
    field = _Field

    def dataclass(cls=None, /, *, frozen=False, eq=True, kw_only=False):
        """Declare a class as `dataclasses.dataclass` does, with these of its options."""
        if cls is not None:
            return _declare(cls, frozen, eq, kw_only)
        return lambda cls: _declare(cls, frozen, eq, kw_only)

    def replace(value, /, **changes):
        """Return a copy of an object with other values of some fields, as `dataclasses.replace` does."""
        return type(value)(**{name: getattr(value, name) for name in _fields(type(value))} | changes)
