"""What is fast, against what, and how it grows: ``python -m benchmarks.NAME [--quick] [--json FILE]``."""
