"""The DIMSE side: who may associate, and a handler for each service."""

from __future__ import annotations

import errno
import logging
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import AllTransferSyntaxes, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config, evt
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import (
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from adapters.dimse import find, retrieve, worklist
from adapters.dimse.config import Configuration, Route
from adapters.dimse.dicomweb import DicomWeb
from adapters.dimse.metrics import Metrics
from adapters.dimse.part10 import identity, is_deflated
from adapters.dimse.spool import Spool, SpoolFull
from adapters.dimse.tls import client_context, server_context

_LOG = logging.getLogger("adapters.dimse.server")

_CONNECT_SECONDS = 15
_ASSOCIATE_SECONDS = 30
_LARGEST_PDU = 1024 * 1024  # what any peer needs to propose, and the largest that the configuration allows

SUCCESS, OTHER_CLASS = 0x0000, 0xB007
OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = 0xA700, 0xA900, 0xC000
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_PATIENT_ROOT = {
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
}
_STUDY_ROOT = {
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
}


class DimseServer:
    """Accepts associations until ``stop``."""

    def __init__(
        self, configuration: Configuration, spool: Spool, server: DicomWeb, metrics: Metrics
    ) -> None:
        self._configuration = configuration
        self._spool = spool
        self._server = server
        self._metrics = metrics
        self._routes = {route.ae_title: route for route in configuration.routes}
        self._destinations = {
            one.ae_title: retrieve.Peer(
                one.host,
                one.port,
                client_context(one.tls, f"destinations.{one.ae_title}.tls.") if one.tls else None,
            )
            for one in configuration.destinations
        }
        self._tls = server_context(configuration.tls, "tls.") if configuration.tls else None
        _configure_library(spool)
        listener = configuration.listener
        self._ae = retrieve.Sender(ae_title=configuration.routes[0].ae_title)
        self._ae.maximum_pdu_size = listener.maximum_pdu
        self._ae.maximum_associations = listener.maximum_associations
        self._ae.network_timeout = listener.idle_seconds
        self._ae.dimse_timeout = listener.idle_seconds
        self._ae.acse_timeout = min(listener.idle_seconds, _ASSOCIATE_SECONDS)
        self._ae.connection_timeout = _CONNECT_SECONDS
        self._ae.require_called_aet = False  # the routes decide
        self._add_contexts(listener.sop_classes)
        self._listening: Any = None

    def start(self) -> int:
        """Listen; the port."""
        listener = self._configuration.listener
        self._listening = self._ae.start_server(
            (listener.host, listener.port),
            block=False,
            ssl_context=self._tls,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, _opened, [listener.idle_seconds]),
                (evt.EVT_REQUESTED, self._requested),
                (evt.EVT_CONN_CLOSE, _closed),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_FIND, self._find),
                (evt.EVT_C_GET, self._get),
                (evt.EVT_C_MOVE, self._move),
            ],
        )
        return int(self._listening.server_address[1])

    def stop(self) -> None:
        """Take no further association and end those that are open."""
        self._ae.shutdown()

    def _add_contexts(self, further: tuple[str, ...]) -> None:
        # where a peer proposes several at once: native ones first, Implicit VR, which loses VRs, last
        syntaxes = sorted(
            (str(uid) for uid in AllTransferSyntaxes),
            key=lambda uid: (uid == ImplicitVRLittleEndian, uid != ExplicitVRLittleEndian),
        )
        storage = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
        for uid in sorted(storage | set(further)):
            self._ae.add_supported_context(uid, syntaxes, scu_role=True, scp_role=True)
        for uid in (Verification, ModalityWorklistInformationFind, *_PATIENT_ROOT, *_STUDY_ROOT):
            self._ae.add_supported_context(uid)

    # --- associations ---

    def _requested(self, event: evt.Event) -> None:
        """Refuse whoever is not listed (PS3.8 §9.3.4: rejected, by the service user, and why)."""
        primitive = event.assoc.requestor.primitive
        route = self._routes.get(str(primitive.called_ae_title).strip())
        address = event.assoc.requestor.address or ""
        if route is not None and route.allows(str(primitive.calling_ae_title), address):
            return
        self._metrics.count("dimse_associations_rejected_total")
        _LOG.warning("an association from %s is refused: not in the allow-list", address)
        event.assoc.acse.send_reject(0x01, 0x01, 0x07 if route is None else 0x03)
        event.assoc.is_rejected = True
        event.assoc.kill()

    def _route(self, event: evt.Event) -> Route:
        return self._routes[str(event.assoc.requestor.primitive.called_ae_title).strip()]

    # --- storage ---

    def _store(self, event: evt.Event) -> int | Dataset:
        """C-STORE: success only when the object is durable."""
        status = self._stored(event)
        failed = not isinstance(status, int) and status.Status != OTHER_CLASS
        self._metrics.count("dimse_stores_failed_total" if failed else "dimse_objects_received_total")
        return status

    def _stored(self, event: evt.Event) -> int | Dataset:
        request: Any = event.request
        path = request._dataset_path
        if path is None:
            return find.failure(CANNOT_UNDERSTAND, "The request has no data set")
        uid, sop_class = str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
        if len(uid) > 64 or not _UID.fullmatch(uid):
            return find.failure(CANNOT_UNDERSTAND, "The Affected SOP Instance UID is no UID")
        stored: int | Dataset = SUCCESS
        try:
            if not is_deflated(path):
                found = identity(path)
                if found.instance != uid:
                    return find.failure(MISMATCH, "The data set has another SOP Instance UID")
                if found.sop_class != sop_class:  # the server stores it with a warning, too
                    stored = find.failure(OTHER_CLASS, "The data set is of another SOP Class")
        except Exception:
            return find.failure(CANNOT_UNDERSTAND, "The data set cannot be read")
        try:
            self._spool.add(path, self._route(event).partition, uid)
        except SpoolFull:
            return find.failure(OUT_OF_RESOURCES, "The spool is full")
        except OSError as error:
            _LOG.error("the spool cannot be written: %s", errno.errorcode.get(error.errno or 0, "OSError"))
            return find.failure(OUT_OF_RESOURCES, "The spool cannot be written")
        return stored

    # --- query and retrieve ---

    def _find(self, event: evt.Event) -> Iterator[Any]:
        self._metrics.count("dimse_finds_total")
        partition, limit = self._route(event).partition, self._configuration.query.maximum_results
        if event.context.abstract_syntax == ModalityWorklistInformationFind:
            zone = self._configuration.worklist.time_zone
            return worklist.find(self._server, partition, event.identifier, limit, event, zone)
        root = event.context.abstract_syntax in _PATIENT_ROOT
        return find.find(self._server, partition, event.identifier, root, limit, event)

    def _get(self, event: evt.Event) -> Iterator[Any]:
        self._metrics.count("dimse_retrieves_total")
        root = event.context.abstract_syntax in _PATIENT_ROOT
        return retrieve.get(self._server, self._route(event).partition, self._spool.incoming, event, root)

    def _move(self, event: evt.Event) -> Iterator[Any]:
        self._metrics.count("dimse_retrieves_total")
        root = event.context.abstract_syntax in _PATIENT_ROOT
        partition, folder = self._route(event).partition, self._spool.incoming
        return retrieve.move(self._server, partition, folder, event, root, self._destinations)


def _opened(event: evt.Event, seconds: float) -> None:
    """Bound what a peer can keep by announcing more than it sends, or falling silent midway."""
    connection = event.assoc.dul.socket
    connection.socket.settimeout(seconds)
    receive = connection.recv

    def bounded(size: int) -> bytearray:
        if size > _LARGEST_PDU:
            raise OSError(errno.EMSGSIZE, "a PDU is too large")
        received: bytearray = receive(size)
        return received

    connection.recv = bounded


def _closed(event: evt.Event) -> None:
    """Remove what an object left that was cut off while it came."""
    message = event.assoc.dimse.message
    path = getattr(message, "_data_set_path", None)
    if path is not None:
        file = getattr(message, "_data_set_file", None)
        if file is not None:
            file.close()
        path.unlink(missing_ok=True)


def _configure_library(spool: Spool) -> None:
    """Objects go from the network to files below ``incoming`` and back, and nothing of them into logs."""
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.STORE_SEND_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    tempfile.tempdir = str(spool.incoming)
