//! What a task on the thread pool costs in memory, with an allocator that counts: `cargo bench -p pools --bench threads_memory`.
//!
//! These figures don't depend on the machine; `integration-tests/tests/allocations.rs` keeps them as a budget.

use std::alloc::System;
use std::sync::mpsc;

use polypool::{TaskFuture, ThreadPool};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TASKS: usize = 1_000_000;

fn main() {
    let pool = ThreadPool::builder().workers(2).build().expect("a pool");
    let mut tasks: Vec<TaskFuture<u64>> = Vec::with_capacity(TASKS);
    for _ in 0..2 {
        let region = Region::new(ALLOCATOR);
        tasks.extend((0..TASKS as u64).map(|n| pool.spawn(move || n)));
        tasks.drain(..).for_each(|task| _ = task.wait());
        let used = region.change();
        let each = |count: usize| count as f64 / TASKS as f64;
        println!(
            "run and collected: {:.3} allocations and {:.1} bytes a task; goal: 1.0 and <= 96",
            each(used.allocations + used.reallocations),
            each(used.bytes_allocated)
        );
    }

    let (gates, passes): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel::<()>()).unzip();
    let held: Vec<_> = passes.into_iter().map(|pass| pool.spawn(move || _ = pass.recv())).collect();
    let region = Region::new(ALLOCATOR);
    tasks.extend((0..TASKS as u64).map(|n| pool.spawn(move || n)));
    let used = region.change();
    let each = (used.bytes_allocated as f64 - used.bytes_deallocated as f64) / TASKS as f64
        + size_of::<TaskFuture<u64>>() as f64;
    println!(
        "queued: {each:.1} bytes a task, its future ({} bytes) included; goal: <= 200",
        size_of::<TaskFuture<u64>>()
    );
    drop(gates);
    drop((held, tasks));
}
