//! HTTP: auth.
