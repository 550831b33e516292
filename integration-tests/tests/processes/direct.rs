//! Callers that send calls and fetch answers on their own threads: what must come to the supervisor all the same, and
//! what may not change by who settles a task.
//!
//! Whether a caller fetches depends on when it comes. So tests of that try until it has happened, as often as is
//! reasonable on a machine that has other things to do; what they assert holds each time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use integration_tests::tasks::double;
use integration_tests::{Board, Gate, Row, eventually, millis, seconds};
use polypool::{Executor, ExecutorExt, Fd, ProcessPool, Shutdown, StartMethod, TaskOptions, context};
use serde::{Deserialize, Deserializer, Serialize};

use crate::common::{builder, ends_clean, look, pids, pool, soon, spin};

pub(crate) const ROWS: &[Row<fn()>] = crate::both![
    direct_answers_are_fetched,
    direct_fetch_beside_a_call_that_waits_for_an_idle_worker,
    direct_fetch_of_an_answer_behind_reports,
    direct_fetch_while_the_pool_ends,
    direct_answer_that_is_settled_late_is_of_the_earlier_run,
    direct_shutdown_while_an_answer_is_decoded,
    direct_kills_do_not_wait_for_callbacks,
];

/// How often a test tries to meet the moment.
const ATTEMPTS: u64 = 150;

/// How many answers callers have fetched.
fn fetched(pool: &ProcessPool) -> u64 {
    let text = format!("{pool:?}");
    let number = text.split("fetched: ").nth(1).expect("the pool tells");
    number.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number")
}

/// Whether there is a core for somebody to look, and something to look at.
fn can_fetch() -> bool {
    cfg!(target_os = "linux") && std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1)
}

/// Calls one after the other, until the pool knows that its tasks are short.
fn short_calls(pool: &ProcessPool, count: u64) {
    (0..count).for_each(|n| assert_eq!(soon(pool.submit(double { n })).unwrap(), 2 * n));
}

fn wait_busily(time: Duration) {
    let since = Instant::now();
    while since.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Takes some microseconds.
#[polypool::task]
fn busy(us: u64) -> u64 {
    wait_busily(Duration::from_micros(us));
    us
}

#[polypool::task]
fn give_back(handle: Fd) -> Fd {
    handle
}

#[polypool::task]
fn report_to(end: u64) -> u64 {
    for done in 1..=end {
        context().report_progress(done, end);
    }
    end
}

fn direct_answers_are_fetched(method: StartMethod) {
    if !can_fetch() {
        return;
    }
    let pool = pool(method, 1);
    assert!(eventually(seconds(20), || {
        short_calls(&pool, 100);
        fetched(&pool) > 0
    }));
    ends_clean(&pool, Shutdown::Drain);
}

/// The worker becomes idle by the fetch, and the call that waits for that is in the backlog.
fn direct_fetch_beside_a_call_that_waits_for_an_idle_worker(method: StartMethod) {
    let pool = pool(method, 1);
    for attempt in 0..ATTEMPTS {
        short_calls(&pool, 20);
        let first = pool.submit(busy { us: 400 });
        let null = std::fs::File::open("/dev/null").expect("a file");
        let second = pool.submit(give_back { handle: Fd::new(null.into()) });
        wait_busily(Duration::from_micros(150 + 10 * (attempt % 30)));
        assert_eq!(soon(first).unwrap(), 400);
        soon(second).expect("it has its turn");
    }
    ends_clean(&pool, Shutdown::Drain);
}

fn direct_fetch_of_an_answer_behind_reports(method: StartMethod) {
    let pool = pool(method, 1);
    for attempt in 0..ATTEMPTS {
        short_calls(&pool, 5);
        let end = attempt % 4;
        let mut task = pool.submit(report_to { end });
        assert_eq!(task.wait_timeout(seconds(5)).expect("an outcome").unwrap(), end);
        assert_eq!(task.progress().map(|progress| progress.done), (end > 0).then_some(end), "the last one is seen");
    }
    ends_clean(&pool, Shutdown::Drain);
}

fn direct_fetch_while_the_pool_ends(method: StartMethod) {
    for attempt in 0..12 {
        for mode in [Shutdown::Drain, Shutdown::CancelQueued, Shutdown::Now] {
            let pool = pool(method, 1);
            short_calls(&pool, 20);
            let task = pool.submit(busy { us: 50 });
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| soon(task));
                wait_busily(Duration::from_micros(10 * attempt));
                ends_clean(&pool, mode);
                match waiter.join().expect("the waiter returns") {
                    Ok(value) => assert_eq!(value, 50),
                    Err(error) => assert!(error.is_cancelled() && mode != Shutdown::Drain, "{mode:?}: {error:?}"),
                }
            });
        }
    }
}

/// What is done when the next [`Hooked`] is decoded.
type Hook = Box<dyn FnOnce() + Send>;

static HOOK: Mutex<Option<Hook>> = Mutex::new(None);

/// A number in whose decoding a test can interfere, if that happens on the thread of the caller.
#[derive(Debug, Serialize)]
struct Hooked(u64);

impl<'de> Deserialize<'de> for Hooked {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        if std::thread::current().name() == Some(CALLER)
            && let Some(hook) = HOOK.lock().unwrap().take()
        {
            hook();
        }
        Ok(Hooked(number))
    }
}

const CALLER: &str = "the caller";

/// The number of the run. The first takes some microseconds, and the others pass the gate.
#[polypool::task]
fn number_of_run(us: u64, gate: Gate) -> Hooked {
    let attempt = context().attempt();
    if attempt == 0 {
        wait_busily(Duration::from_micros(us));
    } else {
        gate.pass();
    }
    Hooked(attempt.into())
}

/// Who fetches may be held up before it settles. The task has then timed out and is with another worker, as a call of
/// the same number in the same slot.
fn direct_answer_that_is_settled_late_is_of_the_earlier_run(method: StartMethod) {
    const BEFORE: u64 = 9;
    if !can_fetch() {
        return;
    }
    let board = Board::new();
    let gate = board.gate("the second run");
    // Each worker has the same number of calls, of which the last one is that of the test.
    let pool = builder(method, 1).max_tasks_per_worker(BEFORE as usize + 1).build().unwrap();
    for attempt in 0..ATTEMPTS {
        short_calls(&pool, BEFORE);
        let (held, is_held) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        *HOOK.lock().unwrap() = Some(Box::new(move || {
            let _ = held.send(());
            let _ = released.recv_timeout(seconds(10));
        }));
        let options = TaskOptions::new().timeout(millis(500)).retries(1);
        let task = pool.submit_with(number_of_run { us: 400, gate: gate.clone() }, options);
        let waiter = std::thread::Builder::new()
            .name(CALLER.to_owned())
            .spawn(move || {
                wait_busily(Duration::from_micros(200 + 10 * (attempt % 15)));
                soon(task)
            })
            .unwrap();
        while !waiter.is_finished() {
            if is_held.recv_timeout(millis(1)).is_err() {
                continue;
            }
            short_calls(&pool, BEFORE);
            gate.wait_for_arrivals(1);
            release.send(()).unwrap();
            // There is nothing to see of an answer that comes too late.
            std::thread::sleep(millis(50));
            gate.open();
            assert_eq!(waiter.join().unwrap().unwrap().0, 1, "the answer of the second run");
            return ends_clean(&pool, Shutdown::Drain);
        }
        assert!(waiter.join().unwrap().is_ok());
    }
    eprintln!("no caller came at the right moment");
    ends_clean(&pool, Shutdown::Drain);
}

/// What is decoded on a caller's thread finds itself inside the pool, as on the supervisor's.
fn direct_shutdown_while_an_answer_is_decoded(method: StartMethod) {
    if !can_fetch() {
        return;
    }
    let board = Board::new();
    let has_run = Arc::new(AtomicBool::new(false));
    for _ in 0..ATTEMPTS {
        let pool = pool(method, 1);
        short_calls(&pool, 20);
        let (handle, ran) = (pool.clone(), has_run.clone());
        *HOOK.lock().unwrap() = Some(Box::new(move || {
            handle.shutdown(Shutdown::Drain).wait();
            ran.store(true, Ordering::SeqCst);
        }));
        let task = pool.submit(number_of_run { us: 0, gate: board.gate("unused") });
        let waiter = std::thread::Builder::new().name(CALLER.to_owned()).spawn(|| soon(task)).unwrap();
        assert!(eventually(seconds(5), || waiter.is_finished()), "the shutdown returns");
        assert_eq!(waiter.join().unwrap().unwrap().0, 0);
        ends_clean(&pool, Shutdown::Drain);
        if has_run.load(Ordering::SeqCst) {
            return;
        }
    }
    eprintln!("no caller came at the right moment");
}

/// The worker of a task that was cancelled is killed before the callbacks of the task are called.
fn direct_kills_do_not_wait_for_callbacks(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("started");
    let task = pool.submit(spin { gate: gate.clone() });
    gate.wait_for_arrivals(1);
    let pid = pids(&pool)[0];
    let (called, is_called) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    task.on_done(move |_| {
        let _ = called.send(());
        let _ = released.recv_timeout(seconds(10));
    });
    let end = pool.shutdown(Shutdown::Now);
    is_called.recv_timeout(seconds(5)).expect("the callback is called");
    let is_gone = || look(pid).is_none_or(|seen| seen.is_zombie());
    assert!(eventually(seconds(3), is_gone), "it runs on while a callback takes its time");
    release.send(()).unwrap();
    end.wait();
    assert!(soon(task).unwrap_err().is_cancelled());
    ends_clean(&pool, Shutdown::Now);
}
