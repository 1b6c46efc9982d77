"""What removing from one group alone costs: trials, what they are judged by, where results are kept."""
