"""What a person runs: the command line, configs, suites, cost, bench and report."""
