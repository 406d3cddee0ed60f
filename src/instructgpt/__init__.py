"""InstructGPT (Ouyang et al. 2022), whole: demonstrations and rankings in, an aligned model and its evaluation out."""

__version__ = "0.1.0"
