"""Guards of an endpoint: scorers before and after the model, thresholds, counts a day, and a policy of use cases."""
