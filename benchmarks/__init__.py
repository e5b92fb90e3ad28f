"""Side-by-side timings. A speed is the ratio of two things measured alternately in one run."""
