"""A target in time: parts are timed, counts chosen, the cut model timed whole, the prediction corrected."""
