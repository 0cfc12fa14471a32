"""Arrays of one length under names, some rows of which are taken, or put after those of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Columns:
    """Base of records whose arrays have one length; other fields hold for every row."""

    def _arrays(self) -> Mapping[str, NDArray[Any]]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(next(iter(self._arrays().values())).shape[0])

    def __getitem__(self, which: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Self:
        """Return some of the rows."""
        return replace(self, **{name: array[which] for name, array in self._arrays().items()})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, of which there is at least one, one after the other."""
        columns = {name: [part._arrays()[name] for part in parts] for name in parts[0]._arrays()}
        return replace(parts[0], **{name: np.concatenate(arrays) for name, arrays in columns.items()})
