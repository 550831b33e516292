//! What a task costs in allocations. They are counted in the whole process, on all threads.

use std::alloc::System;
use std::process::ExitCode;

use integration_tests::{Row, Suite, rows};
use polypool::{Executor as _, ExecutorExt as _, ProcessPool, Shutdown, TaskFuture, ThreadPool};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROWS: &[Row<fn()>] = rows![
    submitting_and_collecting_takes_one_allocation,
    a_queued_task_takes_at_most_200_bytes,
    a_task_queued_for_a_process_takes_at_most_200_bytes,
    waiting_for_one_takes_none,
];

fn main() -> ExitCode {
    polypool::init();
    Suite::new("allocations").tests(ROWS).run()
}

const TASKS: usize = 100_000;

/// The budget of a task: its cell, with everything that a `TaskFuture` can do.
const BYTES: usize = 96;

fn submitting_and_collecting_takes_one_allocation() {
    let pool = ThreadPool::builder().workers(2).build().unwrap();
    let mut tasks: Vec<TaskFuture<u64>> = Vec::with_capacity(TASKS);
    let mut run = || {
        tasks.extend((0..TASKS as u64).map(|n| pool.spawn(move || n)));
        let sum: u64 = tasks.drain(..).map(|task| task.wait().unwrap()).sum();
        assert_eq!(sum, (TASKS as u64 - 1) * TASKS as u64 / 2);
    };
    // The workers, the thread-locals of everybody, and the backlog, which keeps its room; but it has two ends, and now one
    // and now the other grows.
    for _ in 0..3 {
        run();
    }
    let region = Region::new(ALLOCATOR);
    run();
    let used = region.change();
    let calls = used.allocations + used.reallocations;
    println!("{calls} allocations for {TASKS} tasks, {} bytes", used.bytes_allocated);
    assert!(calls <= TASKS + TASKS / 100, "{calls} allocations for {TASKS} tasks");
    // The backlog grows at most to what it takes to hold all of them, in steps that double.
    assert!(used.bytes_allocated <= (BYTES + 4 * 16) * TASKS, "{} bytes for {TASKS} tasks", used.bytes_allocated);
}

fn a_queued_task_takes_at_most_200_bytes() {
    let pool = ThreadPool::builder().workers(1).build().unwrap();
    let (gate, pass) = std::sync::mpsc::channel::<()>();
    let held = pool.spawn(move || _ = pass.recv());
    let region = Region::new(ALLOCATOR);
    let tasks: Vec<TaskFuture<u64>> = (0..TASKS as u64).map(|n| pool.spawn(move || n)).collect();
    let used = region.change();
    let bytes = used.bytes_allocated - used.bytes_deallocated;
    println!("{bytes} bytes for {TASKS} queued tasks, their futures included");
    assert!(bytes <= 200 * TASKS, "{bytes} bytes for {TASKS} queued tasks");
    drop(gate);
    held.wait().unwrap();
    assert_eq!(polypool::wait_all(tasks).wait().len(), TASKS);
}

#[polypool::task]
fn pass_on(n: u64) -> u64 {
    n
}

#[polypool::task]
fn never_ends() {
    loop {
        std::thread::park();
    }
}

fn a_task_queued_for_a_process_takes_at_most_200_bytes() {
    let pool = ProcessPool::builder().workers(1).build().unwrap();
    let held = pool.submit(never_ends {});
    while !held.is_running() {
        std::thread::yield_now();
    }
    let region = Region::new(ALLOCATOR);
    let tasks: Vec<TaskFuture<u64>> = (0..TASKS as u64).map(|n| pool.submit(pass_on { n })).collect();
    let used = region.change();
    let bytes = used.bytes_allocated - used.bytes_deallocated;
    println!("{bytes} bytes for {TASKS} tasks queued for a process, their futures included");
    assert!(bytes <= 200 * TASKS, "{bytes} bytes for {TASKS} queued tasks");
    pool.shutdown(Shutdown::Now).wait();
    assert!(tasks.into_iter().all(|task| task.wait().is_err()));
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
