"""Labeler statistics: agreement, win rates, consensus, intervals. Arrays only; never imports torch."""
