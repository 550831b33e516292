//! HTTP: failure.
