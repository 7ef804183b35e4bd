"""Training on own data, from a configuration to a calibrated run with a report, and evaluation on other datasets."""
