//! The program `fetch`; all of it is in the library beside it.

use std::process::ExitCode;

#[polypool::main]
fn main() -> ExitCode {
    fetch::main()
}
