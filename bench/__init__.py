"""Benchmarks: `python -m bench NAME [--json FILE]`, each a module with `main(argv)`."""
