"""Configurations of TRL's trainers as configurations of the stages here."""
