//! Delayed and periodic work on any executor: Python's `threading.Timer`, and what people build from it.
//!
//! One thread for the whole program, there only while something waits, holds what is to come and gives it to its
//! executor when the time has come. A delayed task is an ordinary one in state Queued: what cancels it is the same
//! transition of `state.rs` that cancels a task in a backlog, which is why it is exact.
//!
//! User code runs on that thread in a few places: what makes the next task of a [`Periodic`], the encoder of arguments
//! that leave the process, and callbacks of a task that its executor refuses. All of them are expected to be short.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{SubmitError, TaskError};
use crate::executor::{Executor, Slot};
use crate::future::{TaskFuture, TaskHandle, after};
use crate::job::{Closure, Job};
use crate::options::TaskOptions;
use crate::panic;
use crate::state::{Call, Cell};
use crate::thread::ThreadPool;

/// Ticks don't follow each other more closely than this.
const SHORTEST_PERIOD: Duration = Duration::from_millis(1);

static TIMER: Timer =
    Timer { state: Mutex::new(State { alarms: BTreeMap::new(), next: 0, is_running: false }), changed: Condvar::new() };

impl ThreadPool {
    /// Runs a closure on a worker, after `delay`; as [`submit_after`](crate::ExecutorExt::submit_after).
    ///
    /// ```
    /// use std::time::Duration;
    /// use polypool::ThreadPool;
    ///
    /// let pool = ThreadPool::new()?;
    /// let hello = pool.spawn_after(Duration::from_millis(10), || "hello");
    /// let never = pool.spawn_after(Duration::from_secs(3_600), || unreachable!());
    /// assert!(never.cancel());
    /// assert_eq!(hello.wait()?, "hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "Timer")]
    pub fn spawn_after<F, T>(&self, delay: Duration, closure: F) -> TaskFuture<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        submit_after(self.handle(), delay, Closure(closure), TaskOptions::new())
    }

    /// Runs a closure on a worker every `period`; as [`submit_every`](crate::ExecutorExt::submit_every).
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use std::time::Duration;
    /// use polypool::ThreadPool;
    ///
    /// let pool = ThreadPool::new()?;
    /// let (ticks, seen) = mpsc::channel();
    /// let mut n = 0;
    /// let ticking = pool.spawn_every(Duration::from_millis(5), move || {
    ///     n += 1;
    ///     let _ = ticks.send(n);
    /// });
    /// assert_eq!((seen.recv()?, seen.recv()?), (1, 2));
    /// assert!(ticking.cancel());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn_every<F, T>(&self, period: Duration, closure: F) -> Periodic
    where
        F: FnMut() -> T + Send + 'static,
        T: Send + 'static,
    {
        // Runs don't overlap, so nobody waits for this lock.
        let closure = Arc::new(Mutex::new(closure));
        submit_every(self.handle(), period, move || {
            let closure = closure.clone();
            Closure(move || (closure.lock())())
        })
    }
}

/// Work that is repeated; from [`ExecutorExt::submit_every`](crate::ExecutorExt::submit_every) and
/// [`ThreadPool::spawn_every`].
///
/// Dropping it is [`cancel`](Self::cancel). A repetition that is to go on for as long as its executor is
/// [detached](Self::detach).
#[must_use = "dropping a Periodic cancels it; call .detach() if it is to go on for as long as its executor"]
pub struct Periodic {
    beat: Arc<Beat>,
    is_detached: bool,
}

/// What the repetition and its handle share.
#[derive(Default)]
struct Beat {
    state: Mutex<BeatState>,
}

#[derive(Default)]
struct BeatState {
    has_ended: bool,
    /// Of its next tick.
    alarm: Option<Key>,
    /// The newest run.
    run: Option<TaskHandle>,
    ticks: u64,
    missed: u64,
    failures: u64,
    last_failure: Option<TaskError>,
}

impl Periodic {
    /// Ends the repetition: when this has returned, no run starts any more. One that runs already is cancelled like any
    /// task. `false`: it had ended before.
    #[allow(clippy::must_use_candidate)]
    pub fn cancel(&self) -> bool {
        self.beat.end(None)
    }

    /// Whether there will be more runs: until it is cancelled, or its executor is shut down or broken, which shows at
    /// the next tick.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.beat.state.lock().has_ended
    }

    /// How many runs there were so far, the one that runs now included.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.beat.state.lock().ticks
    }

    /// How many ticks were left out: because the run before had not ended, because the executor's backlog was full, or
    /// because the machine was late.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.beat.state.lock().missed
    }

    /// How many runs ended without a value. They don't end the repetition.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.beat.state.lock().failures
    }

    /// How the newest of the failed runs ended; or why the executor takes no more.
    #[must_use]
    pub fn last_failure(&self) -> Option<TaskError> {
        self.beat.state.lock().last_failure.clone()
    }

    /// Lets it go on with nobody to cancel it, until its executor is shut down. It keeps a handle of the executor, so
    /// that dropping all others is not enough.
    pub fn detach(mut self) {
        self.is_detached = true;
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        if !self.is_detached {
            self.cancel();
        }
    }
}

impl std::fmt::Debug for Periodic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.beat.state.lock();
        f.debug_struct("Periodic")
            .field("is_active", &!state.has_ended)
            .field("ticks", &state.ticks)
            .field("missed", &state.missed)
            .field("failures", &state.failures)
            .finish_non_exhaustive()
    }
}

impl Beat {
    /// No more runs. `false`: it had ended before.
    fn end(&self, why: Option<TaskError>) -> bool {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.has_ended, true) {
            return false;
        }
        if why.is_some() {
            state.last_failure = why;
        }
        let (alarm, run) = (state.alarm.take(), state.run.take());
        drop(state);
        if let Some(alarm) = alarm {
            TIMER.unset(alarm);
        }
        // Whatever is queued is not started any more.
        if let Some(run) = run {
            run.cancel();
        }
        true
    }
}

/// Gives a job to an executor after a delay.
pub(crate) fn submit_after<J: Job>(
    executor: Arc<dyn Executor>,
    delay: Duration,
    job: J,
    options: TaskOptions,
) -> TaskFuture<J::Output> {
    let cell = Cell::new(job, options);
    let future = TaskFuture::new(cell.clone());
    match TIMER.set(after(delay), Alarm::Once(Call::new(cell), executor)) {
        // One that is cancelled keeps neither memory nor its executor.
        Ok(key) => future.on_done(move |_| TIMER.unset(key)),
        Err((error, alarm)) => alarm.reject(&error),
    }
    future
}

/// Gives jobs to an executor, one every `period`.
pub(crate) fn submit_every<J: Job>(
    executor: Arc<dyn Executor>,
    period: Duration,
    mut make: impl FnMut() -> J + Send + 'static,
) -> Periodic {
    let beat = Arc::<Beat>::default();
    let shared = beat.clone();
    let next_run = Box::new(move || {
        let cell = Cell::new(make(), TaskOptions::new());
        let future = TaskFuture::new(cell.clone());
        let beat = shared.clone();
        future.on_done(move |outcome| {
            let mut state = beat.state.lock();
            if let Err(error) = outcome
                && !state.has_ended
            {
                state.failures += 1;
                state.last_failure = Some(error.clone());
            }
        });
        let handle = future.handle();
        future.detach();
        (Call::new(cell), handle)
    });
    let period = period.max(SHORTEST_PERIOD);
    Repeated { executor, period, at: after(period), beat: beat.clone(), next_run }.wait();
    Periodic { beat, is_detached: false }
}

/// By what an alarm is known.
type Key = (Instant, u64);

/// What is to be done when the time has come.
enum Alarm {
    Once(Call, Arc<dyn Executor>),
    Again(Box<Repeated>),
}

impl Alarm {
    fn go_off(self) {
        match self {
            Alarm::Once(call, executor) => {
                if let Err(refused) = executor.submit_call(call, None) {
                    refused.call.reject(refused.error);
                }
            }
            Alarm::Again(repeated) => repeated.tick(),
        }
    }

    /// There is no thread to wait for the time.
    fn reject(self, error: &io::Error) {
        let error = SubmitError::Broken(format!("the timer's thread could not be started: {error}").into());
        match self {
            Alarm::Once(call, _) => call.reject(error),
            Alarm::Again(repeated) => drop(repeated.beat.end(Some(error.into()))),
        }
    }
}

struct Repeated {
    executor: Arc<dyn Executor>,
    period: Duration,
    /// The time of the next tick.
    at: Instant,
    beat: Arc<Beat>,
    next_run: Box<dyn FnMut() -> (Call, TaskHandle) + Send>,
}

impl Repeated {
    /// Waits for the next tick.
    fn wait(self) {
        let beat = self.beat.clone();
        let mut state = beat.state.lock();
        if state.has_ended {
            return;
        }
        // Under the lock, so that whoever ends the repetition finds the alarm.
        match TIMER.set(self.at, Alarm::Again(Box::new(self))) {
            Ok(key) => state.alarm = Some(key),
            Err((error, alarm)) => {
                drop(state);
                alarm.reject(&error);
            }
        }
    }

    fn tick(mut self) {
        match self.executor.try_reserve_slot() {
            Ok(slot) => self.run(slot),
            Err(SubmitError::Full { .. }) => self.beat.state.lock().missed += 1,
            Err(error) => {
                self.beat.end(Some(error.into()));
                return;
            }
        }
        // On the grid that began with the repetition; what has gone by on it meanwhile is left out.
        let late = Instant::now().saturating_duration_since(self.at).as_nanos() / self.period.as_nanos();
        let late = u32::try_from(late).unwrap_or(u32::MAX);
        self.beat.state.lock().missed += u64::from(late);
        let next = self.period.checked_mul(late.saturating_add(1)).and_then(|pause| self.at.checked_add(pause));
        self.at = next.unwrap_or_else(|| after(Duration::MAX));
        self.wait();
    }

    fn run(&mut self, slot: Slot) {
        {
            let mut state = self.beat.state.lock();
            if state.run.as_ref().is_some_and(|run| !run.is_done()) {
                state.missed += 1;
                return;
            }
        }
        let made = panic::catch(&mut self.next_run);
        let mut state = self.beat.state.lock();
        if state.has_ended {
            return;
        }
        match made {
            Ok((call, handle)) => {
                state.ticks += 1;
                state.run = Some(handle);
                drop(state);
                // If somebody cancels now, the executor gets a call that is done already, and skips it.
                if let Err(refused) = self.executor.submit_call(call, Some(slot)) {
                    refused.call.reject(refused.error);
                }
            }
            Err(report) => {
                state.failures += 1;
                state.last_failure = Some(TaskError::Panicked(Box::new(report)));
            }
        }
    }
}

struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    alarms: BTreeMap<Key, Alarm>,
    next: u64,
    /// Whether the thread is there.
    is_running: bool,
}

impl Timer {
    /// Sets an alarm; it comes back when the system has no thread for it.
    fn set(&'static self, at: Instant, alarm: Alarm) -> Result<Key, (io::Error, Alarm)> {
        let mut state = self.state.lock();
        if !state.is_running {
            let thread = std::thread::Builder::new().name("polypool-timer".to_owned());
            if let Err(error) = thread.spawn(|| self.run()) {
                return Err((error, alarm));
            }
            state.is_running = true;
        }
        state.next += 1;
        let key = (at, state.next);
        let is_first = state.alarms.first_key_value().is_none_or(|(first, _)| key < *first);
        state.alarms.insert(key, alarm);
        if is_first {
            self.changed.notify_one();
        }
        Ok(key)
    }

    /// Takes an alarm out, if it has not gone off.
    fn unset(&self, key: Key) {
        let mut state = self.state.lock();
        let alarm = state.alarms.remove(&key);
        if state.alarms.is_empty() {
            self.changed.notify_one();
        }
        drop(state);
        // Outside of the lock: it may own the last handle of a pool.
        drop(alarm);
    }

    /// Waits for the alarms, until there are none.
    fn run(&self) {
        panic::install_hook();
        let mut state = self.state.lock();
        while let Some(first) = state.alarms.first_entry() {
            let at = first.key().0;
            if Instant::now() < at {
                self.changed.wait_until(&mut state, at);
                continue;
            }
            let alarm = first.remove();
            drop(state);
            // An executor of somebody else's may panic, and so may what is dropped with it.
            let _ = panic::catch(|| alarm.go_off());
            state = self.state.lock();
        }
        state.is_running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExecutorExt, Outcome, Shutdown, TaskState};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    const SOON: Duration = Duration::from_secs(20);
    const LATER: Duration = Duration::from_secs(3_600);
    const TICK: Duration = Duration::from_millis(2);

    fn pool() -> ThreadPool {
        ThreadPool::builder().workers(1).build().unwrap()
    }

    fn soon<T: Send + 'static>(mut future: TaskFuture<T>) -> Outcome<T> {
        future.wait_timeout(SOON).expect("an outcome in time")
    }

    #[test]
    fn delayed_tasks_start_in_the_order_of_their_times_and_not_before() {
        let (pool, start) = (pool(), Instant::now());
        let (sender, order) = mpsc::channel();
        let delays = [60, 20, 40].map(Duration::from_millis);
        let futures = delays.map(|delay| {
            let sender = sender.clone();
            pool.spawn_after(delay, move || sender.send((delay, start.elapsed())).unwrap())
        });
        futures.into_iter().for_each(|future| soon(future).unwrap());
        let order: Vec<_> = order.try_iter().collect();
        assert!(order.iter().all(|(delay, after)| after >= delay), "{order:?}");
        assert!(order.is_sorted_by_key(|(delay, _)| *delay), "{order:?}");
    }

    #[test]
    fn a_cancelled_one_never_starts_and_lets_go_of_everything_at_once() {
        let executor = pool().handle();
        let captured = Arc::new(());
        let inside = captured.clone();
        let job = Closure(move || drop(inside));
        let future = submit_after(executor.clone(), LATER, job, TaskOptions::new());
        assert_eq!(future.state(), TaskState::Queued);
        assert_eq!((Arc::strong_count(&captured), Arc::strong_count(&executor)), (2, 2));
        assert!(future.cancel());
        assert_eq!((Arc::strong_count(&captured), Arc::strong_count(&executor)), (1, 1));
        assert!(soon(future).unwrap_err().is_cancelled());
    }

    #[test]
    fn cancelling_is_exact_also_when_the_time_has_just_come() {
        let pool = pool();
        let (open, gate) = mpsc::channel::<()>();
        let busy = pool.spawn(move || gate.recv().unwrap());
        let starts = Arc::new(AtomicU64::new(0));
        for round in 0..300 {
            let mine = starts.clone();
            let future = pool.spawn_after(Duration::from_micros(round), move || mine.fetch_add(1, Ordering::SeqCst));
            // While the timer gives it to the pool, before, or after.
            std::thread::sleep(Duration::from_micros(round / 2));
            assert!(future.cancel());
        }
        open.send(()).unwrap();
        soon(busy).unwrap();
        soon(pool.spawn(|| ())).unwrap();
        assert_eq!(starts.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_pool_that_is_shut_down_refuses_when_the_time_has_come() {
        let pool = pool();
        pool.shutdown(Shutdown::Now).wait();
        let future = pool.spawn_after(TICK, || ());
        assert!(matches!(soon(future), Err(TaskError::Rejected(SubmitError::ShutDown))));
    }

    #[test]
    fn a_pool_that_is_dropped_still_runs_what_waits_for_its_time() {
        let pool = pool();
        let future = pool.spawn_after(Duration::from_millis(20), || 7);
        drop(pool);
        assert_eq!(soon(future).unwrap(), 7);
    }

    #[test]
    fn periodic_runs_do_not_overlap_and_missed_ticks_are_counted() {
        let pool = ThreadPool::builder().workers(4).build().unwrap();
        let (begun, begins) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let ticking = pool.spawn_every(TICK, move || {
            begun.send(()).unwrap();
            gate.recv().unwrap();
        });
        begins.recv_timeout(SOON).unwrap();
        while ticking.missed() < 3 {
            std::thread::yield_now();
        }
        assert!(begins.try_recv().is_err(), "no second run beside the first");
        assert_eq!(ticking.ticks(), 1);
        open.send(()).unwrap();
        begins.recv_timeout(SOON).unwrap();
        assert_eq!((ticking.ticks(), ticking.failures()), (2, 0));
        assert!(ticking.cancel());
        assert!(!ticking.cancel() && !ticking.is_active());
        open.send(()).unwrap();
    }

    #[test]
    fn no_run_starts_after_a_cancel_has_returned() {
        let pool = pool();
        for _ in 0..50 {
            let starts = Arc::new(AtomicU64::new(0));
            let mine = starts.clone();
            let ticking = pool.spawn_every(Duration::ZERO, move || mine.fetch_add(1, Ordering::SeqCst));
            while ticking.ticks() < 2 {
                std::thread::yield_now();
            }
            ticking.cancel();
            // What ran at that moment has ended when the only worker has done this.
            soon(pool.spawn(|| ())).unwrap();
            let at_end = starts.load(Ordering::SeqCst);
            std::thread::sleep(TICK);
            soon(pool.spawn(|| ())).unwrap();
            assert_eq!(starts.load(Ordering::SeqCst), at_end);
        }
    }

    #[test]
    fn a_run_that_waits_for_a_worker_never_starts_after_a_cancel() {
        let pool = pool();
        let (open, gate) = mpsc::channel::<()>();
        let busy = pool.spawn(move || gate.recv().unwrap());
        let starts = Arc::new(AtomicU64::new(0));
        let mine = starts.clone();
        let ticking = pool.spawn_every(TICK, move || mine.fetch_add(1, Ordering::SeqCst));
        let end = Instant::now() + SOON;
        while ticking.ticks() < 1 || pool.stats().queued < 1 {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        assert!(ticking.cancel());
        open.send(()).unwrap();
        soon(busy).unwrap();
        soon(pool.spawn(|| ())).unwrap();
        assert_eq!(starts.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_failing_run_is_told_and_does_not_end_the_repetition() {
        let pool = pool();
        let mut n = 0;
        let ticking = pool.spawn_every(TICK, move || {
            n += 1;
            assert!(n > 2, "run {n}");
        });
        let end = Instant::now() + SOON;
        while ticking.ticks() < 5 {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        assert_eq!(ticking.failures(), 2);
        assert!(ticking.last_failure().unwrap().to_string().contains("run 2"));
    }

    #[test]
    fn a_repetition_ends_with_its_executor_and_with_its_handle() {
        let (one, two) = (pool(), pool());
        let ended = one.spawn_every(TICK, || ());
        one.shutdown(Shutdown::Now).wait();
        let end = Instant::now() + SOON;
        while ended.is_active() {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        assert!(matches!(ended.last_failure(), Some(TaskError::Rejected(SubmitError::ShutDown))));

        let captured = Arc::new(());
        let inside = captured.clone();
        let dropped = two.spawn_every(LATER, move || drop(inside.clone()));
        let detached = two.spawn_every(LATER, || ());
        let beat = detached.beat.clone();
        detached.detach();
        drop(dropped);
        assert_eq!(Arc::strong_count(&captured), 1);
        assert!(beat.end(None), "a detached one goes on");
    }

    #[test]
    fn tasks_can_be_delayed_and_repeated_on_any_executor() {
        #[derive(serde::Serialize, serde::Deserialize)]
        struct Add(u32, u32);
        impl crate::Task for Add {
            type Output = u32;
            const NAME: &'static str = "timer::add";
            fn run(self) -> crate::Run<u32> {
                crate::Run::Ready(self.0 + self.1)
            }
        }
        let any: Arc<dyn Executor> = Arc::new(pool());
        assert_eq!(soon(any.submit_after(TICK, Add(2, 3))).unwrap(), 5);
        let mut made = 0;
        let (sender, seen) = mpsc::channel();
        let ticking = any.submit_every(TICK, move || {
            made += 1;
            sender.send(made).unwrap();
            Add(made, 1)
        });
        assert_eq!(seen.recv_timeout(SOON), Ok(1));
        assert_eq!(seen.recv_timeout(SOON), Ok(2));
        drop(ticking);
    }
}
