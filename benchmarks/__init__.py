"""Side-by-side measurements that anyone can rerun: `python -m benchmarks.<name>`. See README.md."""
