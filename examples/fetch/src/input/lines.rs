//! Input: lines.
