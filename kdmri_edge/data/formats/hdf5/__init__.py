"""HDF5 files, told apart by the names of their datasets."""
