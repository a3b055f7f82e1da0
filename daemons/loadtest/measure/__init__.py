"""From records to figures: histograms, confidence, steady state, attribution, capacity, comparison."""
