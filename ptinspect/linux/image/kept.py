"""What was found out about a kernel file, kept as long as it is the one in use."""

from __future__ import annotations

from typing import Generic, TypeVar

from ptinspect.linux.image.image import KernelImage

T = TypeVar("T")


class Kept(Generic[T]):
    """Hold a value for the kernel file that was asked about last: one guest is looked at at a time."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._held: tuple[KernelImage, T] | None = None

    def get(self, image: KernelImage) -> T | None:
        """Return what is held for this file; None if nothing is."""
        return self._held[1] if self._held is not None and self._held[0] is image else None

    def put(self, image: KernelImage, value: T) -> T:
        """Hold a value for this file, in the place of any other's, and return it."""
        self._held = (image, value)
        return value
