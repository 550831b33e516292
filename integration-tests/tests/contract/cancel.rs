//! Cancelling queued and running tasks.

use std::sync::mpsc;
use std::time::Instant;

use integration_tests::tasks::{
    double, hold_tracked, leave, pass, pass_and_leave, pass_async, run_until_cancelled, wait_until_dropped,
    watch_for_cancellation,
};
use integration_tests::{Board, ContractRow, Fixture, Tracked, Waiting, eventually, millis, rows, seconds, within};
use polypool::{ExecutorExt, Shutdown, TaskError, TaskState};

pub(crate) const ROWS: &[ContractRow] = rows![
    p06_cancelled_queued_task_never_runs,
    p07_waiter_is_released_by_a_cancel_elsewhere,
    p08_submit_cancel_shutdown_never_hangs,
    cancel_drops_the_arguments_of_a_queued_task_at_once,
    cancel_tells_the_truth_in_every_state,
    cancelled_running_task_is_done_at_once_and_sees_it,
    cancelled_asynchronous_task_stops_at_its_next_await,
    context_of_an_asynchronous_task_tells_of_its_cancellation,
    dropping_a_future_detaches,
    cancel_on_drop_cancels_a_queued_task,
    cancel_on_drop_cancels_a_running_task,
    cancel_on_drop_then_detach_lets_it_run,
    cancelled_tasks_leave_the_count_of_queued_ones,
];

fn p06_cancelled_queued_task_never_runs(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);

    let queued = pool.submit(leave { traces: traces.clone(), text: "cancelled body".into() });
    assert!(queued.cancel());
    assert!(queued.is_done(), "for its waiters it is done at once");
    gate.open();
    assert_eq!(busy.wait().unwrap(), 1);
    pool.submit(leave { traces: traces.clone(), text: "sentinel".into() }).wait().unwrap();

    assert_eq!(traces.all(), ["sentinel"]);
    assert!(queued.wait().unwrap_err().is_cancelled());
}

fn p07_waiter_is_released_by_a_cancel_elsewhere(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let _busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);

    for waiting in Waiting::BOTH {
        let queued = pool.submit(double { n: 1 });
        let handle = queued.handle();
        let (about_to_wait, waits) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            about_to_wait.send(()).unwrap();
            let outcome = waiting.outcome(queued);
            (outcome, Instant::now())
        });
        waits.recv().unwrap();
        // Whether the waiter blocks by now or a moment later, it must be released.
        let cancelled_at = Instant::now();
        assert!(handle.cancel());
        let (outcome, released_at) = waiter.join().unwrap();
        assert!(outcome.unwrap_err().is_cancelled());
        let took = released_at.saturating_duration_since(cancelled_at);
        assert!(took < millis(200), "{waiting:?}: released after {took:?}");
    }
    assert_eq!(pool.stats().running, 1, "the worker is still busy");
}

fn p08_submit_cancel_shutdown_never_hangs(executor: &'static dyn Fixture) {
    for _ in 0..200 {
        let pool = executor.pool(2);
        assert_eq!(pool.submit(double { n: 4 }).wait().unwrap(), 8);
        within(seconds(5), || {
            let cancelled = pool.submit(double { n: 5 });
            let answer = cancelled.cancel();
            pool.shutdown(Shutdown::Drain).wait();
            assert_eq!(answer, cancelled.is_cancelled(), "the answer of cancel is truthful");
        });
    }
}

fn cancel_drops_the_arguments_of_a_queued_task_at_once(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let _busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);

    let queued = pool.submit(hold_tracked { tracked: Tracked::new(1), gate: gate.clone() });
    queued.cancel();
    assert_eq!(Tracked::live(1), 0);
}

fn cancel_tells_the_truth_in_every_state(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let running = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    assert!(eventually(seconds(5), || running.state() == TaskState::Running));
    let queued = pool.submit(double { n: 1 });
    assert_eq!(queued.state(), TaskState::Queued);

    assert!(queued.cancel(), "queued: yes");
    assert!(queued.cancel(), "cancelled: yes again");
    assert_eq!(queued.state(), TaskState::Cancelled);
    assert!(running.cancel(), "running: yes, its outcome is \"cancelled\"");
    assert_eq!(running.state(), TaskState::Cancelled);
    gate.open();
    assert!(running.wait().unwrap_err().is_cancelled(), "whatever its work went on to");

    let mut done = pool.submit(double { n: 2 });
    assert_eq!(done.wait_timeout(seconds(30)).unwrap().unwrap(), 4);
    assert!(!done.cancel(), "done: no");
    assert_eq!(done.state(), TaskState::Succeeded, "and nothing changes");
}

fn cancelled_running_task_is_done_at_once_and_sees_it(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("started"), board.traces());
    let running = pool.submit(run_until_cancelled { gate: gate.clone(), traces: traces.clone() });
    gate.wait_for_arrivals(1);
    within(millis(200), || {
        assert!(running.cancel());
        assert!(running.wait().unwrap_err().is_cancelled());
    });
    assert_eq!(traces.wait_for(1), ["saw it"]);
    assert_eq!(pool.submit(double { n: 3 }).wait().unwrap(), 6, "the pool goes on");
}

fn cancelled_asynchronous_task_stops_at_its_next_await(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let running = pool.submit(wait_until_dropped { gate: gate.clone(), traces: traces.clone() });
    gate.wait_for_arrivals(1);
    within(millis(200), || {
        assert!(running.cancel());
        assert!(running.wait().unwrap_err().is_cancelled());
    });
    assert_eq!(traces.wait_for(1), ["dropped"]);
    gate.open();
    let after = pool.submit(pass_async { gate, value: 3 });
    assert_eq!(after.wait().unwrap(), 3, "the pool goes on");
    assert_eq!(traces.all(), ["dropped"], "it does not go on after the await");
}

fn context_of_an_asynchronous_task_tells_of_its_cancellation(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let running = pool.submit(watch_for_cancellation { gate: gate.clone(), traces: traces.clone() });
    gate.wait_for_arrivals(1);
    assert_eq!(traces.count(), 0);
    assert!(running.cancel());
    assert_eq!(traces.wait_for(1), ["saw it"]);
}

fn dropping_a_future_detaches(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let running = pool.submit(pass_and_leave { gate: gate.clone(), traces: traces.clone(), text: "running".into() });
    gate.wait_for_arrivals(1);
    let queued = pool.submit(leave { traces: traces.clone(), text: "queued".into() });
    drop(running);
    drop(queued);
    pool.submit(leave { traces: traces.clone(), text: "detached".into() }).detach();
    gate.open();
    assert_eq!(traces.wait_for(3), ["running", "queued", "detached"]);
}

fn cancel_on_drop_cancels_a_queued_task(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let _busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    let queued = pool.submit(leave { traces: traces.clone(), text: "dropped".into() }).cancel_on_drop();
    let handle = queued.handle();
    drop(queued);
    assert_eq!(handle.state(), TaskState::Cancelled);
    gate.open();
    pool.submit(leave { traces: traces.clone(), text: "sentinel".into() }).wait().unwrap();
    assert_eq!(traces.all(), ["sentinel"]);
}

fn cancel_on_drop_cancels_a_running_task(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("started"), board.traces());
    let running = pool.submit(run_until_cancelled { gate: gate.clone(), traces: traces.clone() }).cancel_on_drop();
    gate.wait_for_arrivals(1);
    drop(running);
    assert_eq!(traces.wait_for(1), ["saw it"]);
}

fn cancel_on_drop_then_detach_lets_it_run(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    pool.submit(leave { traces: board.traces(), text: "ran".into() }).cancel_on_drop().detach();
    assert_eq!(board.traces().wait_for(1), ["ran"]);

    // And one whose outcome was read is not "cancelled" by its drop.
    let mut read = pool.submit(double { n: 1 }).cancel_on_drop();
    let handle = read.handle();
    assert_eq!(read.wait_timeout(seconds(30)).unwrap().unwrap(), 2);
    drop(read);
    assert_eq!(handle.state(), TaskState::Succeeded);
}

fn cancelled_tasks_leave_the_count_of_queued_ones(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    let queued: Vec<_> = (0..10).map(|n| pool.submit(double { n })).collect();
    assert_eq!(pool.stats().queued, 10);
    queued.iter().take(4).for_each(|task| assert!(task.cancel()));
    assert_eq!(pool.stats().queued, 6);
    gate.open();
    for (n, outcome) in queued.into_iter().map(polypool::TaskFuture::wait).enumerate() {
        match outcome {
            Ok(value) => assert_eq!((n >= 4, value), (true, 2 * n as u64)),
            Err(TaskError::Cancelled(_)) => assert!(n < 4),
            Err(other) => panic!("task {n}: {other}"),
        }
    }
    busy.wait().unwrap();
    pool.shutdown(Shutdown::Drain).wait();
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.completed, stats.skipped), (11, 7, 4));
}
