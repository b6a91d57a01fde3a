"""Images to a DICOM archive: C-STORE, and a queue on disk until the archive confirms."""
