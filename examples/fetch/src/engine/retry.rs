//! Engine: retry.
