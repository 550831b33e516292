//! Shutting down and letting go.

use std::sync::mpsc;

use integration_tests::fixture::own_prefix;
use integration_tests::tasks::{
    double, hold_tracked, leave, pass, run_until_cancelled, start_and_take_time, take_time,
};
use integration_tests::waiting::runtime;
use integration_tests::{Board, ContractRow, Fixture, Pool, Spec, Tracked, eventually, millis, rows, seconds, within};
use polypool::{ExecutorExt, Shutdown, SubmitError, TaskError, TaskFuture, TaskState};

pub(crate) const ROWS: &[ContractRow] = rows![
    p36_submit_after_shutdown_is_refused,
    p37_drain_runs_all_queued_work,
    p37_drain_right_after_the_submits,
    p38_cancelling_shutdown_lets_the_started_ones_finish,
    p39_shutdown_without_waiting_returns_at_once,
    p40_dropping_the_pool_still_computes,
    p40_dropping_the_pool_with_a_map_outstanding,
    map_that_has_ended_does_not_keep_the_pool,
    p41_no_worker_is_left_after_shutdown,
    p41_shutdown_is_idempotent_and_concurrent,
    now_resolves_everything_at_once,
    stronger_shutdown_overrides_a_weaker_one,
    weaker_shutdown_does_not_weaken_a_stronger_one,
    shutdown_in_a_callback_does_not_hang,
    shutdown_in_the_callback_of_a_timeout_does_not_hang,
    dropping_the_pool_in_a_callback_does_not_hang,
    shutdown_ends_the_asynchronous_tasks_too,
    terminated_can_be_waited_for_in_each_way,
];

const MODES: [Shutdown; 3] = [Shutdown::Drain, Shutdown::CancelQueued, Shutdown::Now];

/// A task that holds its worker until the gate "hold" opens.
fn busy(pool: &Pool, board: &Board, value: u64) -> TaskFuture<u64> {
    let gate = board.gate("hold");
    let before = gate.arrivals();
    let task = pool.submit(pass { gate: gate.clone(), value });
    gate.wait_for_arrivals(before + 1);
    task
}

fn p36_submit_after_shutdown_is_refused(executor: &'static dyn Fixture) {
    for mode in MODES {
        let board = Board::new();
        let pool = executor.pool(1);
        pool.shutdown(mode).wait();
        let refused = pool.submit(hold_tracked { tracked: Tracked::new(1), gate: board.gate("never") });
        assert_eq!(Tracked::live(1), 0, "the arguments are dropped");
        let error = refused.wait().unwrap_err();
        assert!(matches!(error, TaskError::Rejected(SubmitError::ShutDown)), "not \"broken\": {error:?}");
        assert!(error.to_string().contains("shut down"), "{error}");
        assert_eq!(board.gate("never").arrivals(), 0, "and it does not run");
        assert!(matches!(pool.try_submit(double { n: 1 }).unwrap_err().error, SubmitError::ShutDown));
        assert!(matches!(runtime().block_on(pool.reserve()).unwrap_err(), SubmitError::ShutDown));
    }
}

fn p37_drain_runs_all_queued_work(executor: &'static dyn Fixture) {
    let pool = executor.pool(5);
    let tasks: Vec<_> = (0..50).map(|_| pool.submit(take_time { ms: 100 })).collect();
    pool.shutdown(Shutdown::Drain).wait();
    assert!(tasks.iter().all(|task| task.state() == TaskState::Succeeded), "all have values at return");
    assert!(tasks.into_iter().all(|task| task.wait().unwrap() == 100));
}

fn p37_drain_right_after_the_submits(executor: &'static dyn Fixture) {
    for workers in [1, 2] {
        for _ in 0..50 {
            let pool = executor.pool(workers);
            let tasks: Vec<_> = (0..=workers as u64).map(|n| pool.submit(double { n })).collect();
            pool.shutdown(Shutdown::Drain).wait();
            for (n, task) in tasks.into_iter().enumerate() {
                assert!(task.is_done());
                assert_eq!(task.wait().unwrap(), 2 * n as u64);
            }
        }
    }
}

fn p38_cancelling_shutdown_lets_the_started_ones_finish(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(5);
    let gate = board.gate("started");
    let tasks: Vec<_> = (0..50).map(|_| pool.submit(start_and_take_time { gate: gate.clone(), ms: 100 })).collect();
    gate.wait_for_arrivals(1);
    pool.shutdown(Shutdown::CancelQueued).wait();
    let (mut values, mut cancelled) = (0, 0);
    for task in tasks {
        assert!(task.is_done(), "none is left pending");
        match task.wait() {
            Ok(value) => {
                assert_eq!(value, 100);
                values += 1;
            }
            Err(error) => {
                assert!(error.is_cancelled(), "no third state: {error}");
                cancelled += 1;
            }
        }
    }
    assert!(cancelled > 20 && values >= 1, "{cancelled} cancelled, {values} values");
    assert_eq!(gate.arrivals(), values, "what had started is what finished");
}

fn p39_shutdown_without_waiting_returns_at_once(executor: &'static dyn Fixture) {
    let board = Board::new();
    let prefix = own_prefix();
    let pool = executor.build(Spec::workers(2).name_prefix(&prefix));
    let gate = board.gate("hold");
    let tasks: Vec<_> = (0..5).map(|value| pool.submit(pass { gate: gate.clone(), value })).collect();
    gate.wait_for_arrivals(2);
    within(millis(100), || drop(pool.shutdown(Shutdown::Drain)));
    assert!(matches!(pool.submit(double { n: 1 }).wait(), Err(TaskError::Rejected(SubmitError::ShutDown))));
    gate.open();
    let values: Vec<_> = tasks.into_iter().map(|task| task.wait().unwrap()).collect();
    assert_eq!(values, [0, 1, 2, 3, 4]);
    assert!(eventually(seconds(5), || pool.stats().workers.is_empty()));
    assert!(none_left(executor, &prefix));
}

fn p40_dropping_the_pool_still_computes(executor: &'static dyn Fixture) {
    let board = Board::new();
    let prefix = own_prefix();
    let pool = executor.build(Spec::workers(2).name_prefix(&prefix));
    let gate = board.gate("hold");
    let tasks: Vec<_> = (0..5).map(|value| pool.submit(pass { gate: gate.clone(), value })).collect();
    gate.wait_for_arrivals(2);
    within(millis(100), || drop(pool));
    gate.open();
    let values: Vec<_> = tasks.into_iter().map(|task| task.wait().unwrap()).collect();
    assert_eq!(values, [0, 1, 2, 3, 4]);
    assert!(none_left(executor, &prefix));
}

fn none_left(executor: &'static dyn Fixture, prefix: &str) -> bool {
    eventually(seconds(5), || executor.os_workers(prefix).is_none_or(|names| names.is_empty()))
}

fn p40_dropping_the_pool_with_a_map_outstanding(executor: &'static dyn Fixture) {
    let prefix = own_prefix();
    let pool = executor.build(Spec::workers(2).name_prefix(&prefix));
    let map = pool.map((0..3_000).map(|n| double { n })).start();
    drop(pool);
    let values: Vec<_> = map.blocking().map(Result::unwrap).collect();
    assert_eq!(values, (0..3_000).map(double).collect::<Vec<_>>(), "more than the map had started, and all available");
    assert!(none_left(executor, &prefix));
}

fn map_that_has_ended_does_not_keep_the_pool(executor: &'static dyn Fixture) {
    let prefix = own_prefix();
    let pool = executor.build(Spec::workers(2).name_prefix(&prefix));
    let mut map = pool.map((0..10).map(|n| double { n })).start().blocking();
    drop(pool);
    assert_eq!(map.by_ref().map(Result::unwrap).sum::<u64>(), 90);
    assert!(none_left(executor, &prefix), "although the map itself is still there");
    drop(map);
}

fn p41_no_worker_is_left_after_shutdown(executor: &'static dyn Fixture) {
    for mode in MODES {
        let board = Board::new();
        let prefix = own_prefix();
        let pool = executor.build(Spec::workers(3).name_prefix(&prefix));
        let gate = board.gate("hold");
        let tasks: Vec<_> = (0..3).map(|value| pool.submit(pass { gate: gate.clone(), value })).collect();
        gate.wait_for_arrivals(3);
        assert!(executor.os_workers(&prefix).is_none_or(|names| names.len() == 3));
        gate.open();
        for task in tasks {
            task.wait().unwrap();
        }
        pool.shutdown(mode).wait();
        if mode != Shutdown::Now {
            assert_eq!(pool.stats().workers.len(), 0, "{mode:?}");
        }
        // A thread that has nothing more to do is still listed for an instant.
        let none_left = || executor.os_workers(&prefix).is_none_or(|names| names.is_empty());
        assert!(eventually(seconds(1), none_left), "{mode:?}: {:?}", executor.os_workers(&prefix));
    }
}

fn p41_shutdown_is_idempotent_and_concurrent(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(2);
    let task = busy(&pool, &board, 1);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(|| pool.shutdown(Shutdown::Drain).wait())).collect();
        board.gate("hold").open();
        for caller in callers {
            caller.join().unwrap();
        }
    });
    assert_eq!(task.wait().unwrap(), 1);
    for mode in MODES {
        within(millis(200), || pool.shutdown(mode).wait());
    }
}

fn now_resolves_everything_at_once(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let traces = board.traces();
    let running = pool.submit(run_until_cancelled { gate: board.gate("started"), traces: traces.clone() });
    board.gate("started").wait_for_arrivals(1);
    let queued: Vec<_> = (0..100).map(|n| pool.submit(leave { traces: traces.clone(), text: n.to_string() })).collect();
    within(seconds(5), || {
        pool.shutdown(Shutdown::Now).wait();
        assert!(running.wait().unwrap_err().is_cancelled());
        for task in queued {
            assert!(task.wait().unwrap_err().is_cancelled());
        }
    });
    assert!(traces.all().iter().all(|trace| trace == "saw it"), "nothing that was queued ran");
}

fn stronger_shutdown_overrides_a_weaker_one(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let running = pool.submit(run_until_cancelled { gate: board.gate("started"), traces: board.traces() });
    board.gate("started").wait_for_arrivals(1);
    let queued = pool.submit(double { n: 1 });

    let mut drain = pool.shutdown(Shutdown::Drain);
    assert!(drain.wait_timeout(millis(50)).is_err(), "it waits for what runs");
    assert_eq!(queued.state(), TaskState::Queued);
    let mut cancel = pool.shutdown(Shutdown::CancelQueued);
    assert_eq!(queued.state(), TaskState::Cancelled);
    assert!(cancel.wait_timeout(millis(50)).is_err());
    assert!(!running.is_done());
    within(seconds(5), || pool.shutdown(Shutdown::Now).wait());
    assert!(running.wait().unwrap_err().is_cancelled());
    within(seconds(5), || {
        drain.wait();
        cancel.wait();
    });
}

fn weaker_shutdown_does_not_weaken_a_stronger_one(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let running = busy(&pool, &board, 1);
    let queued = pool.submit(double { n: 1 });
    let terminated = pool.shutdown(Shutdown::CancelQueued);
    drop(pool.shutdown(Shutdown::Drain));
    assert!(queued.wait().unwrap_err().is_cancelled());
    board.gate("hold").open();
    assert_eq!(running.wait().unwrap(), 1);
    terminated.wait();
}

fn shutdown_in_a_callback_does_not_hang(executor: &'static dyn Fixture) {
    for mode in MODES {
        let board = Board::new();
        let pool = executor.pool(1);
        let running = busy(&pool, &board, 7);
        let queued = pool.submit(double { n: 1 });
        let (sender, returned) = mpsc::channel();
        let inner = pool.clone();
        running.on_done(move |_| {
            inner.shutdown(mode).wait();
            sender.send(()).unwrap();
        });
        board.gate("hold").open();
        returned.recv_timeout(seconds(10)).expect("the shutdown in the callback returns");
        assert_eq!(running.wait().unwrap(), 7);
        match queued.wait() {
            // A process goes on to the next task while the callback of the one before runs elsewhere.
            Ok(value) => assert!(value == 2 && (mode == Shutdown::Drain || executor.has_processes()), "{mode:?}"),
            Err(error) => assert!(error.is_cancelled() && mode != Shutdown::Drain, "{mode:?}: {error}"),
        }
        pool.shutdown(Shutdown::Drain).wait();
    }
}

fn shutdown_in_the_callback_of_a_timeout_does_not_hang(executor: &'static dyn Fixture) {
    // The callback runs on the clock of the pool, which other tasks need to come to their end: waiting there for the
    // end of the pool would be waiting for itself.
    let board = Board::new();
    let pool = executor.pool(2);
    let (gate, traces) = (board.gate("started"), board.traces());
    let task = || run_until_cancelled { gate: gate.clone(), traces: traces.clone() };
    let options = |ms| polypool::TaskOptions::new().timeout(millis(ms));
    let first = pool.submit_with(task(), options(50));
    let (sender, returned) = mpsc::channel();
    let inner = pool.clone();
    first.on_done(move |_| {
        inner.shutdown(Shutdown::Drain).wait();
        sender.send(()).unwrap();
    });
    let second = pool.submit_with(task(), options(300));
    returned.recv_timeout(seconds(10)).expect("the shutdown in the callback returns");
    assert!(matches!(first.wait(), Err(TaskError::TimedOut { .. })));
    assert!(matches!(second.wait(), Err(TaskError::TimedOut { .. })));
    pool.shutdown(Shutdown::Drain).wait();
}

fn dropping_the_pool_in_a_callback_does_not_hang(executor: &'static dyn Fixture) {
    let board = Board::new();
    let prefix = own_prefix();
    let pool = executor.build(Spec::workers(1).name_prefix(&prefix));
    let running = busy(&pool, &board, 7);
    let queued = pool.submit(double { n: 1 });
    running.on_done(move |_| drop(pool));
    board.gate("hold").open();
    assert_eq!(running.wait().unwrap(), 7);
    assert_eq!(queued.wait().unwrap(), 2);
    assert!(none_left(executor, &prefix));
}

fn shutdown_ends_the_asynchronous_tasks_too(executor: &'static dyn Fixture) {
    use integration_tests::tasks::{pass_async, wait_until_dropped};
    for mode in MODES {
        let board = Board::new();
        let pool = executor.pool(2);
        let task = pool.submit(pass_async { gate: board.gate("hold"), value: 4 });
        let stopped = pool.submit(wait_until_dropped { gate: board.gate("hold"), traces: board.traces() });
        board.gate("hold").wait_for_arrivals(2);
        let terminated = pool.shutdown(mode);
        if mode == Shutdown::Now {
            assert!(task.wait().unwrap_err().is_cancelled());
            assert!(stopped.wait().unwrap_err().is_cancelled());
            if !executor.has_processes() {
                assert_eq!(board.traces().wait_for(1), ["dropped"]);
            }
        } else {
            board.gate("hold").open();
            assert_eq!(task.wait().unwrap(), 4);
            stopped.wait().unwrap();
        }
        terminated.wait();
    }
}

fn terminated_can_be_waited_for_in_each_way(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let running = busy(&pool, &board, 1);
    let mut first = pool.shutdown(Shutdown::Drain);
    let second = pool.shutdown(Shutdown::Drain);
    assert!(first.wait_timeout(millis(20)).is_err());
    assert!(!format!("{first:?}").is_empty());
    board.gate("hold").open();
    runtime().block_on(second);
    first.wait_timeout(seconds(0)).expect("it has ended");
    first.wait();
    assert_eq!(running.wait().unwrap(), 1);
}
