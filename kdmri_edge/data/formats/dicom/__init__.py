"""DICOM series of MR images, classic or enhanced (pydicom, extra `formats`)."""
