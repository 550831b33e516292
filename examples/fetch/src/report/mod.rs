//! Progress and summary.

mod progress;
mod summary;
