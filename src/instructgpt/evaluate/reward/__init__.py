"""Reward models measured on rankings and on public benchmarks."""
