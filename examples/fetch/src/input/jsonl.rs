//! Input: jsonl.
