"""Where intervals go, one target a file. Each is an `kvxfer.interval.Exporter`: it gets the interval, nothing else."""
