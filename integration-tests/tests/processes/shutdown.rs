//! The end of a pool.

use integration_tests::tasks::{double, pass};
use integration_tests::{Board, Row, eventually, millis, seconds, within};
use polypool::{
    Executor, ExecutorExt, ProcessPool, Shutdown, StartMethod, SubmitError, TaskError, TaskFuture, TaskOptions,
};
use rustix::process::Signal;

use crate::both;
use crate::common::{
    builder, ends_clean, no_process_is_left, others, pass_pid, pid, pids, pool, signal, soon, spin,
    spin_through_sigterm,
};

pub(crate) const ROWS: &[Row<fn()>] = both![
    p42_now_ends_queued_and_running_tasks_quickly,
    p42_now_on_a_fresh_pool,
    p42_now_on_a_broken_pool,
    p42_now_on_a_pool_with_dead_workers,
    p42_now_while_workers_start,
    p42_now_with_a_stopped_worker,
    p42_now_overrides_a_drain_that_hangs,
    dropped_pool_finishes_and_leaves_no_process,
    no_zombie_is_left_while_the_pool_lives,
];

fn cancelled_or_rejected<T: Send + std::fmt::Debug + 'static>(task: TaskFuture<T>) {
    let error = soon(task).unwrap_err();
    assert!(error.is_cancelled() || matches!(error, TaskError::Rejected(_)), "{error:?}");
}

fn p42_now_ends_queued_and_running_tasks_quickly(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 3);
    let gate = board.gate("started");
    let running: Vec<_> = (0..3).map(|_| pool.submit(spin_through_sigterm { gate: gate.clone() })).collect();
    let queued: Vec<_> = (0..100).map(|n| pool.submit(double { n })).collect();
    gate.wait_for_arrivals(3);
    within(seconds(5), || {
        ends_clean(&pool, Shutdown::Now);
        running.into_iter().for_each(cancelled_or_rejected);
        queued.into_iter().for_each(cancelled_or_rejected);
    });
    assert!(matches!(soon(pool.submit(double { n: 1 })), Err(TaskError::Rejected(SubmitError::ShutDown))));
}

fn p42_now_on_a_fresh_pool(method: StartMethod) {
    within(seconds(5), || ends_clean(&pool(method, 2), Shutdown::Now));
}

fn p42_now_on_a_broken_pool(method: StartMethod) {
    let pool = builder(method, 2).worker_executable("/nonexistent/worker").build().unwrap();
    let error = soon(pool.submit(double { n: 1 })).unwrap_err();
    assert!(matches!(error, TaskError::Rejected(SubmitError::Broken(_))), "{error:?}");
    within(seconds(5), || ends_clean(&pool, Shutdown::Now));
}

fn p42_now_on_a_pool_with_dead_workers(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    let gate = board.gate("hold");
    let running = [0, 1].map(|value| pool.submit(pass { gate: gate.clone(), value }));
    gate.wait_for_arrivals(2);
    pids(&pool).into_iter().for_each(|pid| signal(pid, Signal::KILL));
    within(seconds(5), || ends_clean(&pool, Shutdown::Now));
    for task in running {
        let error = soon(task).unwrap_err();
        assert!(error.is_cancelled() || matches!(error, TaskError::WorkerLost(_)), "{error:?}");
    }
}

fn p42_now_while_workers_start(method: StartMethod) {
    for round in 0..30 {
        let pool = pool(method, 4);
        let tasks: Vec<_> = (0..20).map(|n| pool.submit(double { n })).collect();
        std::thread::sleep(std::time::Duration::from_micros(200 * round));
        within(seconds(5), || ends_clean(&pool, Shutdown::Now));
        for (n, task) in (0..).zip(tasks) {
            match soon(task) {
                Ok(value) => assert_eq!(value, 2 * n),
                Err(error) => assert!(error.is_cancelled(), "{error:?}"),
            }
        }
    }
}

fn p42_now_with_a_stopped_worker(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    let gate = board.gate("started");
    let task = pool.submit(spin { gate: gate.clone() });
    gate.wait_for_arrivals(1);
    signal(pids(&pool)[0], Signal::STOP);
    within(seconds(5), || ends_clean(&pool, Shutdown::Now));
    assert!(soon(task).unwrap_err().is_cancelled());
}

fn p42_now_overrides_a_drain_that_hangs(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("started");
    let (running, queued) = (pool.submit(spin { gate: gate.clone() }), pool.submit(double { n: 1 }));
    gate.wait_for_arrivals(1);
    for mode in [Shutdown::Drain, Shutdown::CancelQueued] {
        pool.shutdown(mode).wait_timeout(millis(100)).expect_err("it waits for the running task");
    }
    assert!(soon(queued).unwrap_err().is_cancelled());
    within(seconds(5), || ends_clean(&pool, Shutdown::Now));
    assert!(soon(running).unwrap_err().is_cancelled());
}

fn dropped_pool_finishes_and_leaves_no_process(method: StartMethod) {
    let board = Board::new();
    let gate = board.gate("hold");
    let running = {
        let pool: ProcessPool = pool(method, 2);
        let running = [0, 1, 2, 3].map(|_| pool.submit(pass_pid { gate: gate.clone() }));
        gate.wait_for_arrivals(2);
        within(millis(100), || drop(pool));
        running
    };
    gate.open();
    for task in running {
        soon(task).unwrap();
    }
    no_process_is_left(seconds(5));
}

fn no_zombie_is_left_while_the_pool_lives(method: StartMethod) {
    let pool = builder(method, 2).max_tasks_per_worker(1).build().unwrap();
    for _ in 0..20 {
        let worker = soon(pool.submit(pid {})).unwrap();
        signal(worker, Signal::KILL);
        let task = pool.submit_with(double { n: 1 }, TaskOptions::new().retries(5));
        assert_eq!(soon(task).unwrap(), 2);
    }
    let reaped = eventually(seconds(5), || !others().iter().any(crate::common::Seen::is_zombie));
    assert!(reaped, "{:?}", others());
}
