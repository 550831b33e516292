//! Durations, sizes, rates.
