"""What makes those figures of BENCHMARKS.md that no command of the suite makes."""
