//! What the user asked for.

mod args;
mod config;
mod manual;
mod values;
