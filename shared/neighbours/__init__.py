"""Clients of the systems beside this server: receivers of events, FHIR servers."""
