"""Figures and one self-contained page, drawn from the files of a run directory."""
