"""Empirical lower bounds on epsilon, beside the proven upper bound: canaries, guesses, and what noise was executed."""
