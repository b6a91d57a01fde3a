"""Writers, one module or folder a target."""
