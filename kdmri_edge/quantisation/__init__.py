"""int8: the scheme, calibration, equalisation, and training with its rounding."""
