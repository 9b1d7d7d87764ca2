"""The parts of `study.py`: data, networks, training, reference methods, measures, tables and plots."""
