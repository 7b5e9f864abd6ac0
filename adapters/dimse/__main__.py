"""``python -m adapters.dimse [serve] --config FILE`` and ``python -m adapters.dimse migrate ...``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from adapters.dimse import metrics, migrate
from adapters.dimse.config import Configuration, ConfigurationError, load
from adapters.dimse.dicomweb import DicomWeb
from adapters.dimse.forward import Forwarder
from adapters.dimse.server import DimseServer
from adapters.dimse.spool import Spool, SpoolInUse

_SAMPLE = Path(__file__).with_name("sample.toml")


def serve(configuration: Configuration) -> int:
    """Run until SIGTERM or SIGINT."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    spool = Spool(configuration.spool.folder, configuration.spool.maximum_bytes)
    figures = metrics.Metrics(spool)
    endpoint = metrics.serve(figures, configuration.metrics.host, configuration.metrics.port)
    server = DicomWeb(configuration.server)
    forwarder = Forwarder(spool, server, configuration.forward, figures)
    dimse = DimseServer(configuration, spool, server, figures)
    port = dimse.start()
    forwarder.start()
    print(f"DIMSE      {configuration.listener.host}:{port}", flush=True)
    print(f"Metrics    http://{configuration.metrics.host}:{endpoint.server_address[1]}/metrics", flush=True)
    print(f"Listening on port {port}, {spool.objects} objects wait for the server.", flush=True)
    stopping.wait()
    dimse.stop()
    forwarder.stop()
    endpoint.shutdown()
    server.close()
    spool.close()
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="adapters.dimse", description="DIMSE services for a DICOMweb server."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve", help="run the adapter")
    command.add_argument("--config", type=Path, default=_SAMPLE, help="TOML file (default: the sample)")
    command = commands.add_parser("migrate", help="move an archive's studies to the server")
    command.add_argument("--config", type=Path, default=_SAMPLE, help="TOML file of the running adapter")
    migrate.add_arguments(command)
    options = parser.parse_args(_with_command(sys.argv[1:]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines hold the URLs of searches
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # its lines hold data sets
    try:
        configuration = load(options.config)
        return migrate.run(configuration, options) if options.command == "migrate" else serve(configuration)
    except (ConfigurationError, SpoolInUse, migrate.MigrationError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"The adapter cannot start: {error.strerror or error}.", file=sys.stderr)
    return 1


def _with_command(arguments: list[str]) -> list[str]:
    """``serve`` is what is meant where no command is given."""
    return arguments if arguments and not arguments[0].startswith("--") else ["serve", *arguments]


if __name__ == "__main__":
    sys.exit(main())
