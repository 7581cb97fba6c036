"""Keys and certificates of a rehearsal: they prove who the server is, and nobody else can read the secret halves."""

import datetime
import os
import socket
import ssl
import stat
import threading
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedq.runtime.credentials import write_certificates, write_node_key


@pytest.fixture
def organisation(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    write_certificates(folder)
    return folder


@pytest.fixture
def other(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    write_certificates(folder)
    return folder


def shake_hands(server, ca, *, name="localhost"):
    """A real TLS handshake between `server`'s certificate and a client that trusts `ca` and asks for `name`."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server / "server.pem", server / "server.key")
    trusting = ssl.create_default_context(cafile=ca)
    ours, theirs = socket.socketpair()

    def serve():
        with theirs, suppress(OSError):  # the client hangs up where it does not trust: what it is asked about
            serving.wrap_socket(theirs, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, trusting.wrap_socket(ours, server_hostname=name) as connection:
            return connection.getpeercert()
    finally:
        thread.join(10)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_ca_reaches_the_server_by_its_names(organisation, name):
    assert shake_hands(organisation, organisation / "ca.crt", name=name)


@pytest.mark.parametrize("name", ["example.org", "127.0.0.2"])
def test_the_server_is_nobody_else(organisation, name):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)mismatch"):
        shake_hands(organisation, organisation / "ca.crt", name=name)


def test_a_client_that_trusts_another_ca_hangs_up(organisation, other):
    with pytest.raises(ssl.SSLCertVerificationError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(organisation, other / "ca.crt")


def test_a_server_s_certificate_can_make_no_others(organisation):
    certificate = x509.load_pem_x509_certificate((organisation / "server.pem").read_bytes())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_certificates_hold_now_and_for_days_not_years(organisation):
    now = datetime.datetime.now(datetime.UTC)
    for name in ("ca.crt", "server.pem"):
        certificate = x509.load_pem_x509_certificate((organisation / name).read_bytes())
        assert certificate.not_valid_before_utc < now < certificate.not_valid_after_utc
        assert certificate.not_valid_after_utc - now <= datetime.timedelta(days=2)


def test_the_key_that_made_the_server_s_certificate_is_kept_nowhere(organisation):
    assert {p.name for p in organisation.iterdir()} == {"ca.crt", "server.pem", "server.key"}
    ca = x509.load_pem_x509_certificate((organisation / "ca.crt").read_bytes())
    kept = serialization.load_pem_private_key((organisation / "server.key").read_bytes(), None)
    assert kept.public_key() != ca.public_key()


def test_a_node_s_key_is_the_kind_that_flower_registers(tmp_path):
    write_node_key(tmp_path / "node")
    private = serialization.load_ssh_private_key((tmp_path / "node").read_bytes(), None)
    public = serialization.load_ssh_public_key((tmp_path / "node.pub").read_bytes())
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
    assert (tmp_path / "node.pub").read_text().startswith("ecdsa-sha2-nistp384 ")


def test_two_nodes_have_two_keys(tmp_path):
    for name in ("a", "b"):
        write_node_key(tmp_path / name)
    assert (tmp_path / "a.pub").read_bytes() != (tmp_path / "b.pub").read_bytes()


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_only_the_owner_may_read_a_secret_key(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_certificates(tmp_path)
        write_node_key(tmp_path / "node")
    finally:
        os.umask(before)
    for name in ("server.key", "node"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
