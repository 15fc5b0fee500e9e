"""Charts: curves, bars, histograms."""
