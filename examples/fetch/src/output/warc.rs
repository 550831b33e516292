//! Output: warc.
