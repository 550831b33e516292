//! Stopping a task that runs: by a cancel, by its timeout, by its deadline.

use std::time::Instant;

use integration_tests::tasks::{
    double, pass_async, run_until_cancelled, take_time, wait_until_dropped, watch_for_cancellation,
};
use integration_tests::{Board, Row, eventually, millis, seconds, within};
use polypool::{Executor, ExecutorExt, Shutdown, StartMethod, TaskError, TaskOptions, TaskState, context};
use rustix::process::Signal;

use crate::both;
use crate::common::{builder, ends_clean, goes_on, pass_pid, pid, pids, pool, signal, soon, spin};

pub(crate) const ROWS: &[Row<fn()>] = both![
    s1_cancel_of_a_running_task_costs_its_worker_only,
    s1_timeout_of_a_running_task_costs_its_worker_only,
    s1_deadline_of_a_running_task_costs_its_worker_only,
    s1_cooperative_task_keeps_its_worker,
    s1_asynchronous_task_keeps_its_worker,
    cancelled_await_in_a_worker,
    timeout_of_an_asynchronous_task_that_blocks,
    timeout_of_a_stopped_process,
    timeouts_run_again_while_retries_are_left,
    cancel_in_the_moment_of_the_end_hits_nobody_else,
    end_of_the_grace_hits_nobody_else,
    grace_is_kept,
];

/// One worker is at a gate, the other spins; `stop` ends the spinning task.
fn stopping(method: StartMethod, options: fn() -> TaskOptions, stop: fn(&polypool::TaskFuture<()>)) -> TaskError {
    let board = Board::new();
    let pool = pool(method, 2);
    let (hold, started) = (board.gate("hold"), board.gate("started"));
    let other = pool.submit(pass_pid { gate: hold.clone() });
    hold.wait_for_arrivals(1);
    let at_gate = pids(&pool);
    let task = pool.submit_with(spin { gate: started.clone() }, options());
    started.wait_for_arrivals(1);
    let spinning = pids(&pool).into_iter().find(|pid| !at_gate.contains(pid)).expect("a second worker");

    stop(&task);
    let error = soon(task).unwrap_err();
    let next = soon(pool.submit(pid {})).unwrap();
    assert_ne!(next, spinning, "the next task runs elsewhere");
    assert!(!pids(&pool).contains(&spinning));
    hold.open();
    assert_eq!(vec![soon(other).unwrap()], at_gate, "the other worker is unaffected");
    assert_eq!(pool.stats().workers_lost, 1);
    ends_clean(&pool, Shutdown::Drain);
    error
}

fn s1_cancel_of_a_running_task_costs_its_worker_only(method: StartMethod) {
    let error = stopping(method, TaskOptions::new, |task| {
        within(millis(200), || {
            assert!(task.cancel());
            assert_eq!(task.state(), TaskState::Cancelled);
        });
    });
    assert!(error.is_cancelled(), "{error:?}");
}

fn s1_timeout_of_a_running_task_costs_its_worker_only(method: StartMethod) {
    let error = stopping(method, || TaskOptions::new().timeout(millis(200)), |_| ());
    assert!(matches!(error, TaskError::TimedOut { after } if after == millis(200)), "{error:?}");
}

fn s1_deadline_of_a_running_task_costs_its_worker_only(method: StartMethod) {
    let error = stopping(method, || TaskOptions::new().deadline(Instant::now() + seconds(2)), |_| ());
    assert!(matches!(error, TaskError::DeadlineExceeded), "{error:?}");
}

fn s1_cooperative_task_keeps_its_worker(method: StartMethod) {
    let board = Board::new();
    let pool = builder(method, 1).kill_grace(seconds(20)).build().unwrap();
    let before = soon(pool.submit(pid {})).unwrap();
    let (gate, traces) = (board.gate("started"), board.traces());
    for round in 1..=3 {
        let task = pool.submit(run_until_cancelled { gate: gate.clone(), traces: traces.clone() });
        gate.wait_for_arrivals(round);
        assert!(task.cancel());
        assert_eq!(traces.wait_for(round).len(), round);
        assert_eq!(soon(pool.submit(pid {})).unwrap(), before);
    }
    assert_eq!(pool.stats().workers_lost, 0);
}

fn s1_asynchronous_task_keeps_its_worker(method: StartMethod) {
    let board = Board::new();
    let pool = builder(method, 1).kill_grace(seconds(20)).build().unwrap();
    let before = soon(pool.submit(pid {})).unwrap();
    let (gate, traces) = (board.gate("never"), board.traces());
    let task = pool.submit(wait_until_dropped { gate: gate.clone(), traces: traces.clone() });
    gate.wait_for_arrivals(1);
    assert!(task.cancel());
    assert_eq!(traces.wait_for(1), ["dropped"]);
    assert_eq!(soon(pool.submit(pid {})).unwrap(), before);

    let options = TaskOptions::new().timeout(millis(50));
    let task = pool.submit_with(pass_async { gate, value: 1 }, options);
    assert!(matches!(soon(task), Err(TaskError::TimedOut { .. })));
    assert_eq!(soon(pool.submit(pid {})).unwrap(), before);
    assert_eq!(pool.stats().workers_lost, 0);
}

fn cancelled_await_in_a_worker(method: StartMethod) {
    let board = Board::new();
    let pool = builder(method, 1).kill_grace(seconds(20)).build().unwrap();
    let (gate, traces) = (board.gate("never"), board.traces());
    let task = pool.submit(watch_for_cancellation { gate: gate.clone(), traces: traces.clone() });
    gate.wait_for_arrivals(1);
    assert!(task.cancel());
    // What the task has spawned is polled when the worker's runtime runs the next time, at the latest.
    let after = pool.submit(pass_async { gate: gate.clone(), value: 3 });
    gate.open();
    assert_eq!(soon(after).unwrap(), 3);
    assert_eq!(traces.wait_for(1), ["saw it"]);
}

/// An asynchronous task that never comes to an await.
#[polypool::task]
async fn spin_in_async(gate: integration_tests::Gate) {
    spin(gate);
}

fn timeout_of_an_asynchronous_task_that_blocks(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("started");
    let task = pool.submit_with(spin_in_async { gate: gate.clone() }, TaskOptions::new().timeout(millis(200)));
    gate.wait_for_arrivals(1);
    assert!(matches!(soon(task), Err(TaskError::TimedOut { .. })));
    goes_on(&pool);
    assert_eq!(pool.stats().workers_lost, 1);
}

fn timeout_of_a_stopped_process(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("started");
    let task = pool.submit_with(spin { gate: gate.clone() }, TaskOptions::new().timeout(millis(500)));
    gate.wait_for_arrivals(1);
    signal(pids(&pool)[0], Signal::STOP);
    assert!(matches!(soon(task), Err(TaskError::TimedOut { .. })));
    goes_on(&pool);
}

/// Spins in the first run only.
#[polypool::task]
fn spin_at_first(gate: integration_tests::Gate) -> u32 {
    if context().attempt() == 0 {
        spin(gate);
    }
    context().attempt()
}

fn timeouts_run_again_while_retries_are_left(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let options = TaskOptions::new().timeout(millis(500)).retries(1);
    assert_eq!(soon(pool.submit_with(spin_at_first { gate: board.gate("started") }, options)).unwrap(), 1);
    assert_eq!((pool.stats().retried, pool.stats().workers_lost), (1, 1));
}

fn cancel_in_the_moment_of_the_end_hits_nobody_else(method: StartMethod) {
    // A grace of nothing: a late kill would hit the next task.
    let pool = builder(method, 2).kill_grace(millis(0)).build().unwrap();
    for n in 0..500 {
        let victim = pool.submit(double { n });
        let next = pool.submit(double { n: n + 1 });
        for _ in 0..n % 50 {
            std::thread::yield_now();
        }
        let cancelled = victim.cancel();
        let outcome = soon(victim);
        assert_eq!(outcome.is_err(), cancelled, "the answer of cancel is truthful: {outcome:?}");
        assert_eq!(soon(next).unwrap(), 2 * (n + 1));
    }
    ends_clean(&pool, Shutdown::Drain);
}

/// Ends when it is cancelled.
#[polypool::task]
fn heed(gate: integration_tests::Gate) {
    gate.arrive();
    while !context().is_cancelled() {
        std::hint::spin_loop();
    }
}

fn end_of_the_grace_hits_nobody_else(method: StartMethod) {
    let board = Board::new();
    let pool = builder(method, 1).kill_grace(millis(10)).build().unwrap();
    let gate = board.gate("started");
    for round in 1..=20 {
        let task = pool.submit(heed { gate: gate.clone() });
        gate.wait_for_arrivals(round);
        assert!(task.cancel());
        // It runs when the grace of the one before is over.
        assert_eq!(soon(pool.submit(take_time { ms: 40 })).unwrap(), 40);
    }
}

/// Sees that it is cancelled, and takes some more time to tidy up.
#[polypool::task]
fn tidy_up(gate: integration_tests::Gate, traces: integration_tests::Traces) {
    run_until_cancelled(gate, traces.clone());
    std::thread::sleep(millis(300));
    traces.leave("tidied up");
}

fn grace_is_kept(method: StartMethod) {
    let board = Board::new();
    let patient = builder(method, 1).kill_grace(seconds(20)).build().unwrap();
    let (gate, traces) = (board.gate("started"), board.traces());
    let task = patient.submit(tidy_up { gate: gate.clone(), traces: traces.clone() });
    gate.wait_for_arrivals(1);
    task.cancel();
    assert_eq!(traces.wait_for(2), ["saw it", "tidied up"]);
    goes_on(&patient);
    assert_eq!(patient.stats().workers_lost, 0);

    let hasty = builder(method, 1).kill_grace(millis(1)).build().unwrap();
    let task = hasty.submit(spin { gate: gate.clone() });
    gate.wait_for_arrivals(2);
    task.cancel();
    goes_on(&hasty);
    assert!(eventually(seconds(5), || hasty.stats().workers_lost == 1));
}
