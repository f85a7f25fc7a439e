"""The study of a throttled link: what it asks of the system, which is not asked here."""

import subprocess

import pytest

from experiments.studies import throttled_link


@pytest.fixture
def asked(monkeypatch):
    """The commands that would have been run."""
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(list(command)))
    return commands


def test_both_namespaces_are_removed_whatever_happens_in_them(asked):
    with pytest.raises(ZeroDivisionError), throttled_link.two_namespaces() as names:
        _ = 1 / 0
    assert len(set(names)) == 2
    assert asked[:2] == [["ip", "netns", "add", name] for name in names]
    assert asked[-2:] == [["ip", "netns", "delete", name] for name in names]
    addresses = [command[5] for command in asked if "address" in command]
    assert addresses == ["10.79.0.1/24", "10.79.0.2/24"]


def test_the_link_is_throttled_and_freed_in_turns(asked):
    for rate in ("1gbit", None):
        assert throttled_link.at_rate(rate, lambda: [{"seconds": 2.0}, {"seconds": 3.0}]) == 3
    throttled, free = asked
    assert throttled[:3] == free[:3] == ["tc", "qdisc", "replace"]
    assert throttled[throttled.index("rate") + 1] == "1gbit"
    assert "rate" not in free
