#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Debian packages and .venv: what `make setup` installs. Does nothing, fast,
# where all is there already. Starts no service.
set -eu
cd "$(dirname "$0")/.."
exec 9<tests/setup.sh && flock 9 # two at once would make one .venv

# What the guard runs on.
packages=(
	libbpf1 libnetfilter-log1 python3 python3-click python3-dnspython
	python3-iptables python3-nftables python3-psutil python3-pyroute2 python3-rich
	python3-systemd python3-tomlkit
)
# What compiles and packages it.
packages+=(
	clang debhelper dh-python gcc libbpf-dev libc6-dev linux-libc-dev lintian llvm
	make python3-pip python3-setuptools python3-venv python3-wheel rpm
)
# What tests and linters use: a real mail server, its clients, the network.
packages+=(
	apache2-bin apache2-utils bpftool clang-format curl haproxy iproute2 iptables
	libapache2-mod-php liburing-dev libsasl2-modules msmtp mypy nftables nginx-light
	nodejs openssl php-cli php-fpm postfix python3-aiosmtpd python3-hypothesis
	python3-pytest python3-pytest-xdist ruby sasl2-bin shellcheck strace swaks systemd
	systemtap-sdt-dev util-linux
)
# A name server, rewritten senders, and who checks SPF.
packages+=(bind9 bind9-utils postfix-policyd-spf-python postsrsd python3-spf)
# Other kinds of tables than the usual one.
packages+=(postfix-cdb postfix-lmdb)
# What reads the man pages, and the shells that complete.
packages+=(fish man-db mandoc zsh)
# What tests/vm makes and runs guests with.
packages+=(dpkg-dev e2fsprogs mmdebstrap qemu-system-x86)
# Not in Debian 12. Pinned: a new release must not turn a build red by itself.
ruff=0.17.5

missing() {
	local package
	declare -A installed=()
	while read -r package status; do
		[ "$status" = ii ] && installed[$package]=1
	done < <(dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n')
	for package in "${packages[@]}"; do
		[ -n "${installed[$package]:-}" ] || echo "$package"
	done
}

no_services() { # Debian's way to say it; an administrator's own file stays.
	[ -e /usr/sbin/policy-rc.d ] && return
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
}

apt() {
	apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 \
		-o Dpkg::Use-Pty=0 "$@" </dev/null
}

install_packages() {
	local wanted
	mapfile -t wanted < <(missing)
	[ ${#wanted[@]} -gt 0 ] || return 0
	echo "setup: installing ${wanted[*]}"
	export DEBIAN_FRONTEND=noninteractive
	no_services
	if [[ " ${wanted[*]} " == *" postfix "* ]]; then
		echo 'postfix postfix/main_mailer_type select No configuration' |
			debconf-set-selections
	fi
	compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null || apt update
	# Lists may be so old that the files they name are gone.
	apt install "${wanted[@]}" || { apt update && apt install "${wanted[@]}"; }
}

make_venv() { # Debian's Python, for Debian's modules: not one first in PATH
	local stamp=.venv/.complete
	[ $stamp -nt pyproject.toml ] && [ $stamp -nt setup.py ] &&
		[ $stamp -nt tests/setup.sh ] && .venv/bin/python -c '' && return
	echo 'setup: making .venv'
	rm -rf .venv
	/usr/bin/python3 -m venv --system-site-packages .venv
	.venv/bin/python -m pip install -q --no-index --no-build-isolation \
		--no-deps -e .
	# A developer's tool, and the one thing here not from Debian: its absence
	# must not stop a mail host's administrator. tests/house skips, and says so.
	.venv/bin/python -m pip install -q --no-deps --retries 1 --timeout 20 \
		"ruff==$ruff" ||
		echo "setup: no ruff $ruff from the package index: its checks will be skipped"
	touch $stamp
}

install_packages
make_venv
