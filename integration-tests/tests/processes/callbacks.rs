//! What callbacks may do on the threads of a process pool.

use std::sync::{Arc, Mutex, mpsc};

use integration_tests::tasks::double;
use integration_tests::{Board, Row, eventually, millis, seconds};
use polypool::{
    CodecError, Executor, ExecutorExt, ProcessPool, Shutdown, StartMethod, TaskError, TaskFuture, TaskOptions,
};

use crate::both;
use crate::common::{Death, builder, die, ends_clean, goes_on, no_process_is_left, pass_pid, pool, soon, spin};

pub(crate) const ROWS: &[Row<fn()>] = both![
    pool_dropped_in_a_callback,
    shutdown_in_a_callback_returns,
    shutdown_in_the_callback_of_a_timeout_returns,
    blocking_wait_in_a_callback_panics_and_the_pool_goes_on,
    blocking_wait_in_the_callback_of_a_timeout_panics_and_the_pool_goes_on,
    callback_that_submits_and_cancels,
    callback_of_a_task_that_is_not_sent_may_use_the_pool,
    panic_in_a_callback_changes_nothing,
];

fn pool_dropped_in_a_callback(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("hold");
    let task = pool.submit(pass_pid { gate: gate.clone() });
    let queued = pool.submit(double { n: 3 });
    task.on_done(move |_| drop(pool));
    gate.open();
    soon(task).unwrap();
    assert_eq!(soon(queued).unwrap(), 6, "accepted work still finishes");
    no_process_is_left(seconds(5));
}

/// Calls `shutdown(..).wait()` in a callback of the task, and asserts that it returns.
fn shut_down_in_callback<T: Send + 'static>(
    pool: &ProcessPool,
    task: &TaskFuture<T>,
    mode: Shutdown,
) -> mpsc::Receiver<()> {
    let (sender, returned) = mpsc::channel();
    let handle = pool.clone();
    task.on_done(move |_| {
        handle.shutdown(mode).wait();
        let _ = sender.send(());
    });
    returned
}

fn shutdown_in_a_callback_returns(method: StartMethod) {
    for mode in [Shutdown::Drain, Shutdown::CancelQueued, Shutdown::Now] {
        let board = Board::new();
        let pool = pool(method, 2);
        let gate = board.gate("hold");
        let task = pool.submit(pass_pid { gate: gate.clone() });
        let returned = shut_down_in_callback(&pool, &task, mode);
        gate.open();
        returned.recv_timeout(seconds(5)).expect("the shutdown in the callback returns");
        soon(task).unwrap();
        ends_clean(&pool, mode);
    }
}

fn shutdown_in_the_callback_of_a_timeout_returns(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    let gate = board.gate("started");
    // While the callback of the first one waits for the end of the pool, somebody must end the second one.
    let first = pool.submit_with(spin { gate: gate.clone() }, TaskOptions::new().timeout(millis(300)));
    let second = pool.submit_with(spin { gate: gate.clone() }, TaskOptions::new().timeout(seconds(2)));
    let returned = shut_down_in_callback(&pool, &first, Shutdown::Drain);
    returned.recv_timeout(seconds(10)).expect("the shutdown in the callback returns");
    assert!(matches!(soon(first), Err(TaskError::TimedOut { .. })));
    assert!(matches!(soon(second), Err(TaskError::TimedOut { .. })));
    ends_clean(&pool, Shutdown::Drain);
}

/// The messages of all panics of this process from now on; a pool that is built afterwards keeps calling this hook.
fn panics() -> Arc<Mutex<Vec<String>>> {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let noted = messages.clone();
    std::panic::set_hook(Box::new(move |info| noted.lock().unwrap().push(info.to_string())));
    messages
}

fn wait_in_callback<T: Send + 'static>(task: &TaskFuture<T>, pool: &ProcessPool) -> mpsc::Receiver<()> {
    let (sender, waited) = mpsc::channel();
    let pool = pool.clone();
    task.on_done(move |_| {
        let _ = pool.submit(double { n: 1 }).wait();
        let _ = sender.send(());
    });
    waited
}

fn blocking_wait_in_a_callback_panics_and_the_pool_goes_on(method: StartMethod) {
    let messages = panics();
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("hold");
    let task = pool.submit(pass_pid { gate: gate.clone() });
    let waited = wait_in_callback(&task, &pool);
    gate.open();
    soon(task).unwrap();
    assert_eq!(waited.recv_timeout(seconds(5)), Err(mpsc::RecvTimeoutError::Disconnected), "the wait panics");
    let messages = messages.lock().unwrap().clone();
    assert!(messages.iter().any(|text| text.contains("blocking wait inside a callback")), "{messages:?}");
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}

fn blocking_wait_in_the_callback_of_a_timeout_panics_and_the_pool_goes_on(method: StartMethod) {
    let messages = panics();
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("started");
    let task = pool.submit_with(spin { gate: gate.clone() }, TaskOptions::new().timeout(millis(300)));
    let waited = wait_in_callback(&task, &pool);
    assert!(matches!(soon(task), Err(TaskError::TimedOut { .. })));
    assert_eq!(waited.recv_timeout(seconds(5)), Err(mpsc::RecvTimeoutError::Disconnected), "the wait panics");
    let messages = messages.lock().unwrap().clone();
    assert!(messages.iter().any(|text| text.contains("blocking wait inside a callback")), "{messages:?}");
    goes_on(&pool);
}

fn callback_that_submits_and_cancels(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    let (hold, started) = (board.gate("hold"), board.gate("started"));
    let running = pool.submit(spin { gate: started.clone() });
    started.wait_for_arrivals(1);
    let task = pool.submit(pass_pid { gate: hold.clone() });
    let (sender, submitted) = mpsc::channel();
    let (handle, again) = (running.handle(), pool.clone());
    task.on_done(move |_| {
        handle.cancel();
        let _ = sender.send((again.submit(double { n: 5 }), again.stats().workers.len()));
    });
    hold.open();
    soon(task).unwrap();
    assert!(soon(running).unwrap_err().is_cancelled());
    let (next, workers) = submitted.recv_timeout(seconds(5)).unwrap();
    assert_eq!((soon(next).unwrap(), workers), (10, 2));
    ends_clean(&pool, Shutdown::Drain);
}

/// A task that no worker executable knows.
#[derive(serde::Serialize, serde::Deserialize)]
struct Unregistered;

impl polypool::Task for Unregistered {
    type Output = u64;
    const NAME: &'static str = "nobody registered this";
    fn run(self) -> polypool::Run<u64> {
        polypool::Run::Ready(1)
    }
}

fn callback_of_a_task_that_is_not_sent_may_use_the_pool(method: StartMethod) {
    let pool = pool(method, 1);
    let task = pool.submit(Unregistered);
    let (sender, submitted) = mpsc::channel();
    let again = pool.clone();
    task.on_done(move |_| {
        // All that takes a lock of the pool.
        let stats = again.stats();
        let cancelled = again.submit(double { n: 1 });
        cancelled.cancel();
        let _ = sender.send((again.submit(double { n: 2 }), stats, format!("{again:?}")));
    });
    match soon(task) {
        Err(TaskError::Codec(error)) => {
            assert!(matches!(*error, CodecError::UnknownTask(_)), "{error:?}");
            assert!(error.to_string().contains("nobody registered this"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(soon(submitted.recv_timeout(seconds(5)).unwrap().0).unwrap(), 4);
    ends_clean(&pool, Shutdown::Drain);
}

fn panic_in_a_callback_changes_nothing(method: StartMethod) {
    let messages = panics();
    let pool = builder(method, 1).build().unwrap();
    let task = pool.submit(die { how: Death::Exit(3) });
    task.on_done(|_| panic!("a bad callback"));
    let (sender, called) = mpsc::channel();
    task.on_done(move |outcome| {
        let _ = sender.send(outcome.is_err());
    });
    assert!(matches!(soon(task), Err(TaskError::WorkerLost(_))));
    assert_eq!(called.recv_timeout(seconds(5)), Ok(true));
    assert!(eventually(seconds(5), || messages.lock().unwrap().iter().any(|text| text.contains("a bad callback"))));
    goes_on(&pool);
}
