"""Side-by-side timings. A speed is a ratio of two things measured in turns in one run."""
