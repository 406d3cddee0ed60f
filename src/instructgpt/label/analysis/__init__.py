"""Agreement, quality, adjudication, results and forecasts over submitted work."""
