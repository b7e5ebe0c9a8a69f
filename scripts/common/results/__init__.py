"""Results, accuracy, figures, plots, the work folder's JSON files, the report."""
