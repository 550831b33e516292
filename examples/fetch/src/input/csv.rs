//! Input: csv.
