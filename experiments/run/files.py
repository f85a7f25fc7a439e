"""Names of the files in a run folder."""

CONFIG, SUMMARY, METRICS, PREDICTIONS = "config.yaml", "summary.json", "metrics.csv", "predictions.csv"
PROBE, REGIONS = "probe.json", "decision_regions.png"
OBSERVATIONS, OBSERVATIONS_PICTURE = "observations.json", "observations.png"
OBSERVATIONS_OVER_TIME = "observations_over_time.png"
LAST, PREVIOUS, BEST = "checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/best.ckpt"
UNFINISHED = ".unfinished"
"""Mark of a folder that a run made or found empty; locked while the run is alive, removed when it is finished."""
