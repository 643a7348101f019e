# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Completion of guardd in bash.
# Installed as /usr/share/bash-completion/completions/guardd.

_guardd() {
	local option=${COMP_WORDS[COMP_CWORD - 1]}
	# "--design=x" comes as three words
	[[ $option == = ]] && option=${COMP_WORDS[COMP_CWORD - 2]}
	COMPREPLY=()
	case $option in
	--policy) compopt -o default ;;
	--cgroup | --pin-dir) compopt -o dirnames ;;
	--design) mapfile -t COMPREPLY < <(compgen -W 'auto bpf owner' -- "$2") ;;
	--ring-bytes) mapfile -t COMPREPLY < <(compgen -W '4194304 16777216 67108864' -- "$2") ;;
	*)
		mapfile -t COMPREPLY < <(compgen -W '--policy --cgroup --pin-dir --ring-bytes
			--design --resolve --foreground --version --help' -- "$2")
		;;
	esac
}

complete -F _guardd guardd
