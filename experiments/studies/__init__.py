"""What makes those figures of docs/benchmarks/ that no command of the suite makes."""
