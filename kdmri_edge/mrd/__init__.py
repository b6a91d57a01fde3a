"""ISMRMRD / MRD: scanners' streams and files (Inati et al., Magn Reson Med 2017). Torch-free.

The modules here are made of the package `ismrmrd` (extra `mrd`); nothing else of the core imports
them at load time.
"""
