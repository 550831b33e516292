//! What a task costs in allocations. They are counted in the whole process, on all threads.

use std::alloc::System;
use std::process::ExitCode;

use integration_tests::{Row, Suite, rows};
use polypool::{TaskFuture, ThreadPool};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROWS: &[Row<fn()>] = rows![submitting_and_collecting_takes_at_most_two_allocations, waiting_for_one_takes_none];

fn main() -> ExitCode {
    polypool::init();
    Suite::new("allocations").tests(ROWS).run()
}

const TASKS: usize = 100_000;

fn submitting_and_collecting_takes_at_most_two_allocations() {
    let pool = ThreadPool::builder().workers(2).build().unwrap();
    let run = || {
        let tasks: Vec<TaskFuture<()>> = (0..TASKS).map(|_| pool.spawn(|| ())).collect();
        tasks.into_iter().for_each(|task| task.wait().unwrap());
    };
    // The workers, and the thread-locals of everybody.
    run();
    let region = Region::new(ALLOCATOR);
    run();
    let used = region.change();
    let calls = used.allocations + used.reallocations;
    println!("{calls} allocations for {TASKS} tasks, {} bytes", used.bytes_allocated);
    assert!(calls <= 2 * TASKS, "{calls} allocations for {TASKS} tasks");
}

fn waiting_for_one_takes_none() {
    let pool = ThreadPool::builder().workers(1).build().unwrap();
    let one = |n: u32| pool.spawn(move || n).wait().unwrap();
    (0..1_000).for_each(|n| assert_eq!(one(n), n));
    let region = Region::new(ALLOCATOR);
    (0..1_000).for_each(|n| assert_eq!(one(n), n));
    let used = region.change();
    // The task itself is the one allocation.
    assert!(used.allocations <= 1_100, "{} allocations for 1000 tasks", used.allocations);
}
