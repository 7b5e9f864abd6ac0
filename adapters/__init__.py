"""Services that connect the server to systems that do not speak DICOMweb; each runs on its own."""
