//! The attribute macros of `polypool`. Use them through that crate: `#[polypool::task]` and `#[polypool::main]`.
//!
//! | file | what it does |
//! | --- | --- |
//! | `input.rs` | reads the function and the options |
//! | `refuse.rs` | finds what can't be a task or a main, and says what to write instead |
//! | `task.rs` | writes the call as a value |
//! | `main_fn.rs` | writes the program around `main` |
//!
//! The code that is written names polypool by `::polypool`, or by the path given with `crate = …`, and reaches serde,
//! linkme and tokio through polypool: a program needs none of them as a dependency of its own to use the macros.

#![forbid(unsafe_code)]

mod input;
mod main_fn;
mod refuse;
mod task;

use proc_macro::TokenStream;

/// todo
#[proc_macro_attribute]
pub fn task(options: TokenStream, item: TokenStream) -> TokenStream {
    task::expand(options.into(), item.into()).into()
}

/// todo
#[proc_macro_attribute]
pub fn main(options: TokenStream, item: TokenStream) -> TokenStream {
    main_fn::expand(options.into(), item.into()).into()
}
