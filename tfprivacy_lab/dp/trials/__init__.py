"""What is tried on a few rows before the first step: each example has a gradient of its own, and the rules hold."""
