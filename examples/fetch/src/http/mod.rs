//! One attempt.

mod auth;
mod client;
mod failure;
mod guard;
mod robots;
mod validators;
