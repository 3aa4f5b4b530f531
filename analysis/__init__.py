"""What is made of runs: speedups, comparisons, figures and reports; and the command line."""
