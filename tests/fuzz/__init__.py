# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that takes input, fed what nobody would send.

targets.py is the table: a new input is one line there. `make test` runs each target
over corpus/TARGET/ and over inputs.py's made-up ones; `make fuzz` looks for more with
coverage as its guide, and keeps what it finds in corpus/.
"""
