//! The rows.

mod csv;
mod jsonl;
mod lines;
mod template;
