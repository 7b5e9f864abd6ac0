"""DIMSE on one side, DICOMweb on the other: see README.md."""
