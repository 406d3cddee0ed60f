"""Memory and time of a configuration before it starts, and the roofline utilization of a finished run."""
