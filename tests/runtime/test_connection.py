"""A SuperLink connection of Flower's config file: found, and known to answer, before anything is started."""

import socket

import pytest

from fedq.config import ConfigError
from fedq.runtime.connection import Connection, find, flwr_home


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def listener():
    """The address of a socket that accepts, as a SuperLink's does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent():
    """An address on which nobody listens: bound, so that nobody else takes it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def write(home, address, *, default=True, more=None):
    if more is None:
        (home / "ca.crt").write_text("a certificate")
        more = f'root-certificates = "{home / "ca.crt"}"\n'
    first = 'default = "mine"\n' if default else ""
    (home / "config.toml").write_text(f'[superlink]\n{first}[superlink.mine]\naddress = "{address}"\n{more}')


def test_a_connection_whose_superlink_listens_is_found_by_its_name(home, listener):
    write(home, listener, default=False)
    assert find("mine") == Connection("mine", listener)


def test_without_a_name_it_is_flower_s_default_one(home, listener):
    write(home, listener)
    assert find(None) == Connection("mine", listener)


def test_the_default_gives_way_to_a_name(home, listener, silent):
    write(home, silent, more=f'[superlink.other]\naddress = "{listener}"\n')
    assert find("other", insecure=True).address == listener


def test_a_name_of_a_host_is_an_address(home, listener):
    write(home, listener.replace("127.0.0.1", "localhost"))
    assert find(None).address.startswith("localhost:")


def test_an_address_of_ip_version_6_is_one(home):
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        write(home, f"[::1]:{server.getsockname()[1]}")
        assert find(None).name == "mine"


def test_a_certificate_that_is_there_is_no_obstacle(home, listener, tmp_path):
    (tmp_path / "ca.crt").write_text("a certificate")
    write(home, listener, more=f'root-certificates = "{tmp_path / "ca.crt"}"\n')
    assert find(None).name == "mine"


def test_a_certificate_with_a_relative_path_is_refused_as_flower_refuses_it(home, listener):
    (home / "ca.crt").write_text("a certificate")
    write(home, listener, more='root-certificates = "ca.crt"\n')
    with pytest.raises(ConfigError, match="root-certificates"):
        find(None)


# --- what is refused -----------------------------------------------------------------------------------


def test_without_a_config_file_there_is_no_connection_of_that_name(home):
    with pytest.raises(
        ConfigError, match=r"runtime\.connection=mine: there is no such SuperLink connection.*knows none"
    ):
        find("mine")


def test_without_a_config_file_there_is_no_default(home):
    with pytest.raises(ConfigError, match="has no default connection"):
        find(None)


def test_a_config_without_a_default_needs_a_name_and_lists_those_there_are(home, listener):
    write(home, listener, default=False)
    with pytest.raises(ConfigError, match=r"has no default connection.*knows mine"):
        find(None)


def test_an_unknown_name_is_refused_with_those_that_are_known(home, listener):
    write(home, listener)
    with pytest.raises(ConfigError, match=r"runtime\.connection=mnie: there is no such.*knows mine"):
        find("mnie")


def test_the_key_default_is_no_connection(home, listener):
    write(home, listener)
    with pytest.raises(ConfigError, match=r"runtime\.connection=default: there is no such"):
        find("default")


@pytest.mark.parametrize("content", [b"[superlink\n", b"\xff\xfe\x00", b"a = \n"])
def test_a_damaged_file_is_named(home, content):
    (home / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read.*Fix the file"):
        find("mine")


def test_a_folder_in_the_place_of_the_file_is_reported(home):
    (home / "config.toml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        find("mine")


@pytest.mark.parametrize("content", ["superlink = 3\n", 'superlink = "mine"\n', "[[superlink]]\nx = 1\n"])
def test_connections_that_are_no_table_are_reported(home, content):
    (home / "config.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        find("mine")


def test_a_default_that_is_no_text_is_reported(home, listener):
    (home / "config.toml").write_text(f'[superlink]\ndefault = ["mine"]\n[superlink.mine]\naddress = "{listener}"\n')
    with pytest.raises(ConfigError, match="there is no such SuperLink connection"):
        find(None)


@pytest.mark.parametrize("address", [":local:", ":local-in-memory:"])
def test_flower_s_simulation_is_no_superlink(home, address):
    write(home, address)
    with pytest.raises(ConfigError, match=f"its address is {address}.*Use runtime=ray"):
        find(None)


def test_a_connection_without_an_address_is_refused(home):
    (home / "config.toml").write_text("[superlink.mine]\ninsecure = true\n")
    with pytest.raises(ConfigError, match="its address is not set"):
        find("mine")


@pytest.mark.parametrize("address", ["localhost", "localhost:", "localhost:http", "127.0.0.1:-1", "http://host"])
def test_an_address_without_a_port_is_refused(home, address):
    write(home, address)
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        find(None)


def test_a_port_that_no_machine_has_is_refused(home):
    write(home, "127.0.0.1:70000")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:70000"):
        find(None)


def test_a_certificate_that_is_missing_is_named(home, listener):
    write(home, listener, more='root-certificates = "/nowhere/ca.crt"\n')
    with pytest.raises(ConfigError, match=r"its root-certificates /nowhere/ca\.crt are not there.*config\.toml"):
        find(None)


def test_where_nobody_listens_the_address_is_named(home, silent):
    write(home, silent)
    with pytest.raises(ConfigError, match=f"no SuperLink answers at {silent}.*Start it"):
        find(None)


# --- where Flower's config lies ------------------------------------------------------------------------


def test_flower_s_folder_is_what_its_variable_says(home):
    assert flwr_home() == home


def test_without_the_variable_it_is_the_user_s_own(tmp_path, monkeypatch):
    monkeypatch.delenv("FLWR_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert flwr_home() == tmp_path / ".flwr"


# --- what is not encrypted ----------------------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("", "names no certificates"),
        ("insecure = true\n", "is marked insecure"),
        ('insecure = true\nroot-certificates = "{ca}"\n', "is marked insecure"),
    ],
)
def test_a_connection_that_is_not_secure_is_refused_unless_it_is_asked_for(home, listener, more, why):
    (home / "ca.crt").write_text("a certificate")
    write(home, listener, more=more.format(ca=home / "ca.crt"))
    with pytest.raises(ConfigError, match=rf"runtime\.connection=mine: {why}.*--insecure"):
        find(None)
    assert find(None, insecure=True) == Connection("mine", listener, secure=False)
