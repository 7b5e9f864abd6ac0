"""TLS of associations, those that peers open and those that the adapter opens; and peers that fall silent."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove

from adapters.dimse.config import ConfigurationError, PeerTls, Tls
from adapters.dimse.tls import client_context, server_context
from devhost.azurite import free_ports
from tests.certificates import Authority, Identity
from tests.conftest import ROOT, Server
from tests.dicom_files import make_file
from tests.dimse_adapter import TITLE, Adapter, associated, dataset_bytes, run_tool, running, send
from tests.tools import tool

MOVE = StudyRootQueryRetrieveInformationModelMove


@dataclass
class Peers:
    """Destinations of C-MOVE, an adapter that knows them, and a study that it moves."""

    adapter: Adapter
    received: Path
    sent: Path
    study: str
    uid: str
    heard: bytearray


@contextlib.contextmanager
def storescp(folder: Path, port: int, identity: Identity, authority: Authority) -> Iterator[None]:
    """dcmtk's storescp, which asks for a certificate and writes what it gets into ``folder``."""
    command = [
        tool("storescp"),
        "+B",
        "-od",
        str(folder),
        "+tls",
        str(identity.key),
        str(identity.certificate),
    ]
    process = subprocess.Popen([*command, "+cf", str(authority.certificate), str(port)])
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def listener(heard: bytearray) -> Iterator[int]:
    """A port that speaks no TLS: it keeps what it hears, and answers nothing."""

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(1)
                    with contextlib.suppress(OSError):
                        while data := connection.recv(65536):
                            heard.extend(data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def peers(server: Server, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    folder = tmp_path_factory.mktemp("tls")
    stranger = Authority(folder, "stranger")
    here, elsewhere = authority.issue("here"), authority.issue("elsewhere", host="elsewhere.example")
    client, of_stranger = authority.issue("client"), stranger.issue("of-stranger")
    ports, heard = free_ports(), bytearray()
    (received := folder / "received").mkdir()
    shown = f'certificate = "{client.certificate}", key = "{client.key}"'
    ca, other_ca = f'ca = "{authority.certificate}"', f'ca = "{stranger.certificate}"'
    strange = f'certificate = "{of_stranger.certificate}", key = "{of_stranger.key}"'
    with listener(heard) as deaf:
        destinations = {
            "SECURE": (ports[0], f"{{ {ca}, {shown} }}"),
            "ANY_HOST": (ports[1], f"{{ {ca}, {shown}, check_host = false }}"),
            "OTHER_CA": (ports[0], f"{{ {other_ca}, {shown} }}"),
            "OTHER_HOST": (ports[1], f"{{ {ca}, {shown} }}"),
            "NO_CERTIFICATE": (ports[0], f"{{ {ca} }}"),
            "OF_STRANGER": (ports[0], f"{{ {ca}, {strange} }}"),
            "PLAIN": (deaf, f"{{ {ca} }}"),
            "AWAY": (ports[2], f"{{ {ca} }}"),
        }
        extra = "".join(
            f'[[destinations]]\nae_title = "{title}"\nhost = "127.0.0.1"\nport = {port}\ntls = {tls}\n'
            for title, (port, tls) in destinations.items()
        )
        study, uid = generate_uid(), generate_uid()
        sent = folder / "sent.dcm"
        sent.write_bytes(make_file(study, generate_uid(), uid, frames=0))
        with (
            storescp(received, ports[0], here, authority),
            storescp(received, ports[1], elsewhere, authority),
            running(folder / "adapter", f"{server.v2}/partitions/tls", extra=extra) as adapter,
        ):
            assert send(adapter.port, [sent]) == [0]
            adapter.wait_until_empty()
            yield Peers(adapter, received, sent, study, uid, heard)


def move(port: int, destination: str, **keys: str) -> tuple[Dataset, Dataset | None]:
    """The last answer of a C-MOVE, and the identifier in it."""
    ae = AE()
    ae.add_requested_context(MOVE)
    association = ae.associate("127.0.0.1", port, ae_title=TITLE)
    query = Dataset()
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    answers = list(association.send_c_move(query, destination, MOVE))
    association.release()
    return answers[-1]


def move_study(peers: Peers, destination: str) -> tuple[Dataset, Dataset | None]:
    """Move the study to a destination that has received nothing yet; the last answer."""
    for left in peers.received.iterdir():
        left.unlink()
    return move(peers.adapter.port, destination, QueryRetrieveLevel="STUDY", StudyInstanceUID=peers.study)


@pytest.mark.parametrize("destination", ["SECURE", "ANY_HOST"])
def test_instances_move_by_tls_to_a_destination_that_asks_for_a_certificate(
    peers: Peers, destination: str
) -> None:
    status, _ = move_study(peers, destination)
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0, 1)
    (got,) = peers.received.iterdir()
    assert dataset_bytes(got) == dataset_bytes(peers.sent)


@pytest.mark.parametrize(
    "destination", ["OTHER_CA", "OTHER_HOST", "NO_CERTIFICATE", "OF_STRANGER", "PLAIN", "AWAY"]
)
def test_a_destination_that_is_not_trusted_or_not_there_gets_nothing_and_every_suboperation_failed(
    peers: Peers, destination: str
) -> None:
    status, identifier = move_study(peers, destination)
    assert status.Status == 0xA702
    assert (status.NumberOfFailedSuboperations, status.NumberOfCompletedSuboperations) == (1, 0)
    assert identifier is not None
    assert identifier.FailedSOPInstanceUIDList == peers.uid
    assert list(peers.received.iterdir()) == []
    if destination == "PLAIN":
        assert peers.heard[:2] == b"\x16\x03", "a TLS handshake"
        for word in ("PLAIN", TITLE, peers.uid, peers.study):
            assert word.encode() not in peers.heard


def test_a_move_that_breaks_the_model_says_so_and_opens_no_association(peers: Peers) -> None:
    status, _ = move(peers.adapter.port, "SECURE", QueryRetrieveLevel="SERIES", SeriesInstanceUID="1.2")
    assert status.Status == 0xA900


# --- associations that peers open ----------------------------------------------------------------------


def test_the_listener_asks_for_a_client_certificate_where_it_is_configured(
    server: Server, authority: Authority, tmp_path: Path
) -> None:
    identity, client = authority.issue("listener"), authority.issue("modality")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    tls = (
        f'[tls]\ncertificate = "{identity.certificate}"\nkey = "{identity.key}"\n'
        f'client_ca = "{authority.certificate}"\n'
    )
    options = {"extra": tls, "listener": "idle_seconds = 3\n"}
    with running(tmp_path / "adapter", server.v2, **options) as adapter:
        silent = socket.create_connection(("127.0.0.1", adapter.port))
        midway = socket.create_connection(("127.0.0.1", adapter.port))
        midway.sendall(b"\x16\x03\x01\x02\x00\x01")
        began = time.monotonic()
        with associated(adapter.port, tls_args=(context, "127.0.0.1")) as association:
            assert not association.is_established or not association.send_c_echo()
        context.load_cert_chain(client.certificate, client.key)
        with associated(adapter.port, tls_args=(context, "127.0.0.1")) as association:
            assert association.is_established
            assert association.send_c_echo().Status == 0
        keys = ("+tls", client.key, client.certificate, "+cf", authority.certificate)
        run_tool("echoscu", *keys, "-aec", TITLE, "127.0.0.1", adapter.port)
        with associated(adapter.port) as association:
            assert not association.is_established
        for waiting in (silent, midway):  # they kept nobody waiting, and are not kept either
            assert is_closed(waiting, began + 30)


def test_a_peer_that_falls_silent_midway_or_announces_too_much_is_cut_off(
    server: Server, tmp_path: Path
) -> None:
    with running(tmp_path / "adapter", server.v2, listener="idle_seconds = 1\n") as adapter:
        silent = socket.create_connection(("127.0.0.1", adapter.port))
        silent.sendall(b"\x01\x00\x00\x00\x01\x00half of a PDU")
        greedy = socket.create_connection(("127.0.0.1", adapter.port))
        greedy.sendall(b"\x01\x00\xff\xff\xff\xff" + bytes(1000))
        for connection in (silent, greedy):
            assert is_closed(connection, time.monotonic() + 15)
        run_tool("echoscu", "-aec", TITLE, "127.0.0.1", adapter.port)


def is_closed(connection: socket.socket, deadline: float) -> bool:
    """Whether the adapter closes a connection in time."""
    with connection, contextlib.suppress(ConnectionError):
        while time.monotonic() < deadline:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                if not connection.recv(4096):
                    return True
            except TimeoutError:
                return False
        return False
    return True


# --- settings ------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_certificate_names_the_setting(authority: Authority, tmp_path: Path) -> None:
    both = {"certificate", "key"}
    good, other = authority.issue("good"), authority.issue("other")
    locked = tmp_path / "locked.key"
    private = serialization.load_pem_private_key(good.key.read_bytes(), None)
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    ca, absent = authority.certificate, tmp_path / "absent"
    shutil.copy(good.key, tmp_path / "no-certificate")
    tls = PeerTls(ca=ca, certificate=good.certificate, key=good.key)
    for context in (client_context(tls, "tls."), server_context(Tls(**tls.model_dump(include=both)), "tls.")):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    for tls, said in (
        (PeerTls(ca=absent), r"^tls\.ca: .*absent cannot be read"),
        (PeerTls(ca=tmp_path / "no-certificate"), r"^tls\.ca: .* holds no certificate"),
        (PeerTls(ca=ca, certificate=absent, key=good.key), r"^tls\.certificate: .*cannot be read"),
        (PeerTls(ca=ca, certificate=good.certificate, key=absent), r"^tls\.key: .*cannot be read"),
        (PeerTls(ca=ca, certificate=good.certificate, key=other.key), r"^tls\.certificate and tls\.key"),
        (PeerTls(ca=ca, certificate=good.certificate, key=locked), r"its unencrypted key"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            client_context(tls, "tls.")
    with pytest.raises(ConfigurationError, match=r"^tls\.client_ca: .*cannot be read"):
        server_context(Tls(certificate=good.certificate, key=good.key, client_ca=absent), "tls.")


def test_the_adapter_does_not_start_with_a_destination_that_it_cannot_speak_to(tmp_path: Path) -> None:
    path = tmp_path / "adapter.toml"
    path.write_text(
        '[server]\nurl = "http://127.0.0.1:1/v2"\n[spool]\nfolder = "spool"\n[listener]\nport = 0\n'
        '[metrics]\nport = 0\n[[routes]]\nae_title = "A"\ncalling = ["*"]\nhosts = ["127.0.0.1"]\n'
        '[[destinations]]\nae_title = "WS"\nhost = "ws"\nport = 104\ntls = { ca = "absent.crt" }\n'
    )
    command = [sys.executable, "-m", "adapters.dimse", "--config", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    absent = tmp_path / "absent.crt"
    assert done.stderr == f"destinations.WS.tls.ca: {absent} cannot be read: No such file or directory.\n"
    path.write_text(path.read_text().replace('"absent.crt"', '"absent.crt", key = "k"'))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "destinations.0.tls: Value error, certificate and key belong together" in done.stderr
