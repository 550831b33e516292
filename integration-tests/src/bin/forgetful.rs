//! A program that has forgotten `polypool::init()`. What else it does is in the variable `FORGETFUL`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use polypool::{ExecutorExt, ProcessPool};

fn main() -> ExitCode {
    let mode = std::env::var("FORGETFUL").unwrap_or_default();
    if mode == "sleep" {
        std::thread::sleep(std::time::Duration::from_secs(3_600));
    }
    if let Some(code) = mode.strip_prefix("exit ") {
        return ExitCode::from(code.parse::<u8>().expect("an exit code"));
    }
    let mut builder = ProcessPool::builder().workers(2);
    if mode == "name itself" {
        builder = builder.worker_executable(std::env::current_exe().expect("this program"));
    }
    let outcome = builder.build().map(|pool| {
        // Were it allowed, each worker would do the same.
        (0..10).map(|n| pool.submit(integration_tests::tasks::double { n })).for_each(|task| drop(task.wait()));
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
