"""Fuzzing of all that reads files: structure-aware mutants, each made from a seed and a number.

``python -m tests.fuzzing --count 200000 --seed 1 --jobs 2`` is the long run, and ``make fuzz`` too; tests run
2,000 inputs. An input fails if anything but one of our errors comes up, or if reading it ends the process or
takes too long or too much memory. Inputs that fail are kept in a folder, with what they did.
"""
