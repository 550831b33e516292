//! The contract of executors: each test is one property, and is run once for each executor of the table in
//! `integration_tests::fixture`.
//!
//! Tests named `p06_…` are rows of the conformance set; the others are promises of the docs of `polypool::Executor`
//! that go beyond it.

mod as_completed;
mod callbacks;
mod cancel;
mod hardening;
mod initializer;
mod map;
mod options;
mod pool;
mod results;
mod shared;
mod shutdown;
mod submit;
mod wait;
mod workers;

use std::process::ExitCode;

use integration_tests::Suite;

fn main() -> ExitCode {
    polypool::init();
    Suite::new("contract")
        .contract(cancel::ROWS)
        .contract(callbacks::ROWS)
        .contract(results::ROWS)
        .contract(as_completed::ROWS)
        .contract(wait::ROWS)
        .contract(submit::ROWS)
        .contract(map::ROWS)
        .contract(shutdown::ROWS)
        .contract(initializer::ROWS)
        .contract(workers::ROWS)
        .contract(options::ROWS)
        .contract(hardening::ROWS)
        .contract(shared::ROWS)
        .contract(pool::ROWS)
        .tests(hardening::THREADS)
        .run()
}
