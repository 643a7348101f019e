# SPDX-License-Identifier: GPL-2.0-or-later
"""The reading end of a BPF ring buffer, through a window that moves along it.

libbpf's own reader maps the whole ring, twice in a row, and the kernel counts every
page as resident memory of the reader: with a ring that holds a storm of connections
(64 MiB) guardd would seem to use 150. This one maps a megabyte at a time, and
gives a sample's room free only when the next one is asked for, so that a process
which dies with a sample in hand leaves it to the next reader.

Layout and protocol: Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c. A page with
the consumer's position, a page with the producer's, then the data, mapped twice by
the kernel so that no sample is ever cut at the end.
"""

from __future__ import annotations

import ctypes
import mmap
import select
from collections.abc import Iterator

from guard.libbpf import MapInfo, info

_PAGE = mmap.PAGESIZE
_DATA = 2 * _PAGE  # offset of the data in the mapping
_BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT, include/uapi/linux/bpf.h
_DISCARD = 1 << 30  # BPF_RINGBUF_DISCARD_BIT
_HEADER = 8  # BPF_RINGBUF_HDR_SZ: length and flags, then what the kernel needs
_WINDOW = 1 << 20
_SLACK = 1 << 16  # far more than the longest sample, struct event


class RingBuffer:
    """The one reader of the ring map behind a file descriptor."""

    def __init__(self, fd: int) -> None:
        """Begin where the last reader ended; fd stays the caller's."""
        self._open(fd, info(fd, MapInfo).max_entries)

    def _open(self, fd: int, size: int) -> None:
        """Map the positions of a ring whose data has so many bytes."""
        self._fd = fd
        self._size = size
        self._consumer_page = mmap.mmap(fd, _PAGE)
        self._producer_page = mmap.mmap(fd, _PAGE, prot=mmap.PROT_READ, offset=_PAGE)
        # a c_uint64 is read and written in one go, the kernel looks on
        self._consumed = ctypes.c_uint64.from_buffer(self._consumer_page)
        self._start = self._end = 0  # of the window, in the data
        self._window: mmap.mmap | None = None
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_ms: int) -> None:
        """Return when there is a sample, or after timeout_ms."""
        self._poll.poll(timeout_ms)

    def samples(self) -> Iterator[bytes]:
        """Give the samples that are there, oldest first.

        A sample's room is given free when the following one is asked for.
        """
        position = self._consumed.value
        while position < self._produced():
            at = position % self._size
            window = self._at(at)
            inside = at - self._start
            header = int.from_bytes(window[inside : inside + 4], "little")
            if header & _BUSY:
                return  # reserved, not yet written
            length = header & ~(_BUSY | _DISCARD)
            if not header & _DISCARD:
                yield window[inside + _HEADER : inside + _HEADER + length]
            position += (_HEADER + length + 7) & ~7
            self._consumed.value = position

    def _produced(self) -> int:
        return int.from_bytes(self._producer_page[:8], "little")

    def _at(self, at: int) -> mmap.mmap:
        """Have the window over a sample that begins at this offset of the data."""
        if self._window is None or not self._start <= at < self._end:
            if self._window is not None:
                self._window.close()
            self._start = at - at % _PAGE
            self._end = min(self._start + _WINDOW, self._size)
            length = min(_WINDOW + _SLACK, 2 * self._size - self._start)
            self._window = mmap.mmap(
                self._fd, length, prot=mmap.PROT_READ, offset=_DATA + self._start
            )
        return self._window

    def close(self) -> None:
        """Unmap the ring; what is in it stays there."""
        del self._consumed  # it holds the page
        for page in (self._consumer_page, self._producer_page, self._window):
            if page is not None:
                page.close()


def ring_backlog(fd: int) -> int:
    """Give how many bytes of a ring map wait to be read."""
    # only to read: to write is what the lock in the LSM keeps for guardd
    positions = []
    for offset in (0, _PAGE):
        with mmap.mmap(fd, _PAGE, prot=mmap.PROT_READ, offset=offset) as page:
            positions.append(int.from_bytes(page[:8], "little"))
    return positions[1] - positions[0]
