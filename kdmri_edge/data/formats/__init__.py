"""File formats, one module or folder each; `registry` is the table of them."""
