//! `as_completed` and `wait` stay linear: the number of polls, not the time, is what is looked at.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_ext::{All, FutureExt, as_completed, wait};
use futures_util::StreamExt;
use tokio::sync::oneshot;

use common::{Polled, watchdog};

/// Once to register, once when it is done; a little room for wake-ups that come early.
fn assert_linear(polls: &AtomicUsize, n: usize) {
    let polls = polls.load(Ordering::SeqCst);
    assert!(polls <= 3 * n + 100, "{polls} polls for {n} futures");
}

fn workers() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

/// Tokio's budget for a task must not make the set poll all its futures again and again.
fn join_handles_on_a_worker(n: usize) {
    watchdog(move || {
        let runtime = workers();
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polls);
        let collector = runtime.spawn(async move {
            let tasks = (0..n).map(|i| Polled::new(tokio::spawn(async move { i }), &counted));
            let mut done = as_completed(tasks);
            let mut sum = 0;
            while let Some(output) = done.next().await {
                sum += output.unwrap();
            }
            sum
        });
        assert_eq!(runtime.block_on(collector).unwrap(), n * (n - 1) / 2);
        assert_linear(&polls, n);
    });
}

#[test]
fn join_handles_on_a_worker_1_000() {
    join_handles_on_a_worker(1_000);
}

#[test]
fn join_handles_on_a_worker_100_000() {
    join_handles_on_a_worker(100_000);
}

/// All of them are finished when the collector starts: each poll would spend tokio's budget.
fn finished_join_handles_on_a_worker(n: usize) {
    watchdog(move || {
        let runtime = workers();
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polls);
        let collector = runtime.spawn(async move {
            let tasks: Vec<_> = (0..n).map(|i| tokio::spawn(async move { i })).collect();
            while !tasks.iter().all(|task| task.is_finished()) {
                tokio::task::yield_now().await;
            }
            let tasks = tasks.into_iter().map(|task| Polled::new(task, &counted));
            let waited = wait(tasks, All, None).await;
            (waited.done.len(), waited.pending.len())
        });
        assert_eq!(runtime.block_on(collector).unwrap(), (n, 0));
        assert_linear(&polls, n);
    });
}

#[test]
fn finished_join_handles_on_a_worker_1_000() {
    finished_join_handles_on_a_worker(1_000);
}

#[test]
fn finished_join_handles_on_a_worker_100_000() {
    finished_join_handles_on_a_worker(100_000);
}

/// A loop body that spends budget itself, so that the budget may run out just between the stream and its futures: each of them
/// would then say "pending" and be polled again.
fn loop_body_that_spends_budget(n: usize) {
    watchdog(move || {
        let runtime = workers();
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polls);
        let collector = runtime.spawn(async move {
            let tasks: Vec<_> = (0..n).map(|i| tokio::spawn(async move { i })).collect();
            while !tasks.iter().all(|task| task.is_finished()) {
                tokio::task::yield_now().await;
            }
            let mut done = as_completed(tasks.into_iter().map(|task| Polled::new(task, &counted)));
            let mut got = 0;
            while let Some(output) = done.next().await {
                output.unwrap();
                got += 1;
                tokio::task::coop::consume_budget().await;
            }
            got
        });
        assert_eq!(runtime.block_on(collector).unwrap(), n);
        assert_linear(&polls, n);
    });
}

#[test]
fn loop_body_that_spends_budget_1_000() {
    loop_body_that_spends_budget(1_000);
}

#[test]
fn loop_body_that_spends_budget_100_000() {
    loop_body_that_spends_budget(100_000);
}

/// One finishes at a time, released by the loop body: the others must not be polled for it.
fn one_at_a_time(n: usize, on_a_worker: bool) {
    watchdog(move || {
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polls);
        let body = async move {
            let (mut senders, receivers): (Vec<_>, Vec<_>) = (0..n).map(|_| oneshot::channel()).unzip();
            let mut done = as_completed(receivers.into_iter().map(|future| Polled::new(future, &counted)));
            let mut got = 0;
            senders.pop().unwrap().send(()).unwrap();
            while let Some(output) = done.next().await {
                output.unwrap();
                got += 1;
                if let Some(sender) = senders.pop() {
                    sender.send(()).unwrap();
                }
            }
            got
        };
        let got = match on_a_worker {
            true => {
                let runtime = workers();
                runtime.block_on(runtime.spawn(body)).unwrap()
            }
            false => Box::pin(body).wait(),
        };
        assert_eq!(got, n);
        assert_linear(&polls, n);
    });
}

#[test]
fn one_at_a_time_on_a_worker_1_000() {
    one_at_a_time(1_000, true);
}

#[test]
fn one_at_a_time_on_a_worker_100_000() {
    one_at_a_time(100_000, true);
}

#[test]
fn one_at_a_time_without_a_runtime_1_000() {
    one_at_a_time(1_000, false);
}

#[test]
fn one_at_a_time_without_a_runtime_100_000() {
    one_at_a_time(100_000, false);
}
