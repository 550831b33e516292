//! HTTP: robots.
