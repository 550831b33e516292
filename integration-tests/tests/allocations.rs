//! What a task costs in allocations. They are counted in the whole process, on all threads.

use std::alloc::System;
use std::process::ExitCode;

use integration_tests::{Row, Suite, rows};
use polypool::{TaskFuture, ThreadPool};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROWS: &[Row<fn()>] =
    rows![submitting_and_collecting_takes_one_allocation_of_96_bytes, waiting_for_one_takes_none];

fn main() -> ExitCode {
    polypool::init();
    Suite::new("allocations").tests(ROWS).run()
}

const TASKS: usize = 100_000;

fn submitting_and_collecting_takes_one_allocation_of_96_bytes() {
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
    // A hundredth of them may be what is taken for many at once.
    let handles = size_of::<TaskFuture<()>>();
    assert!(calls <= TASKS + TASKS / 100, "{calls} allocations for {TASKS} tasks");
    let each = (used.bytes_allocated - handles * TASKS) / TASKS;
    assert!(each <= 96, "{each} bytes for a task, beside its handle of {handles}");
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
