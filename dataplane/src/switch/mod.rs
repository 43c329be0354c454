//! The virtual switch: packets in, verdicts out. Pure: no I/O, no clock, no randomness.
