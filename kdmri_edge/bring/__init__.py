"""Networks that users bring as code: named, tried on a phantom, and given their weights."""
