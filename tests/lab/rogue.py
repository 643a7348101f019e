# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that connect to a mail server past the host's own.

Each ends with 0 when it was greeted by the server, else non-zero with the
kernel's reason in what it prints.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.lab import HOST, Done, Lab

FOLDER = "/srv/www/shop.example/uploads"
PHP = """\
<?php // Left by whoever found the shop's forgotten upload form.
[, $host, $port] = $argv;
$mail = @fsockopen($host, (int)$port, $errno, $error, 10);
if (!$mail) { fwrite(STDERR, "$error\\n"); exit(1); }
exit(str_starts_with(fgets($mail), "220") ? 0 : 2);
"""
PYTHON = """\
import smtplib, sys
with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=10) as mail:
    mail.noop()
"""
BASH = """\
exec 3<>"/dev/tcp/$1/$2" && read -r greeting <&3 && [[ $greeting == 220* ]]
"""
SCRIPTS = {"cache.php": PHP, "campaign.py": PYTHON, "job.sh": BASH}


@dataclass(frozen=True)
class Rogue:
    """A program; {host} or {url} and {port} in argv are where it connects."""

    name: str
    argv: tuple[str, ...]
    ipv6: bool = True

    def run(self, lab: Lab, host: str, port: int = 25, where: str = HOST) -> Done:
        """Run it on the lab's host as the web server would."""
        url = f"[{host}]" if ":" in host else host
        for name, text in SCRIPTS.items():
            lab.write(f"{FOLDER}/{name}", text)
        return lab.run(
            [part.format(host=host, url=url, port=port) for part in self.argv],
            user="www-data",
            cwd=FOLDER,
            unit="system.slice/apache2.service",
            where=where,
        )


ROGUES = [
    Rogue("php", ("php", "cache.php", "{url}", "{port}")),
    Rogue("python", ("/usr/bin/python3", "campaign.py", "{host}", "{port}")),
    Rogue("bash", ("bash", "job.sh", "{host}", "{port}")),
    Rogue("curl", ("curl", "-sSv", "-X", "NOOP", "smtp://{url}:{port}")),
    # Debian's Perl speaks IPv6 only with one more package.
    Rogue("swaks", ("swaks", "-s", "{host}:{port}", "-q", "EHLO"), ipv6=False),
    Rogue("msmtp", ("msmtp", "--serverinfo", "--host={host}", "--port={port}")),
]
