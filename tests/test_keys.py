"""The files of CURVE: made for their owner alone, refused where others can read them, looked at again."""

import logging
import os
import stat
from pathlib import Path

import pytest
from zmq.utils import z85

from kvxfer.errors import ConfigError
from kvxfer.transport import CollectorKeys, PublisherKeys, make_keys
from kvxfer.transport.keys import LOOK_SECONDS


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A collector's keys with two clients."""
    make_keys(str(tmp_path / "keys"), ["one", "two"])
    return tmp_path / "keys"


def client(directory: Path, name: str = "one") -> PublisherKeys:
    return PublisherKeys.load(str(directory / "clients" / name))


def raw(directory: Path, name: str) -> bytes:
    return z85.decode(client(directory, name).public)


def test_what_is_made_is_for_its_owner_alone_and_fits_together(directory: Path) -> None:
    before = os.umask(0)
    try:
        make_keys(str(directory), ["three"])
    finally:
        os.umask(before)
    for path in (directory, *directory.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert os.umask(before) == before
    keys = CollectorKeys(str(directory))
    assert client(directory, "three").server == keys.public
    assert all(keys.is_authorized(raw(directory, name)) for name in ("one", "two", "three"))
    assert len({client(directory, name).secret for name in ("one", "two", "three")}) == 3


def test_nothing_is_overwritten_and_nothing_is_written_where_one_of_several_is_there(directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="has a key pair, which workers may use: add clients with --client"):
        make_keys(str(directory))
    with pytest.raises(ConfigError, match="clients/two: is there already: choose another name, or remove it first"):
        make_keys(str(directory), ["new", "two"])
    (directory / "clients" / "moved").mkdir()
    with pytest.raises(ConfigError, match="clients/moved: is there already"):
        make_keys(str(directory), ["moved"])
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "-rf", "x" * 101, "a b", "é", "a\n"])
def test_a_client_is_named_as_a_file_can_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected letters, digits"):
        make_keys(str(tmp_path / "keys"), ["good", name])
    assert not (tmp_path / "keys").exists()


def test_no_secret_is_in_what_a_log_may_show(directory: Path) -> None:
    keys = CollectorKeys(str(directory))
    assert repr(keys) == f"<CollectorKeys {directory} authorized=2 revoked=0>"
    assert keys.secret.decode() not in repr(keys)
    assert client(directory).secret.decode() not in repr(client(directory))


def damage(directory: Path, what: str) -> None:
    secret = directory / "server.key_secret"
    if what == "open":
        secret.chmod(0o640)
    elif what == "gone":
        secret.unlink()
    elif what == "empty":
        secret.write_text("")
    elif what == "no secret":
        secret.write_bytes((directory / "server.key").read_bytes())
    elif what == "of another pair":
        other = directory / "clients" / "one" / "client.key_secret"
        secret.write_text(
            secret.read_text().split("    secret")[0] + "    secret" + other.read_text().split("    secret")[1]
        )
    elif what == "torn":
        secret.write_bytes(secret.read_bytes()[:-20])
    elif what == "a line without a value":
        secret.write_text("public-key\n")
    elif what == "a bad client":
        (directory / "authorized" / "one.key").write_text('public-key = "%%%"\n')
    elif what == "writable":
        (directory / "authorized").chmod(0o777)
    elif what == "no clients":
        for file in (directory / "authorized").iterdir():
            file.unlink()
        (directory / "authorized").rmdir()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("open", "server.key_secret: others can read it: run chmod 600 on it"),
        ("gone", "server.key_secret: there is no such key: make keys with `kvxfer keygen`"),
        ("empty", "server.key_secret: holds no CURVE key: make keys"),
        ("no secret", "server.key_secret: holds no secret key that belongs to its public one"),
        ("of another pair", "server.key_secret: holds no secret key that belongs to its public one"),
        ("torn", "server.key_secret: holds no secret key that belongs to its public one"),
        ("a line without a value", "server.key_secret: holds no CURVE key"),
        ("a bad client", "authorized/one.key: holds no CURVE key"),
        ("writable", "authorized: others can write to it: run chmod go-w on it"),
        ("no clients", "authorized: No such file or directory: make keys"),
    ],
)
def test_keys_that_cannot_be_used_are_said_with_what_to_do(directory: Path, what: str, said: str) -> None:
    damage(directory, what)
    with pytest.raises(ConfigError) as error:
        CollectorKeys(str(directory))
    assert said in str(error.value)
    assert str(directory) in str(error.value)


def test_a_worker_needs_the_servers_key_and_a_directory(directory: Path) -> None:
    (directory / "clients" / "one" / "server.key").unlink()
    with pytest.raises(ConfigError, match=r"one/server\.key: there is no such key"):
        client(directory)
    with pytest.raises(ConfigError, match="nowhere: No such file or directory"):
        PublisherKeys.load(str(directory / "nowhere"))
    with pytest.raises(ConfigError, match=r"server\.key: is no directory"):
        PublisherKeys.load(str(directory / "server.key"))


def test_a_key_that_is_removed_counts_no_longer_at_its_next_handshake_and_is_told_once(directory: Path) -> None:
    keys = CollectorKeys(str(directory))
    one, two = raw(directory, "one"), raw(directory, "two")
    assert not keys.look(0.0)
    (directory / "authorized" / "one.key").unlink()
    assert (keys.is_authorized(one), keys.is_authorized(two), keys.revoked) == (False, True, {one})
    assert [keys.look(0.1), keys.look(0.2)] == [True, False]
    (directory / "authorized" / "two.key").unlink()
    assert [keys.look(LOOK_SECONDS - 0.1), keys.look(LOOK_SECONDS + 0.1)] == [False, True]


def test_a_key_that_is_added_or_comes_back_counts_within_a_second(directory: Path) -> None:
    file = directory / "authorized" / "one.key"
    one, content = raw(directory, "one"), file.read_bytes()
    file.unlink()
    keys = CollectorKeys(str(directory))
    file.write_bytes(content)
    assert not keys.look(LOOK_SECONDS)
    assert (keys.is_authorized(one), keys.revoked) == (True, frozenset())


def test_a_file_that_is_left_broken_lets_nobody_in_and_stops_nothing(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = CollectorKeys(str(directory))
    one, two = raw(directory, "one"), raw(directory, "two")
    (directory / "authorized" / "one.key").write_text("half a ke")
    (directory / "authorized" / "note.txt").write_text("no key at all")
    with caplog.at_level(logging.WARNING, "kvxfer"):
        assert keys.look(LOOK_SECONDS)
    assert (keys.is_authorized(one), keys.is_authorized(two)) == (False, True)
    assert "one.key: holds no CURVE key" in caplog.text


def test_keys_in_a_directory_that_is_gone_let_nobody_in(directory: Path) -> None:
    keys = CollectorKeys(str(directory))
    two = raw(directory, "two")
    (directory / "authorized").rename(directory / "elsewhere")
    assert keys.look(LOOK_SECONDS)
    assert not keys.is_authorized(two)
