//! HTTP: validators.
