//! HTTP: guard.
