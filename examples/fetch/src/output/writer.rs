//! Output: writer.
