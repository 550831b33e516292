//! Options of a task, and what a running task can learn and say.

use std::time::{Duration, Instant};

use integration_tests::tasks::{
    double, leave, oversleep_at_first, overstay_at_first, own_name, own_name_async, panic_at_first, panic_with_literal,
    pass, pass_async, report, run_until_cancelled,
};
use integration_tests::{Board, ContractRow, Fixture, Traces, Waiting, eventually, millis, rows, seconds, within};
use polypool::{ExecutorExt, Progress, Shutdown, Task, TaskError, TaskOptions, TaskState, context};

pub(crate) const ROWS: &[ContractRow] = rows![
    retries_run_a_task_again_after_a_panic,
    retries_that_are_used_up_give_the_last_failure,
    retries_run_a_task_again_after_its_timeout,
    retries_run_an_asynchronous_task_again_where_it_belongs,
    no_retry_after_a_cancel,
    without_retries_nothing_runs_twice,
    timeout_bounds_the_running_time,
    timeout_does_not_count_the_time_in_the_backlog,
    timeout_of_an_asynchronous_task,
    timeout_that_is_not_reached_changes_nothing,
    deadline_counts_the_time_in_the_backlog,
    deadline_stops_a_running_task,
    deadline_in_the_past_never_runs,
    longest_times_are_no_problem,
    progress_shows_the_newest_report,
    context_knows_the_task,
    context_outside_of_a_task_is_never_cancelled,
];

fn retries_run_a_task_again_after_a_panic(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(1);
        let task = panic_at_first { failures: 2, traces: board.traces() };
        let task = pool.submit_with(task, TaskOptions::new().retries(2));
        assert_eq!(waiting.outcome(task).unwrap(), 2);
        assert_eq!(board.traces().all(), ["run 0", "run 1", "run 2"]);
        assert!(eventually(seconds(5), || pool.stats().retried == 2));
    }
}

fn retries_that_are_used_up_give_the_last_failure(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let task = panic_at_first { failures: 5, traces: board.traces() };
    match pool.submit_with(task, TaskOptions::new().retries(1)).wait() {
        Err(TaskError::Panicked(report)) => assert_eq!(report.message.as_deref(), Some("run 1 fails")),
        other => panic!("{other:?}"),
    }
    assert_eq!(board.traces().all(), ["run 0", "run 1"]);
}

fn retries_run_a_task_again_after_its_timeout(executor: &'static dyn Fixture) {
    runs_again_after_its_timeout(executor, |traces| overstay_at_first { traces });
}

fn retries_run_an_asynchronous_task_again_where_it_belongs(executor: &'static dyn Fixture) {
    runs_again_after_its_timeout(executor, |traces| oversleep_at_first { traces });
}

fn runs_again_after_its_timeout<T: Task<Output = u32>>(executor: &'static dyn Fixture, task: impl FnOnce(Traces) -> T) {
    let board = Board::new();
    let pool = executor.pool(1);
    let task = pool.submit_with(task(board.traces()), TaskOptions::new().timeout(millis(100)).retries(1));
    assert_eq!(task.wait().unwrap(), 1);
    assert_eq!(board.traces().all(), ["run 0", "run 1"]);
    pool.shutdown(Shutdown::Drain).wait();
}

fn no_retry_after_a_cancel(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("started");
    let task = run_until_cancelled { gate: gate.clone(), traces: board.traces() };
    let task = pool.submit_with(task, TaskOptions::new().retries(3));
    gate.wait_for_arrivals(1);
    assert!(task.cancel());
    assert!(task.wait().unwrap_err().is_cancelled());
    pool.shutdown(Shutdown::Drain).wait();
    assert_eq!(gate.arrivals(), 1);
}

fn without_retries_nothing_runs_twice(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let task = pool.submit(panic_at_first { failures: 1, traces: board.traces() });
    assert!(matches!(task.wait(), Err(TaskError::Panicked(_))));
    pool.submit(double { n: 1 }).wait().unwrap();
    assert_eq!(board.traces().all(), ["run 0"]);
    assert_eq!(pool.stats().retried, 0);
}

fn timeout_bounds_the_running_time(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(1);
        let (gate, traces) = (board.gate("started"), board.traces());
        let task = run_until_cancelled { gate: gate.clone(), traces: traces.clone() };
        let start = Instant::now();
        let task = pool.submit_with(task, TaskOptions::new().timeout(millis(100)));
        let error = waiting.outcome(task).unwrap_err();
        let took = start.elapsed();
        assert!(matches!(error, TaskError::TimedOut { after } if after == millis(100)), "{error:?}");
        assert!(error.to_string().contains("100ms"), "{error}");
        assert!(took >= millis(100) && took < seconds(5), "{took:?}");
        assert_eq!(traces.wait_for(1), ["saw it"], "it is stopped as by a cancel");
        assert_eq!(pool.submit(double { n: 2 }).wait().unwrap(), 4, "the pool goes on");
    }
}

fn timeout_does_not_count_the_time_in_the_backlog(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    let mut task = pool.submit_with(double { n: 3 }, TaskOptions::new().timeout(millis(100)));
    assert!(task.wait_timeout(millis(300)).is_err(), "still queued, long after its timeout");
    assert_eq!(task.state(), TaskState::Queued);
    gate.open();
    assert_eq!(busy.wait().unwrap(), 1);
    assert_eq!(task.wait().unwrap(), 6);
}

fn timeout_of_an_asynchronous_task(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let task = pass_async { gate: board.gate("never"), value: 1 };
    let error = pool.submit_with(task, TaskOptions::new().timeout(millis(50))).wait().unwrap_err();
    assert!(matches!(error, TaskError::TimedOut { .. }), "{error:?}");
    pool.shutdown(Shutdown::Drain).wait();
}

fn timeout_that_is_not_reached_changes_nothing(executor: &'static dyn Fixture) {
    let pool = executor.pool(2);
    let options = || TaskOptions::new().timeout(seconds(50)).deadline(Instant::now() + seconds(50));
    let tasks: Vec<_> = (0..2_000).map(|n| pool.submit_with(double { n }, options())).collect();
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.wait().unwrap(), 2 * n as u64);
    }
    let error = pool.submit_with(panic_with_literal {}, options()).wait().unwrap_err();
    assert!(matches!(error, TaskError::Panicked(_)));
    within(seconds(5), || pool.shutdown(Shutdown::Drain).wait());
}

fn deadline_counts_the_time_in_the_backlog(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    let start = Instant::now();
    let queued = leave { traces: traces.clone(), text: "too late".into() };
    let queued = pool.submit_with(queued, TaskOptions::new().deadline(start + millis(100)));
    let error = queued.wait().unwrap_err();
    assert!(matches!(error, TaskError::DeadlineExceeded), "{error:?}");
    assert!(start.elapsed() >= millis(100) && start.elapsed() < seconds(5), "although the worker is still busy");
    gate.open();
    busy.wait().unwrap();
    pool.submit(double { n: 1 }).wait().unwrap();
    assert_eq!(traces.count(), 0, "it never ran");
}

fn deadline_stops_a_running_task(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("started"), board.traces());
    let task = run_until_cancelled { gate: gate.clone(), traces: traces.clone() };
    // Far enough ahead for a worker to start in the meantime, also a process.
    let deadline = Instant::now() + seconds(1);
    let task = pool.submit_with(task, TaskOptions::new().deadline(deadline).retries(3));
    gate.wait_for_arrivals(1);
    let error = task.wait().unwrap_err();
    assert!(matches!(error, TaskError::DeadlineExceeded), "{error:?}");
    assert!(Instant::now() >= deadline);
    assert_eq!(traces.wait_for(1), ["saw it"]);
    pool.shutdown(Shutdown::Drain).wait();
    assert_eq!(gate.arrivals(), 1, "a deadline is not retried");
}

fn deadline_in_the_past_never_runs(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let busy = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    let Some(past) = Instant::now().checked_sub(seconds(1)) else {
        return;
    };
    let late = leave { traces: board.traces(), text: "late".into() };
    let late = pool.submit_with(late, TaskOptions::new().deadline(past));
    assert!(matches!(late.wait(), Err(TaskError::DeadlineExceeded)));
    gate.open();
    busy.wait().unwrap();
    pool.shutdown(Shutdown::Drain).wait();
    assert_eq!(board.traces().count(), 0);
}

fn longest_times_are_no_problem(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    let mut task = pool.submit_with(double { n: 1 }, TaskOptions::new().timeout(Duration::MAX).retries(u32::MAX));
    assert_eq!(task.wait_timeout(Duration::MAX).unwrap().unwrap(), 2);
    let mapped: Result<Vec<_>, _> = pool.map([double { n: 2 }]).timeout(Duration::MAX).blocking().collect();
    assert_eq!(mapped.unwrap(), [4]);
}

fn progress_shows_the_newest_report(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let task = pool.submit(report { first: board.gate("first"), second: board.gate("second") });
    let handle = task.handle();
    board.gate("first").wait_for_arrivals(1);
    assert!(eventually(seconds(5), || task.progress() == Some(Progress { done: 2, total: 10 })));
    board.gate("first").open();
    board.gate("second").wait_for_arrivals(1);
    assert!(eventually(seconds(5), || handle.progress() == Some(Progress { done: 9, total: 10 })));
    board.gate("second").open();
    task.wait().unwrap();
    assert_eq!(pool.submit(double { n: 1 }).progress(), None, "none before the first report");
}

fn context_knows_the_task(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    let named = || TaskOptions::new().name("my task");
    for waiting in Waiting::BOTH {
        assert_eq!(waiting.outcome(pool.submit_with(own_name {}, named())).unwrap().as_deref(), Some("my task"));
        assert_eq!(waiting.outcome(pool.submit_with(own_name_async {}, named())).unwrap().as_deref(), Some("my task"));
    }
    let own = pool.submit(own_name {}).wait().unwrap().unwrap();
    assert!(own.ends_with("tasks::own_name"), "{own}");
}

fn context_outside_of_a_task_is_never_cancelled(_: &'static dyn Fixture) {
    let context = context();
    assert!(!context.is_cancelled() && context.check().is_ok());
    assert_eq!((context.id(), context.name(), context.attempt()), (None, None, 0));
    context.report_progress(1, 2);
    assert_eq!(own_name(), None, "a task that is called as a function");
}
