"""What is wrong with a coordinator, by what was measured (layer L1): codes.py, readings.py, judge.py, flaps.py."""
