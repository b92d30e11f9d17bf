"""What is computed from predictions: intervals, calibration, subgroups, agreement with masks."""
