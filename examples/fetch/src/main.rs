//! The program `fetch`; see the library beside it.

#[polypool::main]
fn main() {}
