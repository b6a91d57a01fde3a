"""What a benchmark measures: networks, volumes, variants, rows, exports."""
