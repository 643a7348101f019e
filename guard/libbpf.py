# SPDX-License-Identifier: GPL-2.0-or-later
"""The system's libbpf.so.1 by ctypes: one wrapper a call.

Every wrapper turns libbpf's errors (a negative errno, or NULL and errno) into
KernelError, which says what was tried. Signatures are those of libbpf 1.1 (Debian
12), <bpf/libbpf.h>, <bpf/bpf.h> and <bpf/btf.h>.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.bpfstructs import LinkCreate, TestRun
from guard.bpfstructs import LinkInfo as LinkInfo
from guard.bpfstructs import MapInfo as MapInfo
from guard.bpfstructs import ProgramInfo as ProgramInfo
from guard.errors import KernelError

BTF_KIND_STRUCT = 4  # include/uapi/linux/btf.h
BPF_ANY = 0
BPF_NOEXIST = 1
_TRACE_ITER, _PERF_EVENT = 28, 41  # enum bpf_attach_type, include/uapi/linux/bpf.h

_NO_BPF = (
    "run as root (or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON); "
    "`guardctl doctor` tells what this kernel lacks"
)


_libc = c.CDLL(None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class _Library:
    """libbpf.so.1, opened when first used: guardctl --help needs no kernel."""

    def __init__(self) -> None:
        self._lib: c.CDLL | None = None

    def __getattr__(self, name: str) -> Any:
        if self._lib is None:
            try:
                self._lib = c.CDLL("libbpf.so.1", use_errno=True)
            except OSError:
                raise KernelError(
                    "libbpf.so.1 cannot be opened",
                    errno.ENOENT,
                    hint="install it: apt install libbpf1",
                ) from None
            self._lib.libbpf_set_print(_PRINT)
            # Else what libbpf reads, 10 MB for an object, stays in the arena of each
            # thread that loads one: malloc(3) takes it for usual, mallopt(3).
            for threshold in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
                _libc.mallopt(threshold, 128 * 1024)
        function = getattr(self._lib, name)
        # a function not declared below returns int, as ctypes assumes
        function.restype = _RETURNS.get(name, c.c_int)
        return function


_RETURNS: dict[str, Any] = {
    "bpf_object__open_file": c.c_void_p,
    "bpf_object__close": None,
    "bpf_object__find_map_by_name": c.c_void_p,
    "bpf_object__find_program_by_name": c.c_void_p,
    "bpf_object__btf": c.c_void_p,
    "btf__type_by_id": c.c_void_p,
    "btf__name_by_offset": c.c_char_p,
    "btf__resolve_size": c.c_int64,
}

# What libbpf says about a failing load (the verifier's words) goes into the
# error's hint instead of on the terminal.
_said: list[str] = []
_PRINT_TYPE = c.CFUNCTYPE(c.c_int, c.c_int, c.c_char_p, c.c_void_p)
_vsnprintf = _libc.vsnprintf


def _remember(level: int, form: bytes, arguments: int) -> int:
    text = c.create_string_buffer(4096)
    _vsnprintf(text, c.c_size_t(4096), form, c.c_void_p(arguments))
    if level == 0:  # LIBBPF_WARN
        _said.append(text.value.decode("utf-8", "replace").strip())
        del _said[:-20]
    return 0


_PRINT = _PRINT_TYPE(_remember)
_lib = _Library()


def _fail(what: str, error: int) -> KernelError:
    # EACCES is the verifier's answer, and its words follow
    hint = _NO_BPF if error == errno.EPERM else ""
    said = "\n  ".join(_said[-4:])
    _said.clear()
    return KernelError(what, error, hint="\n  ".join(filter(None, [hint, said])))


def _check(result: int, what: str) -> int:
    if result < 0:
        raise _fail(what, -result)
    return result


def _pointer(result: int | None, what: str) -> int:
    if not result:
        raise _fail(what, c.get_errno())
    return result


def info(fd: int, kind: type[Any]) -> Any:
    """Read MapInfo, ProgramInfo or LinkInfo of an open BPF object."""
    record = kind()
    size = c.c_uint32(c.sizeof(kind))
    _check(
        _lib.bpf_obj_get_info_by_fd(fd, c.byref(record), c.byref(size)),
        "cannot ask the kernel about a BPF object",
    )
    return record


def tag(program: int) -> str:
    """Give the kernel's hash of a program's instructions, in hexadecimal."""
    return bytes(info(program, ProgramInfo).tag).hex()


def program_maps(number: int) -> set[int]:
    """Give the ids of the maps that the program with this id uses."""
    program = program_by_id(number)
    try:
        count = info(program, ProgramInfo).nr_map_ids
        ids = (c.c_uint32 * count)()
        record = ProgramInfo(nr_map_ids=count, map_ids=c.addressof(ids))
        size = c.c_uint32(c.sizeof(record))
        _check(
            _lib.bpf_obj_get_info_by_fd(program, c.byref(record), c.byref(size)),
            "cannot ask the kernel about a BPF program",
        )
    finally:
        os.close(program)
    return set(ids)


def program_name(number: int) -> str:
    """Give the name that a loaded program's maker gave it, at most 15 letters."""
    program = program_by_id(number)
    try:
        return str(info(program, ProgramInfo).name.decode("utf-8", "surrogateescape"))
    finally:
        os.close(program)


def effective_programs(cgroup: int, attach_type: int) -> list[int]:
    """Give the ids of what runs at an open cgroup2 folder, first to last."""
    ids, count = (c.c_uint32 * 1024)(), c.c_uint32(1024)
    effective = 1  # BPF_F_QUERY_EFFECTIVE
    _check(
        _lib.bpf_prog_query(cgroup, attach_type, effective, None, ids, c.byref(count)),
        "cannot ask which programs run at a cgroup",
    )
    return ids[: count.value]


def attached_programs(cgroup: int, attach_type: int) -> tuple[list[int], int]:
    """Give the ids of what is attached at an open cgroup2 folder itself, and how.

    How: BPF_F_ALLOW_OVERRIDE, BPF_F_ALLOW_MULTI.
    """
    ids, count, flags = (c.c_uint32 * 1024)(), c.c_uint32(1024), c.c_uint32()
    _check(
        _lib.bpf_prog_query(
            cgroup, attach_type, 0, c.byref(flags), ids, c.byref(count)
        ),
        "cannot ask which programs are attached to a cgroup",
    )
    return ids[: count.value], flags.value


def get_pinned(path: Path) -> int:
    """Open a pinned object and give its file descriptor, which the caller owns."""
    return _check(_lib.bpf_obj_get(str(path).encode()), f"cannot open {path}")


def pin(fd: int, path: Path) -> None:
    """Pin the object behind fd at path, which must not exist."""
    _check(_lib.bpf_obj_pin(fd, str(path).encode()), f"cannot pin {path}")


def program_by_id(number: int) -> int:
    """Open a loaded program by its id and give its file descriptor."""
    return _check(_lib.bpf_prog_get_fd_by_id(number), f"no program with id {number}")


def run(program: int, context: c.Structure | None = None) -> int:
    """Run a program once by BPF_PROG_TEST_RUN and give its return value.

    A syscall program reads and writes context in place.
    """
    options = TestRun(sz=c.sizeof(TestRun))
    if context is not None:
        options.ctx_in = c.addressof(context)
        options.ctx_size_in = c.sizeof(context)
    _check(
        _lib.bpf_prog_test_run_opts(program, c.byref(options)),
        "cannot run a BPF program",
    )
    return int(options.retval)


def possible_cpus() -> int:
    """Give the number of values a per-CPU map holds for each key."""
    return _check(_lib.libbpf_num_possible_cpus(), "cannot count the CPUs")


class Map:
    """An open BPF map; keys and values are bytes of exactly its sizes."""

    def __init__(self, fd: int) -> None:
        """Take over the file descriptor fd; it is closed with the Map."""
        self.fd = fd
        about = info(fd, MapInfo)
        self.id: int = about.id
        self.type: int = about.type
        self.key_size: int = about.key_size
        self.value_size: int = about.value_size
        self.max_entries: int = about.max_entries
        read_size = self.value_size
        if self.type in (5, 6, 10):  # BPF_MAP_TYPE_PERCPU_HASH, _ARRAY, LRU_PERCPU
            read_size = (self.value_size + 7) // 8 * 8 * possible_cpus()
        self._buffer = c.c_char * read_size

    def __del__(self) -> None:
        os.close(self.fd)

    def get(self, key: bytes) -> bytes | None:
        """Read one value (of every CPU, for a per-CPU map); None: no such key."""
        # of this call alone: threads share a Map, and ctypes lets go of the GIL
        buffer = self._buffer()
        result = _lib.bpf_map_lookup_elem(self.fd, key, buffer)
        if result == -errno.ENOENT:
            return None
        _check(result, "cannot read a map")
        return buffer.raw

    def put(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Write one value. Raises KernelError, E2BIG when the map is full."""
        _check(
            _lib.bpf_map_update_elem(self.fd, key, value, c.c_uint64(flags)),
            "cannot write to a map",
        )

    def delete(self, key: bytes) -> bool:
        """Delete one key; False: it was not there."""
        result = _lib.bpf_map_delete_elem(self.fd, key)
        if result == -errno.ENOENT:
            return False
        _check(result, "cannot delete from a map")
        return True

    def keys(self) -> Iterator[bytes]:
        """Give the keys; a key added or deleted meanwhile may be missed."""
        following = c.create_string_buffer(self.key_size)
        key: bytes | None = None
        while True:
            result = _lib.bpf_map_get_next_key(self.fd, key, following)
            if result == -errno.ENOENT:
                return
            _check(result, "cannot list a map")
            key = following.raw
            yield key

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Give keys and values, with the same caution as keys()."""
        for key in list(self.keys()):
            value = self.get(key)
            if value is not None:
                yield key, value


def attach(program: int, cgroup: int, attach_type: int) -> int:
    """Attach a program to an open cgroup2 folder; gives the link's descriptor.

    The attachment ends with the descriptor unless the link is pinned.
    """
    return _check(
        _lib.bpf_link_create(program, cgroup, attach_type, None),
        "cannot attach a program",
    )


def attach_traced(program: int) -> int:
    """Attach a program of the LSM, or of a tracepoint by BTF, where its object says.

    Gives the link's descriptor; without a pin the attachment ends with it.
    """
    return _check(_lib.bpf_raw_tracepoint_open(None, program), "cannot attach it")


def attach_perf(program: int, event: int, cookie: int) -> int:
    """Attach a program to an open perf event; gives the link's descriptor.

    The program gets cookie (64 bits) by bpf_get_attach_cookie().
    """
    options = LinkCreate(sz=c.sizeof(LinkCreate), cookie=cookie)
    return _check(
        _lib.bpf_link_create(program, event, _PERF_EVENT, c.byref(options)),
        "cannot attach a program to a probe",
    )


def iterate(program: int) -> int:
    """Make a link of an iterator program, to be read by iterator_output()."""
    return _check(
        _lib.bpf_link_create(program, 0, _TRACE_ITER, None),
        "cannot make an iterator",
    )


def iterator_output(link: int) -> bytes:
    """Run an iterator program over all there is, and give what it wrote."""
    fd = _check(_lib.bpf_iter_create(link), "cannot run an iterator")
    with os.fdopen(fd, "rb") as stream:
        return stream.read()


def swap(link: int, program: int) -> None:
    """Replace a link's program by BPF_LINK_UPDATE: no call slips by between."""
    _check(_lib.bpf_link_update(link, program, None), "cannot swap a program")


def detach(link: int) -> None:
    """End a cgroup link by BPF_LINK_DETACH: its program runs no more when this returns.

    Removing its pin ends it, too, but some time later.
    """
    _check(_lib.bpf_link_detach(link), "cannot detach a program")


class Object:
    """A compiled BPF object, opened and (after load) in the kernel."""

    def __init__(self, path: Path) -> None:
        """Open the object file; nothing is in the kernel yet."""
        self.path = path
        self._pointer = c.c_void_p(
            _pointer(
                _lib.bpf_object__open_file(str(path).encode(), None),
                f"cannot open {path}",
            )
        )

    def __enter__(self) -> Object:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it: maps and programs that are pinned or attached stay."""
        _lib.bpf_object__close(self._pointer)
        self._pointer = c.c_void_p(None)

    def _map(self, name: str) -> c.c_void_p:
        return c.c_void_p(
            _pointer(
                _lib.bpf_object__find_map_by_name(self._pointer, name.encode()),
                f"{self.path} has no map {name}",
            )
        )

    def has_map(self, name: str) -> bool:
        """Tell whether the object has a map of that name."""
        return bool(_lib.bpf_object__find_map_by_name(self._pointer, name.encode()))

    def set_pin_path(self, name: str, path: Path) -> None:
        """Make load() use the map pinned at path, or pin its new one there."""
        _check(
            _lib.bpf_map__set_pin_path(self._map(name), str(path).encode()),
            f"cannot set the pin of {name}",
        )

    def set_max_entries(self, name: str, number: int) -> None:
        """Size a map before load(); a ring's size is in bytes."""
        _check(
            _lib.bpf_map__set_max_entries(self._map(name), c.c_uint32(number)),
            f"cannot size {name}",
        )

    def load(self) -> None:
        """Make the maps, fit the programs to this kernel and load them."""
        _check(_lib.bpf_object__load(self._pointer), f"cannot load {self.path}")
        _libc.malloc_trim(0)  # it has read all the kernel's types

    def _program(self, name: str) -> c.c_void_p:
        found = _lib.bpf_object__find_program_by_name(self._pointer, name.encode())
        return c.c_void_p(_pointer(found, f"{self.path} has no program {name}"))

    def program(self, name: str) -> int:
        """Give a loaded program's file descriptor, owned by the object."""
        return _check(_lib.bpf_program__fd(self._program(name)), f"{name} not loaded")

    def map_fd(self, name: str) -> int:
        """Give a loaded map's file descriptor, owned by the object."""
        return _check(_lib.bpf_map__fd(self._map(name)), f"{name} is not loaded")

    def leave_out(self, name: str) -> None:
        """Have load() not load a program."""
        _check(
            _lib.bpf_program__set_autoload(self._program(name), c.c_bool(False)),
            f"cannot leave out {name}",
        )

    def expect(self, name: str, attach_type: int) -> None:
        """Have load() say what a program will be attached to."""
        _check(
            _lib.bpf_program__set_expected_attach_type(
                self._program(name), c.c_uint32(attach_type)
            ),
            f"cannot prepare {name}",
        )

    def layouts(self) -> dict[str, tuple[int, dict[str, int]]]:
        """Give size and field offsets (bytes) of every struct in the BTF."""
        btf = c.c_void_p(_lib.bpf_object__btf(self._pointer))
        layouts: dict[str, tuple[int, dict[str, int]]] = {}
        for number in range(1, _lib.btf__type_cnt(btf) if btf else 0):
            # struct btf_type: name_off, info (kind in bits 24..28, count in
            # the low 16), size; then struct btf_member: name_off, type, offset
            at = _lib.btf__type_by_id(btf, number)
            name_off, information, size = (c.c_uint32 * 3).from_address(at)
            if information >> 24 & 0x1F != BTF_KIND_STRUCT:
                continue
            name = _lib.btf__name_by_offset(btf, name_off).decode()
            members = (c.c_uint32 * 3 * (information & 0xFFFF)).from_address(at + 12)
            layouts[name] = (
                size,
                {
                    _lib.btf__name_by_offset(btf, member[0]).decode(): member[2] // 8
                    for member in members
                },
            )
        return layouts
