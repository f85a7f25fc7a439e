"""What a run leaves: its folder, config, loggers, summary, and errors for people."""
