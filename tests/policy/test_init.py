# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl policy init: the policy to begin with fits what is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from guard import doctor
from guard.abi import Mode
from guard.cli import policy as policy_verb
from guard.errors import NotWritten
from guard.policy import begin, load

SHIPPED = Path(__file__).resolve().parents[2] / "policies"
RULE = """\
[[rule]]
name = "{name}"
exe = "{exe}"
user = "{user}"
{unit}
verdict = "allow"
optional = true
"""


class Host:
    """A made-up host: folders of shipped policies, of units and of programs."""

    def __init__(self, top: Path, patch: pytest.MonkeyPatch) -> None:
        self.policies, self.units, self.programs = (
            top / name for name in ("policies", "units", "programs")
        )
        for folder in (self.policies, self.units, self.programs):
            folder.mkdir()
        shutil.copy(SHIPPED / "default.toml", self.policies)
        for module in ("begin", "source"):
            patch.setattr(f"guard.policy.{module}.SHIPPED", (self.policies,) * 2)
        patch.setattr(begin, "UNIT_FOLDERS", (self.units,))

    def ship(self, name: str, user: str = "root", unit: str = "") -> None:
        named = f'unit = "{unit}"' if unit else ""
        text = RULE.format(name=name, exe=self.programs / name, user=user, unit=named)
        (self.policies / f"{name}.toml").write_text(text)

    def install(self, name: str, unit: str = "") -> None:
        (self.programs / name).write_bytes(b"\x7fELF")
        if unit:
            (self.units / unit).touch()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def init(*argv: object) -> Result:
    return CliRunner().invoke(policy_verb.command, ["init", *map(str, argv)])


def test_it_includes_what_is_installed_and_nothing_else(host: Host) -> None:
    for name in ("exim", "sendmail"):
        host.ship(name)
    assert begin.fitting() == []
    host.install("exim")
    assert begin.fitting() == ["exim"]
    assert 'include = ["exim"]\n' in begin.beginning(begin.fitting())


def test_a_program_without_its_account_or_unit_is_not_the_mail_server(
    host: Host,
) -> None:
    host.ship("one", user="nobody-has-this-name")
    host.ship("two", unit="two@*.service")
    host.install("one")
    host.install("two", unit="three@x.service")
    assert begin.fitting() == []
    host.install("two", unit="two@.service")
    assert begin.fitting() == ["two"]


def test_an_alternative_is_left_to_the_admin(host: Host) -> None:
    host.ship("postfix-unit")
    host.install("postfix-unit")
    assert begin.fitting() == []


def test_where_nothing_is_found_what_is_known_stays(host: Host) -> None:
    assert begin.beginning([]) == (SHIPPED / "default.toml").read_text()


def test_the_file_is_whole_and_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "policy.toml"
    told = init(file)
    assert (told.exit_code, f"{file}: observe mode" in told.output) == (0, True)
    assert load(file).mode is Mode.OBSERVE
    assert [path.name for path in file.parent.iterdir()] == ["policy.toml"]
    file.write_text("# mine\n")
    again = init(file)
    assert isinstance(again.exception, NotWritten)
    assert again.exception.exit_status == 73
    assert file.read_text() == "# mine\n"
    assert [path.name for path in file.parent.iterdir()] == ["policy.toml"]


def test_printed_it_is_only_printed(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    text = init("--print", file).output
    told = json.loads(init("--print", "--json", file).output)
    assert told["text"] == text
    assert (told["file"], told["mode"]) == (None, "observe")
    assert not file.exists()


def test_what_ships_is_found_by_what_this_machine_has_installed() -> None:
    """make setup installs Postfix, and no other mail server."""
    assert begin.fitting() == ["postfix"]


def doctors(host: Host, text: str) -> dict[str, str]:
    """Give what doctor says of the mail system, under a policy that is not loaded."""
    file = host.policies.parent / "main.toml"
    file.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor.kernel, "policy_file", lambda _: file)
        (check,) = doctor._fitting(Path("/sys/fs/bpf/smtp-guard-not-there"))
    return {"state": check.state.value, "text": f"{check.detail}\n{check.remedy}"}


def test_doctor_tells_of_a_mail_server_that_was_installed_since(host: Host) -> None:
    host.ship("old")
    host.ship("new", unit="new.service")
    host.install("old")
    begun = begin.beginning(begin.fitting())
    assert doctors(host, begun)["state"] == "ok", "the control: as it was begun"
    host.install("new", "new.service")
    said = doctors(host, begun)
    assert said["state"] == "warn" and "no rule for it: new" in said["text"]
    assert 'add "new" to include' in said["text"]
    included = begun.replace('"old"', '"old", "new"')
    assert doctors(host, included)["state"] == "ok", "as it says"


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        ('exe = "{exe}"', "ok"),
        ('user = "root"', "ok"),
        ('unit = "new.service"', "ok"),
        ('exe = "{exe}"\nto = ["192.0.2.1"]', "ok"),  # a smart host is enough
        ('exe = "/usr/bin/true"', "warn"),
        ('user = "nobody"', "warn"),
        ('unit = "other.service"', "warn"),
        ('exe = "{exe}"\nunit = "other.service"', "warn"),
    ],
)
def test_a_rule_of_ones_own_is_as_good(host: Host, rule: str, state: str) -> None:
    host.ship("new", unit="new.service")
    host.install("new", "new.service")
    text = 'mode = "enforce"\n[[rule]]\nname = "own"\nverdict = "allow"\n'
    text += rule.format(exe=host.programs / "new") + "\n"
    assert doctors(host, text)["state"] == state
    denied = text.replace('"allow"', '"deny"')
    assert doctors(host, denied)["state"] == "warn"
