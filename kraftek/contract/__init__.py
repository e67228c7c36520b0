"""What everybody agrees on: values, names, errors, seams, settings. Knows nothing else of ours."""
