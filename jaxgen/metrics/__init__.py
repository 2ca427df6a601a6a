"""Measures of samples: pure functions of features, float64, no network and no file inside."""
