//! `fetch` fetches URLs by the hundred thousand and prints one JSON object for each: a tool, and the sample of `polypool`
//! for work that waits.

#![allow(dead_code, missing_docs)] // while the parts are being put together

mod cli;
mod demo;
mod engine;
mod extract;
mod http;
mod input;
mod output;
mod report;
mod request;
mod settings;
