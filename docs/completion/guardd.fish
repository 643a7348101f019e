# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of guardd in fish. Installed in /usr/share/fish/vendor_completions.d.

complete -c guardd -f
complete -c guardd -l policy -r -F -d 'policy to put in force'
complete -c guardd -l cgroup -x -a '(__fish_complete_directories (commandline -ct))' -d 'cgroup2 folder to guard'
complete -c guardd -l pin-dir -x -a '(__fish_complete_directories (commandline -ct))' -d 'where the guard is pinned'
complete -c guardd -l ring-bytes -x -a '4194304 16777216 67108864' -d 'size of a new ring, a power of two'
complete -c guardd -l design -x -a 'auto bpf owner' -d 'with kernel programs, or without'
complete -c guardd -l resolve -d 'only look up the smart host'
complete -c guardd -l foreground -d 'also print what is journalled'
complete -c guardd -l version -d 'show the version'
complete -c guardd -s h -l help -d 'show help'
