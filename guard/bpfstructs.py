# SPDX-License-Identifier: GPL-2.0-or-later
"""Records that libbpf and the kernel fill, as far as we use them."""

from __future__ import annotations

import ctypes as c


class MapInfo(c.Structure):
    """struct bpf_map_info as far as the name, include/uapi/linux/bpf.h."""

    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("key_size", c.c_uint32),
        ("value_size", c.c_uint32),
        ("max_entries", c.c_uint32),
        ("map_flags", c.c_uint32),
        ("name", c.c_char * 16),
    ]


class ProgramInfo(c.Structure):
    """struct bpf_prog_info as far as run_cnt, include/uapi/linux/bpf.h."""

    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("tag", c.c_uint8 * 8),
        ("jited_prog_len", c.c_uint32),
        ("xlated_prog_len", c.c_uint32),
        ("jited_prog_insns", c.c_uint64),
        ("xlated_prog_insns", c.c_uint64),
        ("load_time", c.c_uint64),
        ("created_by_uid", c.c_uint32),
        ("nr_map_ids", c.c_uint32),
        ("map_ids", c.c_uint64),
        ("name", c.c_char * 16),
        ("ifindex", c.c_uint32),
        ("gpl_compatible", c.c_uint32),
        ("netns_dev", c.c_uint64),
        ("netns_ino", c.c_uint64),
        ("nr_jited_ksyms", c.c_uint32),
        ("nr_jited_func_lens", c.c_uint32),
        ("jited_ksyms", c.c_uint64),
        ("jited_func_lens", c.c_uint64),
        ("btf_id", c.c_uint32),
        ("func_info_rec_size", c.c_uint32),
        ("func_info", c.c_uint64),
        ("nr_func_info", c.c_uint32),
        ("nr_line_info", c.c_uint32),
        ("line_info", c.c_uint64),
        ("jited_line_info", c.c_uint64),
        ("nr_jited_line_info", c.c_uint32),
        ("line_info_rec_size", c.c_uint32),
        ("jited_line_info_rec_size", c.c_uint32),
        ("nr_prog_tags", c.c_uint32),
        ("prog_tags", c.c_uint64),
        ("run_time_ns", c.c_uint64),
        ("run_cnt", c.c_uint64),
    ]


class LinkInfo(c.Structure):
    """struct bpf_link_info with its cgroup member, include/uapi/linux/bpf.h."""

    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("prog_id", c.c_uint32),
        ("pad", c.c_uint32),
        ("cgroup_id", c.c_uint64),
        ("attach_type", c.c_uint32),
    ]


class TestRun(c.Structure):
    """struct bpf_test_run_opts, <bpf/bpf.h>."""

    _fields_ = [
        ("sz", c.c_size_t),
        ("data_in", c.c_void_p),
        ("data_out", c.c_void_p),
        ("data_size_in", c.c_uint32),
        ("data_size_out", c.c_uint32),
        ("ctx_in", c.c_void_p),
        ("ctx_out", c.c_void_p),
        ("ctx_size_in", c.c_uint32),
        ("ctx_size_out", c.c_uint32),
        ("retval", c.c_uint32),
        ("repeat", c.c_int),
        ("duration", c.c_uint32),
        ("flags", c.c_uint32),
        ("cpu", c.c_uint32),
        ("batch_size", c.c_uint32),
    ]


class UprobeMulti(c.Structure):
    """union bpf_attr of BPF_LINK_CREATE for BPF_TRACE_UPROBE_MULTI.

    include/uapi/linux/bpf.h; the three arrays are of 64-bit numbers, cnt of each.
    """

    _fields_ = [
        ("prog_fd", c.c_uint32),
        ("target_fd", c.c_uint32),
        ("attach_type", c.c_uint32),
        ("link_flags", c.c_uint32),
        ("path", c.c_uint64),
        ("offsets", c.c_uint64),
        ("ref_ctr_offsets", c.c_uint64),
        ("cookies", c.c_uint64),
        ("cnt", c.c_uint32),
        ("flags", c.c_uint32),
        ("pid", c.c_uint32),  # 0: every process
        ("pad", c.c_uint32),
    ]


class PerfEventAttr(c.Structure):
    """struct perf_event_attr as far as PERF_ATTR_SIZE_VER1, linux/perf_event.h."""

    _fields_ = [
        ("type", c.c_uint32),
        ("size", c.c_uint32),
        ("config", c.c_uint64),
        ("sample_period", c.c_uint64),
        ("sample_type", c.c_uint64),
        ("read_format", c.c_uint64),
        ("flags", c.c_uint64),
        ("wakeup_events", c.c_uint32),
        ("bp_type", c.c_uint32),
        ("config1", c.c_uint64),  # of a uprobe: address of the path
        ("config2", c.c_uint64),  # of a uprobe: offset in the file
    ]


class LinkCreate(c.Structure):
    """struct bpf_link_create_opts for a perf event, <bpf/bpf.h>."""

    _fields_ = [
        ("sz", c.c_size_t),
        ("flags", c.c_uint32),
        ("iter_info", c.c_void_p),
        ("iter_info_len", c.c_uint32),
        ("target_btf_id", c.c_uint32),
        ("cookie", c.c_uint64),  # perf_event.bpf_cookie
    ]
