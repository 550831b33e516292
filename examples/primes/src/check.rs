//! The task, and the three ways to run it over many numbers.

use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use futures_ext::as_completed;
use num_bigint::BigUint;
use num_prime::PrimalityTestConfig;
use polypool::{BuildError, Executor, ExecutorExt, Outcome, ProcessPool, TaskOptions, ThreadPool};
use serde::{Deserialize, Serialize};

/// How a number is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Method {
    /// Divides by every smaller number: deliberately slow, up to 2^64 - 1
    Trial,
    /// For real use, numbers of any size: Miller-Rabin, exact below 2^64, joined by a Lucas test (Baillie-PSW) above
    MillerRabin,
}

/// Where numbers are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pool {
    /// In a plain loop, without an executor
    Sequential,
    /// On threads of this process
    Threads,
    /// On worker processes
    Processes,
}

/// What came of a number, and who found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) prime: bool,
    pub(crate) seconds: f64,
    process: u32,
    thread: Option<String>,
}

/// Calling it runs it here; the value `check { n, method }` is the same call for any executor.
#[polypool::task]
fn check(n: BigUint, method: Method) -> Check {
    let start = Instant::now();
    let prime = match method {
        Method::Trial => u64::try_from(&n).is_ok_and(is_prime_by_trial_division),
        Method::MillerRabin => num_prime::nt_funcs::is_prime(&n, Some(PrimalityTestConfig::bpsw())).probably(),
    };
    Check {
        prime,
        seconds: start.elapsed().as_secs_f64(),
        process: std::process::id(),
        thread: std::thread::current().name().map(str::to_owned),
    }
}

/// The slow way. Now and then it looks whether anybody still wants to know: a thread can't be stopped from outside.
fn is_prime_by_trial_division(n: u64) -> bool {
    const STRIDE: u64 = 1 << 20;
    let context = polypool::context();
    n >= 2
        && (2..n).step_by(STRIDE as usize).all(|from| {
            let to = from.saturating_add(STRIDE).min(n);
            !context.is_cancelled() && (from..to).all(|d| !n.is_multiple_of(d))
        })
}

impl Check {
    /// The thread that checked the number, or the process if that is another one.
    pub(crate) fn worker(&self) -> String {
        match &self.thread {
            Some(thread) if self.process == std::process::id() => thread.clone(),
            _ => format!("pid {}", self.process),
        }
    }
}

impl Pool {
    pub(crate) const ALL: [Pool; 3] = [Pool::Sequential, Pool::Threads, Pool::Processes];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Pool::Sequential => "sequential",
            Pool::Threads => "threads",
            Pool::Processes => "processes",
        }
    }

    /// The executor; `None` for the plain loop.
    pub(crate) fn build(self, workers: usize) -> Result<Option<Arc<dyn Executor>>, BuildError> {
        Ok(match self {
            Pool::Sequential => None,
            Pool::Threads => Some(Arc::new(ThreadPool::builder().workers(workers).name_prefix("worker").build()?)),
            Pool::Processes => Some(Arc::new(ProcessPool::builder().workers(workers).build()?)),
        })
    }
}

/// Checks the numbers, each as soon as there is a worker for it, and gives the outcomes as they come.
pub(crate) fn all<'a>(
    pool: Option<&dyn Executor>,
    numbers: &'a [BigUint],
    method: Method,
    options: &TaskOptions,
) -> Box<dyn Iterator<Item = (&'a BigUint, Outcome<Check>)> + 'a> {
    match pool {
        None => Box::new(numbers.iter().map(move |n| (n, Ok(check(n.clone(), method))))),
        Some(pool) => {
            let submit = |n: &'a BigUint| pool.submit_with(check { n: n.clone(), method }, options.clone()).tagged(n);
            Box::new(as_completed(numbers.iter().map(submit)).blocking())
        }
    }
}
