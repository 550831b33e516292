//! Values, wakers and callbacks that misbehave or are used in unusual places, and what must survive them.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::Instant;

use futures_util::StreamExt;
use integration_tests::tasks::{double, leave, pass, run_until_cancelled};
use integration_tests::waiting::runtime;
use integration_tests::{Board, ContractRow, Fixture, Gate, Pool, Row, Spec, Traces, Waiting, millis, rows, seconds};
use polypool::{
    CodecError, Executor, ExecutorExt, Shutdown, TaskError, TaskFuture, TaskHandle, TaskOptions, TaskState, ThreadPool,
    context,
};
use serde::{Deserialize, Serialize};

pub(crate) const ROWS: &[ContractRow] = rows![
    result_that_panics_in_its_drop_stops_nothing,
    waker_that_panics_stops_nothing,
    waker_that_asks_for_the_task_in_its_drop,
    room_is_not_held_by_a_map_that_is_not_polled,
    timeout_ends_a_map_whose_outcomes_are_always_ready,
    callback_of_a_cancel_may_wait_for_the_end_of_the_pool,
    result_that_is_nested_deep_comes_back,
    deadline_in_the_past_is_never_run,
    context_tells_the_id_and_the_name,
    late_callback_does_not_hide_that_the_task_is_done,
    cancellation_that_is_polled_often_keeps_no_waker,
];

pub(crate) const THREADS: &[Row<fn()>] = rows![
    argument_that_panics_in_its_decoder_fails_the_retry,
    drain_waits_for_the_retry_of_an_asynchronous_task,
    blocking_thread_of_an_asynchronous_task_may_wait,
    every_blocking_wait_in_an_asynchronous_task_panics,
    now_ends_after_asynchronous_tasks_are_dropped,
];

/// The pool runs what comes next, and ends.
#[track_caller]
fn goes_on_and_drains(pool: &dyn Executor) {
    for n in 0..10 {
        let mut task = pool.submit(double { n });
        assert_eq!(task.wait_timeout(seconds(10)).expect("the pool goes on").unwrap(), 2 * n);
    }
    pool.shutdown(Shutdown::Drain).wait_timeout(seconds(10)).expect("the pool drains");
}

fn poll<T: Send + 'static>(future: &mut TaskFuture<T>, waker: &Waker) -> bool {
    Pin::new(future).poll(&mut Context::from_waker(waker)).is_ready()
}

/// A value that panics when it is dropped: in this process, or in any.
#[derive(Serialize, Deserialize)]
struct Grenade(Option<u32>);

impl Drop for Grenade {
    fn drop(&mut self) {
        assert!(self.0.is_some_and(|pid| pid != std::process::id()), "a panic in a drop");
    }
}

#[polypool::task]
fn make_grenade(gate: Gate, armed_in: Option<u32>) -> Grenade {
    gate.pass();
    Grenade(armed_in)
}

fn result_that_panics_in_its_drop_stops_nothing(executor: &'static dyn Fixture) {
    for armed_in in [Some(std::process::id()), None] {
        let board = Board::new();
        let pool = executor.pool(1);
        let gate = board.gate("hold");
        for _ in 0..3 {
            pool.submit(make_grenade { gate: gate.clone(), armed_in }).detach();
        }
        gate.wait_for_arrivals(1);
        gate.open();
        goes_on_and_drains(&*pool);
    }
}

struct PanickingWaker(AtomicBool);

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
        panic!("a panic in a waker");
    }
}

fn waker_that_panics_stops_nothing(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let mut task = pool.submit(pass { gate: gate.clone(), value: 5 });
    let mut queued = pool.submit(double { n: 1 });
    gate.wait_for_arrivals(1);
    let woken = [PanickingWaker(AtomicBool::new(false)), PanickingWaker(AtomicBool::new(false))].map(Arc::new);
    assert!(!poll(&mut task, &woken[0].clone().into()));
    assert!(!poll(&mut queued, &woken[1].clone().into()));
    gate.open();
    goes_on_and_drains(&*pool);
    assert!(woken.iter().all(|waker| waker.0.load(Ordering::SeqCst)), "it was called");
    assert_eq!(task.wait().unwrap(), 5, "the outcome is there");
    assert_eq!(queued.wait().unwrap(), 2);
}

struct AskingWaker(TaskHandle, mpsc::Sender<bool>);

impl Wake for AskingWaker {
    fn wake(self: Arc<Self>) {}
}

impl Drop for AskingWaker {
    fn drop(&mut self) {
        let _ = self.1.send(self.0.is_done());
    }
}

fn waker_that_asks_for_the_task_in_its_drop(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let mut task = pool.submit(pass { gate: gate.clone(), value: 5 });
    gate.wait_for_arrivals(1);
    let (sender, seen) = mpsc::channel();
    for _ in 0..2 {
        let waker = Waker::from(Arc::new(AskingWaker(task.handle(), sender.clone())));
        // The task now has the only clone, which the next poll replaces.
        assert!(!poll(&mut task, &waker));
    }
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [false], "the first one was dropped");
    assert!(!poll(&mut task, Waker::noop()));
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [false], "and the second one");
    gate.open();
    assert_eq!(task.wait_timeout(seconds(10)).unwrap().unwrap(), 5);
    goes_on_and_drains(&*pool);
}

fn room_is_not_held_by_a_map_that_is_not_polled(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(1).backlog(1));
    let submitted = runtime().block_on(async {
        let mut map = pool.map((0..50).map(|n| double { n }));
        let mut submitted = Vec::new();
        while let Some(outcome) = map.next().await {
            let n = outcome.unwrap();
            submitted.push((n, pool.reserve().await.unwrap().submit(double { n })));
        }
        submitted
    });
    assert_eq!(submitted.len(), 50);
    for (n, task) in submitted {
        assert_eq!(task.wait().unwrap(), 2 * n);
    }
}

fn timeout_ends_a_map_whose_outcomes_are_always_ready(executor: &'static dyn Fixture) {
    const BUFFER: usize = 16;
    for waiting in Waiting::BOTH {
        let pool = executor.pool(2);
        pool.submit(double { n: 0 }).wait().unwrap();
        let timeout = millis(300);
        let map = pool.map((0..).map(|n| double { n })).buffer(BUFFER).timeout(timeout).start();
        let deadline = Instant::now() + timeout;
        let mut outcomes = waiting.iterate(map);
        let (mut before, mut after) = (0, 0);
        loop {
            let is_after = Instant::now() >= deadline;
            match outcomes.next() {
                Some(Ok(n)) => assert_eq!(n, 2 * (before + after) as u64),
                Some(Err(TaskError::WaitElapsed(_))) => break,
                other => panic!("{other:?}"),
            }
            *(if is_after { &mut after } else { &mut before }) += 1;
            assert!(after <= BUFFER, "{waiting:?}: {after} outcomes after the deadline");
            // Slower than the pool: the next outcome is there by then.
            std::thread::sleep(millis(5));
        }
        assert!(before > 0 && Instant::now() >= deadline);
        assert!(outcomes.next().is_none(), "the error is the last element");
        drop(outcomes);
        goes_on_and_drains(&*pool);
    }
}

fn callback_of_a_cancel_may_wait_for_the_end_of_the_pool(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("started"), board.traces());
    let running = pool.submit(run_until_cancelled { gate: gate.clone(), traces: traces.clone() });
    gate.wait_for_arrivals(1);
    let (sender, seen) = mpsc::channel();
    let inner: Pool = pool.clone();
    running.on_done(move |_| {
        inner.shutdown(Shutdown::Drain).wait();
        sender.send(std::thread::current().id()).unwrap();
    });
    assert!(running.cancel());
    assert_eq!(seen.try_recv().unwrap(), std::thread::current().id(), "called by the cancel itself");
    assert_eq!(traces.all(), ["saw it"], "the pool had ended");
}

#[polypool::task]
fn nest(depth: usize) -> serde_json::Value {
    (0..depth).fold(serde_json::Value::Null, |inner, _| serde_json::Value::Array(vec![inner]))
}

fn result_that_is_nested_deep_comes_back(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    let value = pool.submit(nest { depth: 1_000 }).wait().unwrap();
    let mut depth = 0;
    let mut inner = &value;
    while let Some(next) = inner.get(0) {
        (inner, depth) = (next, depth + 1);
    }
    assert_eq!((depth, inner.is_null()), (1_000, true));
    goes_on_and_drains(&*pool);
}

fn deadline_in_the_past_is_never_run(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let now = Instant::now();
    let past = now.checked_sub(seconds(1)).unwrap_or(now);
    // The first one comes to a pool without workers, the others to one that is idle.
    for _ in 0..20 {
        let late = leave { traces: board.traces(), text: "late".into() };
        let late = pool.submit_with(late, TaskOptions::new().deadline(past));
        pool.submit(double { n: 1 }).wait().unwrap();
        assert!(matches!(late.wait(), Err(TaskError::DeadlineExceeded)));
    }
    goes_on_and_drains(&*pool);
    assert_eq!(board.traces().count(), 0);
}

#[polypool::task]
fn id_and_name() -> (String, Option<String>) {
    let context = context();
    (format!("{:?}", context.id()), context.name().map(std::borrow::Cow::into_owned))
}

#[polypool::task]
async fn id_and_name_async() -> (String, Option<String>) {
    tokio::task::yield_now().await;
    id_and_name()
}

fn context_tells_the_id_and_the_name(executor: &'static dyn Fixture) {
    let pool = executor.pool(2);
    let options = || TaskOptions::new().name("the name");
    let tasks: Vec<_> = (0..20)
        .flat_map(|_| [pool.submit_with(id_and_name {}, options()), pool.submit_with(id_and_name_async {}, options())])
        .collect();
    for task in tasks {
        let id = format!("{:?}", Some(task.id()));
        assert_eq!(task.name(), "the name");
        assert_eq!(task.wait().unwrap(), (id, Some("the name".to_owned())));
    }
    let unnamed = pool.submit(id_and_name {});
    let (id, name) = (format!("{:?}", Some(unnamed.id())), unnamed.name().into_owned());
    assert_eq!(unnamed.wait().unwrap(), (id, Some(name)));
}

fn late_callback_does_not_hide_that_the_task_is_done(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let task = pool.submit(pass { gate: gate.clone(), value: 5 });
    let (sender, done) = mpsc::channel();
    task.on_done(move |_| sender.send(()).unwrap());
    gate.open();
    done.recv().unwrap();
    pool.submit(double { n: 1 }).wait().unwrap();

    let handle = task.handle();
    let (started, starts) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let seen = std::thread::scope(|scope| {
        let task = &task;
        scope.spawn(move || {
            task.on_done(move |outcome| {
                started.send(*outcome.as_ref().unwrap()).unwrap();
                released.recv().unwrap();
            });
        });
        let value = starts.recv().unwrap();
        let seen = (value, handle.state(), handle.is_done(), handle.cancel(), handle.state());
        release.send(()).unwrap();
        seen
    });
    assert_eq!(seen, (5, TaskState::Succeeded, true, false, TaskState::Succeeded));
    assert_eq!(task.wait().unwrap(), 5);
}

struct CountedWaker;

impl Wake for CountedWaker {
    fn wake(self: Arc<Self>) {}
}

/// Polls for its cancellation as often, each time anew, as a `select` in a loop does; returns how many wakers are kept.
#[polypool::task]
async fn look_for_cancellation(times: usize) -> usize {
    let counted = Arc::new(CountedWaker);
    let waker = Waker::from(counted.clone());
    let context = context();
    for n in 0..times {
        let mut cancelled = pin!(context.cancelled());
        assert!(cancelled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    drop(waker);
    Arc::strong_count(&counted) - 1
}

fn cancellation_that_is_polled_often_keeps_no_waker(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    // The token may keep the last one; it must not keep one for each poll.
    let kept = pool.submit(look_for_cancellation { times: 2_000 }).wait().unwrap();
    assert!(kept <= 1, "{kept} wakers are kept");
}

// ---- Only on threads -----------------------------------------------------------------------------------------------

fn pool(workers: usize) -> ThreadPool {
    ThreadPool::builder().workers(workers).build().unwrap()
}

/// A value that panics when it is decoded.
#[derive(Serialize)]
struct Undecodable(u64);

impl<'de> Deserialize<'de> for Undecodable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("a panic in a decoder")
    }
}

#[polypool::task]
fn panic_with_undecodable(value: Undecodable, traces: Traces) {
    traces.leave(format!("run {}", context().attempt()));
    panic!("{}", value.0);
}

fn argument_that_panics_in_its_decoder_fails_the_retry() {
    let board = Board::new();
    let pool = pool(1);
    let task = panic_with_undecodable { value: Undecodable(1), traces: board.traces() };
    let error = pool.submit_with(task, TaskOptions::new().retries(1)).wait().unwrap_err();
    match &error {
        TaskError::Codec(error) => assert!(matches!(**error, CodecError::DecodeArgument(_)), "{error:?}"),
        other => panic!("{other:?}"),
    }
    assert!(error.to_string().contains("a panic in a decoder"), "{error}");
    assert_eq!(board.traces().all(), ["run 0"]);
    goes_on_and_drains(&pool);
}

#[polypool::task]
async fn panic_at_first_async(first: Gate, second: Gate) -> u32 {
    let attempt = context().attempt();
    let gate = if attempt == 0 { first } else { second };
    gate.pass_async().await;
    assert!(attempt > 0, "the first run fails");
    attempt
}

fn drain_waits_for_the_retry_of_an_asynchronous_task() {
    let board = Board::new();
    let pool = pool(1);
    let (first, second) = (board.gate("first"), board.gate("second"));
    let task = panic_at_first_async { first: first.clone(), second: second.clone() };
    let mut task = pool.submit_with(task, TaskOptions::new().retries(1));
    first.wait_for_arrivals(1);
    let mut terminated = pool.shutdown(Shutdown::Drain);
    first.open();
    second.wait_for_arrivals(1);
    assert!(terminated.wait_timeout(millis(100)).is_err(), "the second run is not over");
    assert!(!task.is_done());
    second.open();
    terminated.wait_timeout(seconds(10)).unwrap();
    assert_eq!(task.wait_timeout(seconds(0)).expect("before the end of the pool").unwrap(), 1);
}

fn blocking_thread_of_an_asynchronous_task_may_wait() {
    let pool = pool(1);
    let inner = pool.clone();
    let mut task = pool.spawn_async(async move {
        let waits = move || {
            let closure = inner.spawn(|| std::thread::sleep(millis(20))).wait();
            let future = inner.spawn_async(tokio::time::sleep(millis(20))).wait();
            closure.and(future)
        };
        tokio::task::spawn_blocking(waits).await.unwrap()
    });
    task.wait_timeout(seconds(10)).unwrap().unwrap().unwrap();
    goes_on_and_drains(&pool);
}

fn every_blocking_wait_in_an_asynchronous_task_panics() {
    type Wait = fn(ThreadPool, Gate);
    let waits: [(&str, Wait); 4] = [
        ("wait", |pool, gate| drop(pool.submit(pass { gate, value: 1 }).wait())),
        ("wait_timeout", |pool, gate| drop(pool.submit(pass { gate, value: 1 }).wait_timeout(seconds(60)))),
        ("map", |pool, gate| drop(pool.map([pass { gate, value: 1 }]).blocking().next())),
        ("as_completed", |pool, gate| {
            drop(futures_ext::as_completed([pool.submit(pass { gate, value: 1 })]).blocking().next());
        }),
    ];
    let board = Board::new();
    let pool = pool(1);
    for (name, wait) in waits {
        let (inner, gate) = (pool.clone(), board.gate(name));
        let mut task = pool.spawn_async({
            let gate = gate.clone();
            async move { wait(inner, gate) }
        });
        let outcome = task.wait_timeout(seconds(10)).unwrap_or_else(|_| panic!("{name} hangs"));
        gate.open();
        match outcome {
            Err(TaskError::Panicked(report)) => {
                let message = report.message.unwrap_or_default();
                assert!(message.contains("use .await"), "{name}: {message}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(pool.spawn_async(async { 1 }).wait().unwrap(), 1, "the asynchronous side goes on");
    }
    goes_on_and_drains(&pool);
}

/// Takes its time to be dropped, and is counted then.
struct SlowDrop(Arc<AtomicUsize>);

impl Drop for SlowDrop {
    fn drop(&mut self) {
        std::thread::sleep(millis(50));
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn now_ends_after_asynchronous_tasks_are_dropped() {
    for threads in [1, 2] {
        let pool = ThreadPool::builder().workers(1).async_threads(threads).build().unwrap();
        let dropped = Arc::new(AtomicUsize::new(0));
        let (started, starts) = mpsc::channel();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (slow, started) = (SlowDrop(dropped.clone()), started.clone());
                pool.spawn_async(async move {
                    let _slow = slow;
                    started.send(()).unwrap();
                    std::future::pending::<()>().await;
                })
            })
            .collect();
        for _ in &tasks {
            starts.recv().unwrap();
        }
        pool.shutdown(Shutdown::Now).wait_timeout(seconds(10)).unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 4, "with {threads} asynchronous threads");
        assert!(tasks.iter().all(TaskFuture::is_cancelled));
    }
}
