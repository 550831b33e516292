//! Managers: their types, their proxies in several processes, and what happens when somebody ends.

mod builtins;
mod common;
mod encrypted;
mod ends;
mod forked;
mod futures;
mod managed;
mod processes;

use std::process::ExitCode;

use integration_tests::Suite;

fn main() -> ExitCode {
    polypool::init();
    Suite::new("manager")
        .tests(builtins::ROWS)
        .tests(managed::ROWS)
        .tests(futures::ROWS)
        .tests(processes::ROWS)
        .tests(ends::ROWS)
        .tests(forked::ROWS)
        .tests(encrypted::ROWS)
        .programs(ends::PROGRAMS)
        .programs(forked::PROGRAMS)
        .run()
}
