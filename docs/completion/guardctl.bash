# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Completion of guardctl in bash: guardctl itself says what can stand here, one
# "type,value" a line (shell completion of click, which guardctl is made with).
# Installed as /usr/share/bash-completion/completions/guardctl.

_guardctl() {
	local kind value word words=()
	for word in "${COMP_WORDS[@]:0:COMP_CWORD}"; do
		# "--user=x" comes as three words
		[[ $word == = ]] || words+=("$word")
	done
	words+=("$2")
	COMPREPLY=()
	while IFS=, read -r kind value; do
		case $kind in
		plain) COMPREPLY+=("$value") ;;
		file) compopt -o default ;;
		dir) compopt -o dirnames ;;
		esac
	done < <(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
		_GUARDCTL_COMPLETE=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F _guardctl guardctl
