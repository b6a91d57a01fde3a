"""The MRD format: headers, readouts, streams and files."""
