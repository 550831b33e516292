//! The loop.

mod adaptive;
mod lanes;
mod retry;
