"""Pictures in memory that a front shares with the engine process."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from service.batcher import QueueFullError
from service.shared.frames import MalformedMessageError

Pixels = NDArray[np.uint8]
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class PixelBlock:
    """Slots of ``slot_bytes`` each, a picture in a slot, in the file that ``descriptor`` is open on.

    The file has no name: however its processes end, nothing of it stays. A slot that was never used takes no
    memory, and the one that was freed last is used first.
    """

    def __init__(self, descriptor: int, *, slots: int, slot_bytes: int) -> None:
        self.descriptor = descriptor
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._bytes = np.frombuffer(mmap.mmap(descriptor, slots * slot_bytes), np.uint8).reshape(slots, -1)
        self._free = list(reversed(range(slots)))

    @classmethod
    def create(cls, *, slots: int, slot_bytes: int) -> PixelBlock:
        """A new one, whose size stays: to read beyond the end of a file that has shrunk ends a process."""
        descriptor = os.memfd_create("clipserve-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, slots * slot_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return cls(descriptor, slots=slots, slot_bytes=slot_bytes)

    @classmethod
    def of_another(cls, descriptor: int, *, slots: int, slot_bytes: int) -> PixelBlock:
        """That of another process. ``descriptor`` is closed.

        Raises:
            MalformedMessageError: the file is not as it should be.
        """
        try:
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            if not sealed or os.fstat(descriptor).st_size != slots * slot_bytes:
                raise MalformedMessageError("the shared memory is not of the size it should be")
            return cls(descriptor, slots=slots, slot_bytes=slot_bytes)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def holding(self, pictures: Sequence[Pixels]) -> Iterator[list[int]]:
        """The slots in which ``pictures`` lie while the block runs.

        Raises:
            QueueFullError: there are not as many free slots.
        """
        if len(pictures) > len(self._free):
            raise QueueFullError(
                f"{self.slots - len(self._free)} pictures are being worked on,"
                f" {len(pictures)} more are over the limit of {self.slots}"
            )
        taken = [self._free.pop() for _ in pictures]
        try:
            for slot, picture in zip(taken, pictures, strict=True):
                self._bytes[slot, : picture.size] = picture.reshape(-1)
            yield taken
        finally:
            self._free += taken

    def picture(self, slot: int, *, size: int) -> Pixels:
        """What lies in a slot, uint8 (size, size, 3); not a copy.

        Raises:
            MalformedMessageError: there is no such slot, or it is too small.
        """
        length = 3 * size * size
        if slot >= self.slots or length > self.slot_bytes:
            raise MalformedMessageError(f"no picture of {length} bytes can lie in slot {slot}")
        return self._bytes[slot, :length].reshape(size, size, 3)

    def close(self) -> None:
        """Let go of the file. The memory goes with the last picture that is looked at."""
        os.close(self.descriptor)
