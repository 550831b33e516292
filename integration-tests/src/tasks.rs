//! The tasks that many tests submit.
//!
//! Each is also a plain function, which is what the thread flavour of an initialiser calls.

use std::time::Duration;

use polypool::context;
use serde::{Deserialize, Serialize};

use crate::gate::{Gate, Traces};
use crate::tracked::Tracked;

/// Twice `n`.
#[polypool::task]
pub fn double(n: u64) -> u64 {
    n * 2
}

/// The sum of two numbers.
#[polypool::task]
pub fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// Waits at a gate, then returns `value`.
#[polypool::task]
pub fn pass(gate: Gate, value: u64) -> u64 {
    gate.pass();
    value
}

/// The same, asynchronously.
#[polypool::task]
pub async fn pass_async(gate: Gate, value: u64) -> u64 {
    gate.pass_async().await;
    value
}

/// Leaves a trace.
#[polypool::task]
pub fn leave(traces: Traces, text: String) {
    traces.leave(text);
}

/// Waits at a gate, then leaves a trace.
#[polypool::task]
pub fn pass_and_leave(gate: Gate, traces: Traces, text: String) {
    gate.pass();
    traces.leave(text);
}

/// Takes `ms` milliseconds: for the rows that are about tasks that take time.
#[polypool::task]
pub fn take_time(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

/// Says that it has started, and takes `ms` milliseconds.
#[polypool::task]
pub fn start_and_take_time(gate: Gate, ms: u64) -> u64 {
    gate.arrive();
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

/// Panics with a literal.
#[polypool::task]
pub fn panic_with_literal() -> u64 {
    panic!("a literal")
}

/// Panics with a formatted string.
#[polypool::task]
pub fn panic_with_text(text: String) -> u64 {
    panic!("said {text}")
}

/// Panics with something that is not text.
#[polypool::task]
pub fn panic_with_number() -> u64 {
    std::panic::panic_any(7_u64)
}

/// `n`, except that `bad` panics.
#[polypool::task]
pub fn all_but(n: u64, bad: u64) -> u64 {
    assert!(n != bad, "{n} is bad");
    n
}

/// Returns an error as its value.
#[polypool::task]
pub fn return_error(text: String) -> Result<u64, String> {
    Err(text)
}

/// Returns a tracked value.
#[polypool::task]
pub fn make_tracked(number: u64) -> Tracked {
    Tracked::new(number)
}

/// Holds a tracked value until the gate opens.
#[polypool::task]
pub fn hold_tracked(tracked: Tracked, gate: Gate) -> u64 {
    gate.pass();
    tracked.number()
}

/// A worker, as its task sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// The process.
    pub pid: u32,
    /// The thread in it.
    pub thread: String,
}

/// Where this runs.
#[polypool::task]
pub fn whereabouts() -> Whereabouts {
    Whereabouts { pid: std::process::id(), thread: format!("{:?}", std::thread::current().id()) }
}

/// Leaves a trace of each run, panics in the first `failures` of them, and returns the number of the run.
#[polypool::task]
pub fn panic_at_first(failures: u32, traces: Traces) -> u32 {
    let attempt = context().attempt();
    traces.leave(format!("run {attempt}"));
    assert!(attempt >= failures, "run {attempt} fails");
    attempt
}

/// Overstays in the first run, until it is told to stop; returns the number of the run.
#[polypool::task]
pub fn overstay_at_first(traces: Traces) -> u32 {
    let context = context();
    traces.leave(format!("run {}", context.attempt()));
    while context.attempt() == 0 && !context.is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    context.attempt()
}

/// The same, asleep on tokio's timer.
#[polypool::task]
pub async fn oversleep_at_first(traces: Traces) -> u32 {
    let attempt = context().attempt();
    traces.leave(format!("run {attempt}"));
    let time = if attempt == 0 { Duration::from_secs(3600) } else { Duration::from_millis(1) };
    tokio::time::sleep(time).await;
    attempt
}

/// Arrives at the gate, runs until it is cancelled, and leaves the trace "saw it".
#[polypool::task]
pub fn run_until_cancelled(gate: Gate, traces: Traces) {
    gate.arrive();
    while context().check().is_ok() {
        std::thread::sleep(Duration::from_millis(1));
    }
    traces.leave("saw it");
}

/// Waits at a gate, and would leave the trace "went on"; leaves the trace "dropped" when its future is dropped, which
/// is how an asynchronous task stops.
#[polypool::task]
pub async fn wait_until_dropped(gate: Gate, traces: Traces) {
    struct OnDrop(Traces);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.leave("dropped");
        }
    }
    let _on_drop = OnDrop(traces.clone());
    gate.pass_async().await;
    traces.leave("went on");
}

/// Starts a thread that leaves the trace "saw it" when this task is cancelled, and waits at a gate.
#[polypool::task]
pub async fn watch_for_cancellation(gate: Gate, traces: Traces) {
    let context = context();
    std::thread::spawn(move || {
        futures_ext::block_on(context.cancelled());
        traces.leave("saw it");
    });
    gate.pass_async().await;
}

/// Reports progress and waits at a gate, twice.
#[polypool::task]
pub fn report(first: Gate, second: Gate) {
    context().report_progress(1, 10);
    context().report_progress(2, 10);
    first.pass();
    context().report_progress(9, 10);
    second.pass();
}

/// The id and the name that the task sees of itself.
#[polypool::task]
pub fn own_name() -> Option<String> {
    context().name().map(std::borrow::Cow::into_owned)
}

/// The same, after an await.
#[polypool::task]
pub async fn own_name_async() -> Option<String> {
    tokio::task::yield_now().await;
    context().name().map(std::borrow::Cow::into_owned)
}

thread_local! {
    /// How often an initialiser ran on this thread.
    static INITIALIZED_THREAD: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// How often an initialiser ran in this process.
static INITIALIZED_PROCESS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// The initialiser: leaves the trace "init PID THREAD" and an effect that tasks can see, or fails.
#[polypool::task]
pub fn initialize(traces: Traces, failure: Option<String>) {
    let here = whereabouts();
    traces.leave(format!("init {} {}", here.pid, here.thread));
    if let Some(message) = failure {
        panic!("{message}");
    }
    INITIALIZED_THREAD.with(|count| count.set(count.get() + 1));
    INITIALIZED_PROCESS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
}

/// Where this runs, and how often the initialiser has run on this thread and in this process; after a gate.
#[polypool::task]
pub fn initialized(gate: Gate) -> (Whereabouts, u32, u32) {
    gate.pass();
    (
        whereabouts(),
        INITIALIZED_THREAD.with(std::cell::Cell::get),
        INITIALIZED_PROCESS.load(std::sync::atomic::Ordering::SeqCst),
    )
}
