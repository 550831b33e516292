//! Output: names.
