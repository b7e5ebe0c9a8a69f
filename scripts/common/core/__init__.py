"""What every program needs: how it speaks, options, files, records, workers, the environment."""
