//! HTTP: client.
