# SPDX-License-Identifier: GPL-2.0-or-later
"""What the origins of tests/mta/crowd.py run, each in a folder of its own.

A program says "ready", waits for a line, sends COUNT messages, and says of each its
sender, the PID that sent it, and the queue id where it was told one. NAME, COUNT, HOST
and PORT are put in before it is written.
"""

from __future__ import annotations

# By a socket: one connection a message, ten messages on one, all of a message at once
# (and no answer read before), or logged in.
_SMTP_PY = """\
import os, re, smtplib, socket, sys
style, to = sys.argv[1], "somebody@volume.example"
print("ready", flush=True); sys.stdin.readline()
def said(number, answer):
    print("sent", f"NAME.{number}@host.example.net", os.getpid(),
          re.search("queued as (\\\\w+)", answer)[1], flush=True)
def send(mail, number):
    mail.mail(f"NAME.{number}@host.example.net"), mail.rcpt(to)
    said(number, str(mail.data(f"Subject: {number}\\r\\n\\r\\nhello\\r\\n")))
if style == "pipelined":
    for number in range(COUNT):
        with socket.create_connection(("HOST", PORT), 120) as mail:
            mail.recv(1000)  # Postfix refuses who talks before it is greeted
            mail.sendall(f"EHLO x\\r\\nMAIL FROM:<NAME.{number}@host.example.net>\\r\\n"
                f"RCPT TO:<{to}>\\r\\nDATA\\r\\nSubject: {number}\\r\\n\\r\\n"
                "hello\\r\\n.\\r\\nQUIT\\r\\n".encode())
            mail.shutdown(socket.SHUT_WR)
            said(number, mail.makefile().read())
    sys.exit()
each = 10 if style == "several" else 1
for first in range(0, COUNT, each):
    with smtplib.SMTP("HOST", PORT, timeout=120) as mail:
        mail.ehlo("x")
        if style == "login":
            mail.login("app@host.example.net", sys.argv[2])
        for number in range(first, first + each):
            send(mail, number)
"""
# As mailer libraries do: no mail(), a socket of its own.
_SMTP_PHP = """\
<?php
if (PHP_SAPI === 'cli') { echo "ready\\n"; fgets(STDIN); }
for ($number = 0; $number < COUNT; $number++) {
    $from = "NAME.$number@host.example.net";
    $mail = fsockopen('HOST', PORT);
    $say = function ($line) use ($mail) {
        if ($line !== '') fwrite($mail, "$line\\r\\n");
        do { $answer = fgets($mail); } while ($answer[3] === '-');
        return trim($answer);
    };
    $say(''); $say('EHLO shop.example');
    $say("MAIL FROM:<$from>"); $say('RCPT TO:<somebody@volume.example>');
    $say('DATA'); $id = $say("Subject: order\\r\\n\\r\\nthanks\\r\\n."); $say('QUIT');
    fclose($mail);
    echo "sent $from ", getmypid(), " ", preg_replace('/.*queued as /', '', $id), "\\n";
}
"""
_SMTP_PL = """\
use strict; use Net::SMTP;
$| = 1; print "ready\\n"; <STDIN>;
for my $number (0 .. COUNT - 1) {
    my $from = "NAME.$number\\@host.example.net";
    my $mail = Net::SMTP->new("HOST", Port => PORT, Timeout => 120) or die;
    $mail->mail($from); $mail->to("somebody\\@volume.example"); $mail->data();
    $mail->datasend("Subject: $number\\n\\nhello\\n"); $mail->dataend();
    my ($id) = $mail->message() =~ /queued as (\\w+)/; $mail->quit();
    print "sent $from $$ $id\\n";
}
"""
_SMTP_BASH = """\
echo ready; read -r word
say() {
    [ -z "$1" ] || printf '%s\\r\\n' "$1" >&3
    while IFS= read -r line <&3; do [ "${line:3:1}" = - ] || break; done
}
for ((number = 0; number < COUNT; number++)); do
    from=NAME.$number@host.example.net
    exec 3<>/dev/tcp/HOST/PORT
    say ''; say 'EHLO x'; say "MAIL FROM:<$from>"
    say 'RCPT TO:<somebody@volume.example>'; say DATA
    say $'Subject: hello\\r\\n\\r\\nhello\\r\\n.'; line=${line##*queued as }
    echo "sent $from $$ ${line%$'\\r'}"
    say QUIT; exec 3>&-
done
"""
# By sendmail(1).
_MAIL_PHP = """\
<?php echo "ready\\n"; fgets(STDIN);
for ($number = 0; $number < COUNT; $number++) {
    $from = "NAME.$number@host.example.net";
    mail('somebody@volume.example', 'hello', 'hello', '', "-f$from");
    echo "sent $from ", getmypid(), "\\n";
}
"""
_MAIL_SH = """\
echo ready; read -r word
number=0
while [ $number -lt COUNT ]; do
    from=NAME.$number@host.example.net
    /usr/sbin/sendmail -i -f $from somebody@volume.example <mail
    echo "sent $from $$"
    number=$((number + 1))
done
"""
_MAIL_PL = """\
$| = 1; print "ready\\n"; <STDIN>;
for my $number (0 .. COUNT - 1) {
    my $from = "NAME.$number\\@host.example.net";
    open(my $mail, "|-", "/usr/sbin/sendmail", "-i", "-f", $from,
         "somebody\\@volume.example") or die;
    print $mail "Subject: hello\\n\\nhello\\n"; close($mail) or die;
    print "sent $from $$\\n";
}
"""
_MAIL_POPEN = """\
import os, sys
print("ready", flush=True); sys.stdin.readline()
for number in range(COUNT):
    sender = f"NAME.{number}@host.example.net"
    pipe = os.popen(f"/usr/sbin/sendmail -i -f {sender} somebody@volume.example", "w")
    pipe.write("Subject: hello\\n\\nhello\\n"); pipe.close()
    print("sent", sender, os.getpid(), flush=True)
"""
# Runs a program for each message: the arguments, with FROM for its sender.
_RUNS = """\
import os, re, subprocess, sys
print("ready", flush=True); sys.stdin.readline()
for number in range(COUNT):
    sender = f"NAME.{number}@host.example.net"
    argv = [word.replace("FROM", sender) for word in sys.argv[1:]]
    run = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
    out, _ = run.communicate(b"Subject: hello\\n\\nhello\\n")
    if run.returncode:
        sys.exit(f"{argv}: {out!r}")
    id = re.search(rb"queued as (\\w+)", out)
    own = "sendmail" in argv[0]  # its caller is who counts
    print("sent", sender, os.getpid() if own else run.pid, id[1].decode() if id else "",
          flush=True)
"""
_TO = "somebody@volume.example"
_RUN = ["/usr/bin/python3", "run.py"]


# By kind of origin: the file that its program is in, the program, and how it is
# started. The kinds begin with how a message goes: by SMTP, or handed in.
PROGRAMS: dict[str, tuple[str, str, list[str]]] = {
    "smtp each": ("send.py", _SMTP_PY, ["/usr/bin/python3", "send.py", "each"]),
    "smtp several": ("send.py", _SMTP_PY, ["/usr/bin/python3", "send.py", "several"]),
    "smtp pipelined": (
        "send.py",
        _SMTP_PY,
        ["/usr/bin/python3", "send.py", "pipelined"],
    ),
    "smtp login": ("send.py", _SMTP_PY, ["/usr/bin/python3", "send.py", "login"]),
    "smtp php": ("cart.php", _SMTP_PHP, ["/usr/bin/php", "cart.php"]),
    "smtp fpm": ("cart.php", _SMTP_PHP, []),
    "smtp perl": ("send.pl", _SMTP_PL, ["/usr/bin/perl", "send.pl"]),
    "smtp bash": ("send.sh", _SMTP_BASH, ["/bin/bash", "send.sh"]),
    "smtp curl": (
        "run.py",
        _RUNS,
        [*_RUN, "/usr/bin/curl", "-sv", "smtp://HOST:PORT", "--mail-from", "FROM"]
        + ["--mail-rcpt", _TO, "-T", "-"],
    ),
    "smtp msmtp": (
        "run.py",
        _RUNS,
        [*_RUN, "/usr/bin/msmtp", "--host=HOST", "--port=PORT", "--from=FROM", "-d"]
        + [_TO],
    ),
    "smtp swaks": (
        "run.py",
        _RUNS,
        [*_RUN, "/usr/bin/swaks", "--server", "HOST:PORT", "--from", "FROM"]
        + ["--to", _TO],
    ),
    "relayed nullmailer": (
        "run.py",
        _RUNS,
        [*_RUN, "/usr/bin/nullmailer-inject", "-f", "FROM", _TO],
    ),
    "relayed exim": (
        "run.py",
        _RUNS,
        [*_RUN, "/usr/sbin/exim4", "-odf", "-i", "-f", "FROM", _TO],
    ),
    "handed php": ("mail.php", _MAIL_PHP, ["/usr/bin/php", "mail.php"]),
    "handed sh": ("mail.sh", _MAIL_SH, ["/bin/sh", "mail.sh"]),
    "handed perl": ("mail.pl", _MAIL_PL, ["/usr/bin/perl", "mail.pl"]),
    "handed popen": ("mail.py", _MAIL_POPEN, ["/usr/bin/python3", "mail.py"]),
    "handed argv": (
        "run.py",
        _RUNS,
        [*_RUN, "/usr/sbin/sendmail", "-i", "-f", "FROM", _TO],
    ),
}
