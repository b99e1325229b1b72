"""Formulas: the method of the paper (section 3), and `local` and `maps`, which are ours. Arrays in, arrays out."""
