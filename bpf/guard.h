/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The contract between the kernel programs and guard/abi.py: what an event,
 * a policy and every map row look like. Nothing here is kernel-only or
 * user-only. guard/abi.py mirrors it and refuses an object whose BTF differs
 * (tests/test_abi.py names the first field that does).
 *
 * Rules of the contract:
 *  - Zero denies. Every enum's 0 is the strict answer, so a zero-filled row,
 *    slot or map can only refuse.
 *  - Numbers are host byte order, addresses are 16 bytes in network order with
 *    IPv4 as ::ffff:a.b.c.d, times are CLOCK_BOOTTIME nanoseconds.
 *  - Any change of a layout or of a meaning moves GUARD_ABI. Numbers of enums
 *    are retired, never reused: they stand in journals for years.
 */
#ifndef GUARD_H
#define GUARD_H

#define GUARD_ABI 4

#define MAX_ROWS 512  /* rule rows a policy may need; a rule takes one a unit */
#define MASK_WORDS 8  /* MAX_ROWS / 64 */
#define UNIT_DEPTH 12 /* components of a cgroup path that a rule can name */
#define UNIT_TAILS 4  /* enum unit_tail */
#define NAME_LEN 64   /* a path component a rule can name, with its NUL */
#define COMM_LEN 16   /* TASK_COMM_LEN, include/linux/sched.h */
#define ANCESTORS 8   /* parents recorded with an event */
#define MANY_BURSTS 20	  /* reports of one identity a window, in bursts */
#define COMPONENT_LEN 256 /* NAME_MAX and its NUL */
/* Limits of the texts. Paths: components, leaf first, a NUL after each. */
#define EXE_LEN 512
#define CWD_LEN 640
#define CGROUP_LEN 384
#define ARGS_LEN 896
/* Of a request of PHP's: three texts, a NUL after each. */
#define SCRIPT_LEN 384
#define URI_LEN 192
#define METHOD_LEN 16
#define REQUEST_LEN (SCRIPT_LEN + URI_LEN + METHOD_LEN)
#define TEXT_LEN (EXE_LEN + CWD_LEN + CGROUP_LEN + ARGS_LEN + REQUEST_LEN)

enum verdict {
	VERDICT_DENY = 0,
	VERDICT_ALLOW = 1,
	VERDICT_REDIRECT = 2, /* to the host's own mail server */
};

enum mode {
	MODE_ENFORCE = 0,
	MODE_OBSERVE = 1, /* nothing is denied; the event says what would be */
};

enum direction {
	DIRECTION_OUTBOUND = 0,
	DIRECTION_LOCAL = 1, /* the destination is an address of this host */
};

enum event_kind {
	EVENT_CONNECT = 1, /* a judged connect(), sent once */
	EVENT_CLOSED =
		2, /* the end of a connection whose EVENT_CONNECT was sent */
	EVENT_TAMPER = 3,  /* somebody reached for the guard itself, see act */
	EVENT_KEEPER = 4,  /* a process said that it is one of our programs */
	EVENT_MAKER = 5,   /* only in struct maker, in no ring */
	EVENT_STARTED = 6, /* a program was started; only in struct handin */
};

/* What was reached for: struct event.act of EVENT_TAMPER. */
enum act {
	ACT_NONE = 0,
	ACT_MAP = 1,	/* a map's rows: written, deleted, frozen, mapped */
	ACT_LINK = 2,	/* detached, or given another program */
	ACT_PIN = 3,	/* removed or renamed, or their folder was */
	ACT_UMOUNT = 4, /* the file system of the pins was unmounted */
};

/* What becomes of who does so without being one of our programs. */
enum protection {
	PROTECTION_DENY = 0, /* EPERM, and recorded */
	PROTECTION_RECORD = 1,
	PROTECTION_OFF = 2,
};

/* How far the connection came. */
enum outcome {
	OUTCOME_DENIED = 0,	 /* EPERM, no packet */
	OUTCOME_SYN_SENT = 1,	 /* source port known, SYN about to leave */
	OUTCOME_ESTABLISHED = 2, /* only in struct owner: still open */
	OUTCOME_CLOSED = 3,	 /* was established, has ended */
	OUTCOME_REFUSED = 4,	 /* ECONNREFUSED */
	OUTCOME_TIMED_OUT = 5,	 /* ETIMEDOUT */
	OUTCOME_FAILED = 6,	 /* any other error after the SYN */
	OUTCOME_NOT_SENT = 7,	 /* let pass, but no SYN left (no route) */
};

/* struct event.flags: what is not whole, and what kind of caller it was. */
enum event_flag {
	FLAG_EXE_CUT = 1 << 0, /* text longer than its limit */
	FLAG_CWD_CUT = 1 << 1,
	FLAG_ARGS_CUT = 1 << 2,
	FLAG_CGROUP_CUT = 1 << 3,
	FLAG_ANCESTORS_CUT = 1 << 4, /* more parents than ANCESTORS */
	FLAG_NO_EXE = 1 << 5,	     /* no executable: a kernel thread */
	FLAG_NO_ARGS = 1 << 6,	     /* arguments paged out or unmapped */
	FLAG_KTHREAD = 1 << 7,
	FLAG_NO_STORAGE = 1 << 8, /* no source port, no end: none to be had */
	FLAG_FOREIGN_NETNS = 1 << 9, /* not the guard's own network namespace */
	FLAG_FOREIGN_USERNS = 1 << 10, /* it may have set its executable */
	FLAG_EXE_SET = 1 << 11,	       /* it did: set, not executed */
	FLAG_NO_ROOM = 1 << 12, /* denied: it left no room for its record */
	FLAG_FOREIGN_MOUNTS = 1 << 13, /* a path was made up by a user */
	FLAG_LSM = 1 << 14,	       /* denied by the lock in the LSM */
	FLAG_MANY = 1 << 15,	 /* a sum over destinations: dst is the first */
	FLAG_CWD_GONE = 1 << 16, /* its folder has been removed */
	FLAG_REQUEST_CUT = 1 << 17, /* longer than its limit, or unreadable */
	FLAG_PARENT_REQUEST = 1 << 18, /* of what started it, not its own */
};

enum dimension {
	DIMENSION_UID = 0,
	DIMENSION_GID = 1,
	DIMENSION_PORT = 2,
};

/* What a unit name ends in; a pattern `head*tail` is LPM on head, and this. */
enum unit_tail {
	TAIL_OTHER = 0,
	TAIL_SERVICE = 1,
	TAIL_SLICE = 2,
	TAIL_SCOPE = 3,
};

/*
 * judged == events + folded + quiet + held + every LOST_*, at any moment in
 * which no connect() is inside the hook.
 */
enum counter {
	COUNT_JUDGED = 0,    /* connects to a guarded port */
	COUNT_EVENTS = 1,    /* EVENT_CONNECT put into the ring */
	COUNT_FOLDED = 2,    /* repeats counted in a fold row */
	COUNT_QUIET = 3,     /* let pass by a rule that asks for no finding */
	COUNT_HELD = 4,	     /* let pass, not yet reported: no SYN so far */
	COUNT_LOST_RING = 5, /* EVENT_CONNECT: the ring was full */
	COUNT_LOST_CLOSED =
		6,	  /* EVENT_CLOSED: the ring was full (not in the sum) */
	COUNT_CLOSED = 7, /* EVENT_CLOSED put into the ring */
	COUNT_DENIED = 8, /* refused with EPERM */
	COUNT_WOULD_DENY = 9, /* observe: would have been refused */
	COUNT_ALLOWED = 10,
	COUNT_REDIRECTED = 11,
	COUNT_LOCAL = 12, /* judged with DIRECTION_LOCAL (any verdict) */
	COUNT_NO_STORAGE =
		13, /* socket storage refused; event sent without port */
	COUNT_NO_OWNER = 14,	 /* owners map full: connection not in it */
	COUNT_NO_FOLD = 15,	 /* folds map full: repeat sent as an event */
	COUNT_NO_MARK = 16,	 /* let pass, but the socket took no mark */
	COUNT_TOUCHED = 17,	 /* EVENT_TAMPER, EVENT_KEEPER: into the ring */
	COUNT_LOST_TOUCHED = 18, /* and those for which it was full */
	COUNT_NO_MAKER =
		19, /* makers map full: a socket's maker is not in it */
	COUNT_NO_REQUEST = 20, /* requests map full: PHP's request not in it */
	COUNTERS = 21,
};

struct mask {
	unsigned long long word[MASK_WORDS];
};

/* ---- what user space writes, slot 0 or 1; control.slot names the live one */

/*
 * A file by its inode (name empty), or by the name it has in a directory
 * (inode is the directory's). The second key follows a package upgrade with no
 * gap; neither can be made by anybody but root, see match_exe().
 */
struct exe_key {
	unsigned long long inode;
	unsigned int device;	 /* super_block.s_dev, as the kernel has it */
	unsigned int generation; /* of the inode; 0 in a key by name */
	unsigned int slot;
	unsigned int pad;
	char name[NAME_LEN];
};

struct number_key { /* uid, gid, port */
	unsigned int slot;
	unsigned int dimension;
	unsigned int number;
};

struct unit_key { /* LPM: slot_depth, then the component with its NUL */
	unsigned int prefixlen;	 /* bits after this field */
	unsigned int slot_depth; /* slot << 16 | depth, depth 0 below the root */
	char name[NAME_LEN];
};

struct prefix_key { /* LPM: slot, then the destination */
	unsigned int prefixlen;
	unsigned int slot;
	unsigned char address[16];
};

struct rule {
	unsigned int number;   /* as in the policy file, from 0 */
	unsigned char verdict; /* enum verdict */
	unsigned char quiet;   /* let pass without a finding */
	unsigned short pad;
};

struct target {
	unsigned char address[16];
	unsigned short port;
	unsigned char
		set; /* 0: this family cannot be redirected, deny instead */
	unsigned char pad[5];
};

/* What a row bit means where a dimension has no row of its own. */
struct policy {
	unsigned int mode;
	unsigned int rules; /* as in the file: the journal's upper bound */
	unsigned int local_default; /* enum verdict, no local rule matched */
	unsigned int local_quiet;   /* 1: local connections make no finding */
	unsigned int denied_burst; /* findings of an identity a window, denied */
	unsigned int passed_burst;    /* likewise, let pass or local */
	unsigned long long window_ns; /* of folding; 0: never fold */
	/*
	 * What is let pass to another host carries these bits in SO_MARK, for
	 * netfilter to see that it was judged. 0: no second lock, no mark.
	 */
	unsigned int mark;
	unsigned int protection; /* enum protection, where the LSM is in force */
	struct target redirect4;
	struct target redirect6;
	struct mask direction[2]; /* rows of [[rule]] and of [[local.rule]] */
	struct mask any_uid;
	struct mask any_gid;
	struct mask any_exe;
	struct mask any_to;
	struct mask any_port;
	struct mask any_unit[UNIT_DEPTH]; /* rows not naming that depth */
	struct mask unit_tail[UNIT_DEPTH][UNIT_TAILS];
	struct mask unit_ends[UNIT_DEPTH + 1]; /* pattern at most so deep */
	unsigned char sha256[32]; /* of the policy, includes and all */
};

/* ---- one word that all programs read */

struct control {
	unsigned int slot; /* of policies, and of every key */
	unsigned int abi;
	unsigned long long home_netns; /* cookie of the guard's own */
	/* a slot; bit set: the port is not guarded. Zero-filled: every port is. */
	unsigned long long unguarded[2][65536 / 64];
	/*
	 * bit set: no connection to the port is followed. Bits are only cleared:
	 * the ports of all policies so far, and those redirected to.
	 */
	unsigned long long unfollowed[65536 / 64];
};

/* ---- what the kernel writes */

struct endpoint {
	unsigned char address[16];
	unsigned short port;
	unsigned short pad[3];
};

struct ancestor {
	unsigned long long start_ns;
	unsigned int pid;
	unsigned int uid;
	char comm[COMM_LEN];
};

struct event {
	unsigned short abi; /* GUARD_ABI */
	unsigned char kind;
	unsigned char verdict; /* of the rule, whatever the mode */
	unsigned char mode;
	unsigned char direction;
	unsigned char outcome;
	unsigned char ancestors; /* entries in use */
	unsigned int rule;	 /* number in the file; NO_RULE: none matched */
	unsigned int flags;
	unsigned long long seq; /* one up for every event, a gap is a loss */
	unsigned long long connection;	   /* unique since boot */
	unsigned long long time_ns;	   /* of the connect() */
	unsigned long long established_ns; /* 0: never */
	unsigned long long ended_ns;	   /* EVENT_CLOSED */
	unsigned long long bytes_sent; /* acknowledged or not, without resends */
	unsigned long long bytes_received;
	struct endpoint src; /* port 0: not chosen yet */
	struct endpoint dst; /* as the program asked */
	struct endpoint via; /* redirected: where it went instead; else port 0 */
	unsigned long long start_ns; /* of the process */
	unsigned long long cgroup_id;
	unsigned long long netns_cookie;
	unsigned long long exe_inode;
	unsigned int exe_device;
	unsigned int exe_generation;
	unsigned int exe_nlink; /* 0: deleted, or a memfd */
	unsigned int netns;	/* inode of /proc/PID/ns/net */
	unsigned int pid;
	unsigned int tid;
	unsigned int uid; /* effective, in the initial user namespace */
	unsigned int gid;
	unsigned int real_uid;
	unsigned int real_gid;
	unsigned int loginuid; /* ~0: not set */
	unsigned int session;  /* audit session, ~0: not set */
	unsigned int error;    /* errno that ended the connection */
	unsigned int act;      /* enum act; EVENT_TAMPER */
	char comm[COMM_LEN];
	struct ancestor ancestor[ANCESTORS]; /* parent first */
	/* lengths of the five texts, which stand in text[] in this order */
	unsigned short exe_len;
	unsigned short cwd_len;
	unsigned short cgroup_len;
	unsigned short args_len;
	unsigned short
		request_len; /* script, URI, method; 0: no request known */
	char text[TEXT_LEN + COMPONENT_LEN]; /* room to write a last component */
};

#define NO_RULE 0xffffffffU

/* Whose connection is this? From the SYN to the end, src as in the packets. */
struct owner_key {
	unsigned long long netns_cookie;
	struct endpoint src;
	struct endpoint dst; /* as in the packets: a redirect's target */
};

/*
 * Repeats of one identity + verdict + destination within one window; FOLD_MANY in
 * direction, and no address: of all its destinations that have no row.
 */
#define FOLD_MANY 0x80
struct fold_key {
	unsigned long long window; /* number since boot: time / window_ns */
	unsigned long long start_ns;
	unsigned int pid;
	unsigned int uid;
	unsigned int rule;
	unsigned char verdict;
	unsigned char direction;
	unsigned short port;
	unsigned char address[16];
	unsigned long long exec_id; /* another program since, another identity */
	unsigned long long script; /* hash of its name; 0: no request of PHP's */
};

struct fold {
	unsigned long long folded; /* connects that made no event */
	unsigned long long last_ns;
	struct event first; /* of those */
};

/*
 * Who made a socket that can send packets of its own making, and so needs no
 * connect(): raw sockets, and packet sockets where the LSM tells of them. The
 * event has the maker, time_ns of then, and ended_ns: when it was closed, or 0.
 */
struct maker {
	unsigned long long socket; /* inode, as in /proc/net/raw */
	unsigned int family;	   /* AF_INET, AF_INET6, AF_PACKET */
	unsigned int protocol;
	unsigned int fsuid; /* what netfilter says of its packets */
	unsigned int fsgid;
	struct event event;
};

/* ---- arguments of the two programs that user space runs by hand */

/* identify: what the kernel knows of an open file of the caller. */
struct identity {
	int fd;
	int error; /* 0, or negative errno */
	struct exe_key inode;
	struct exe_key name;
	unsigned int uid;
	unsigned int mode;
	unsigned int nlink;
	unsigned int pad;
};

/* judge: the verdict for a made-up caller, with the live rows of `slot`. */
struct question {
	unsigned int slot;
	unsigned int direction;
	unsigned int uid;
	unsigned int gid;
	struct exe_key inode;
	struct exe_key name;
	unsigned int depth; /* components in use */
	unsigned int port;
	unsigned char address[16];
	char component[UNIT_DEPTH][NAME_LEN]; /* root first */
	unsigned int trusted; /* exe is root's and nobody else can write it */
	unsigned int verdict; /* answer */
	unsigned int rule;    /* answer */
	unsigned int quiet;   /* answer */
};

#endif
