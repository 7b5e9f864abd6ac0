"""Failure Reason (0008,1197) and Warning Reason (0008,1196) values of a store.

The first three failures and 45063 are those of PS3.4 §B.2.3 / PS3.18 Table 10.5.3-2; 45070, 45071 and
the warning 1 are the ancestor's.
"""

from __future__ import annotations

PROCESSING_FAILURE = 272
"""0x0110: a general failure in processing the operation."""

VALIDATION_FAILURE = 43264
"""0xA900: the data set is no valid instance."""

STUDY_MISMATCH = 43265
"""The instance belongs to another study than the one in the path."""

ALREADY_EXISTS = 45070
"""An instance with the same identifiers has been stored before."""

BEING_CREATED = 45071
"""An instance with the same identifiers is being created by another request."""

WARN_SOP_CLASS_MISMATCH = 45063
"""0xB007: the data set does not match its SOP Class (here: file meta information and data set differ)."""

WARN_VALIDATION = 1
"""Attributes break their VR; they are stored but not indexed."""
