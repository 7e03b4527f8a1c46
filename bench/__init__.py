"""Benchmarks: siltstone beside its real peers, in the same run. `python -m bench` is the door."""
