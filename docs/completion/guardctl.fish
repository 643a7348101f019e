# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of guardctl in fish: guardctl itself says what can stand here, one
# "type,value" and its help a line (shell completion of click, which guardctl is
# made with). Installed in /usr/share/fish/vendor_completions.d.

function __guardctl_candidates
    set -l token (commandline -ct)
    # of "--user=x" fish wants the whole word back
    set -l option (string match -r -- '^--[a-z-]+=' $token; or echo)
    set -lx COMP_WORDS (commandline -cp)
    set -lx COMP_CWORD $token
    set -lx _GUARDCTL_COMPLETE fish_complete
    for line in (command guardctl 2>/dev/null)
        set -l parts (string split -m 1 -- , $line)
        switch $parts[1]
            case plain
                printf '%s\n' $option$parts[2]
            case file
                __fish_complete_path $token
            case dir
                __fish_complete_directories $token
        end
    end
end

complete -c guardctl -f -a '(__guardctl_candidates)'
