"""Migrates a DICOMweb server's instances to another: ``python -m devhost.migrate --from URL``.

source    enumerates and retrieves       target    stores, searches, compares
journal   what is to do and what is done, in SQLite, so that a run that was cut off goes on
peer      requests with retries          run       the migration itself
"""
