//! Driving a future on this thread by parking it: the ground under every blocking wait of this crate.
//!
//! Each thread keeps one parker and its waker, so a wait allocates nothing after the first one. A wait inside a wait (a
//! future whose poll blocks) finds the parker taken and makes a fresh one for itself: two waits must not share a flag, or the
//! inner one would swallow the outer one's wake-up. They do share the thread's park token, which is harmless: each looks at
//! its own flag before it parks, and whoever sets a flag sets it before it unparks.
//!
//! **Spinning.** Parking a thread and waking it takes longer than many a wait, so a wait first looks out for its wake-up for a
//! moment ([`SPIN`]): closely at first, then whenever those who want the core have had it. A thread whose spins are in vain makes
//! them shorter and shorter, until one succeeds again.
//!
//! What a pool does about a thread that blocks is left to the pool: it is told through [`BlockingObserver`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::task::coop;

use crate::Elapsed;

/// For how long a wait looks out for its wake-up before the thread is parked: about as long as a wake-up takes.
const SPIN: Duration = Duration::from_micros(30);

/// Runs a future to its end on this thread, parking the thread whenever there is nothing to do.
///
/// Needs no runtime. It may be called while another `block_on` of this thread is polling. It takes no part in tokio's
/// cooperative budget, because there is nobody to yield to.
///
/// # When not to use it
///
/// Inside `async` code: it stops everything else on the thread. If the future can only make progress on this very
/// thread (a `spawn_local` task, `tokio::task::yield_now` on a tokio worker), it never returns.
///
/// # Panics
///
/// When the future panics, or when the thread's [`BlockingObserver`] refuses to let it block.
///
/// # Examples
///
/// ```
/// assert_eq!(futures_ext::block_on(async { 6 * 7 }), 42);
/// ```
pub fn block_on<F: Future>(future: F) -> F::Output {
    match drive(pin!(future), None) {
        Some(output) => output,
        None => unreachable!("a wait with no deadline ended without an output"),
    }
}

/// Runs a future on this thread like [`block_on`], but not past `deadline`.
///
/// The future is only borrowed, so the wait can be taken up again. It is polled at least once, also when the deadline has
/// passed already. No timer is involved: the thread parks for as long as is left.
///
/// # Errors
///
/// [`Elapsed`] when the deadline passed first; its duration is the one from this call to the deadline.
///
/// # Panics
///
/// As [`block_on`].
///
/// # Examples
///
/// ```
/// use std::pin::pin;
/// use std::time::{Duration, Instant};
/// use futures_ext::block_on_deadline;
///
/// let never = pin!(std::future::pending::<()>());
/// let error = block_on_deadline(never, Instant::now() + Duration::from_millis(1)).unwrap_err();
/// assert!(error.duration() <= Duration::from_millis(1));
/// ```
pub fn block_on_deadline<F: Future + ?Sized>(future: Pin<&mut F>, deadline: Instant) -> Result<F::Output, Elapsed> {
    let started = Instant::now();
    drive(future, Some(deadline)).ok_or_else(|| Elapsed::new(deadline.saturating_duration_since(started)))
}

/// Is told when this thread blocks in a wait of this crate; see [`set_blocking_observer`].
///
/// For each blocking call, [`about_to_block`](Self::about_to_block) is called once, and only when the thread is really
/// about to park: the first poll found nothing and no wake-up has come since. [`resumed`](Self::resumed) is called once
/// afterwards, also when the wait ends by a panic. In between, the thread may wake, poll and park many times. A wait
/// inside a wait is a blocking call of its own.
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
/// use std::rc::Rc;
/// use std::time::Duration;
/// use futures_ext::{BlockingObserver, FutureExt, block_on, set_blocking_observer};
///
/// #[derive(Default)]
/// struct Counter(Cell<u32>);
/// impl BlockingObserver for Counter {
///     fn about_to_block(&self) { self.0.set(self.0.get() + 1); }
///     fn resumed(&self) {}
/// }
///
/// let counter = Rc::new(Counter::default());
/// set_blocking_observer(Some(counter.clone()));
/// block_on(async {});                                                        // ready at once: nothing blocks
/// let _ = std::future::pending::<()>().wait_timeout(Duration::from_millis(100)); // really waits
/// assert_eq!(counter.0.get(), 1);
/// set_blocking_observer(None);
/// ```
pub trait BlockingObserver {
    /// The thread will park as soon as this returns.
    ///
    /// A pool may start another worker here, or run other work. It may also refuse by panicking: the wait then unwinds,
    /// and [`resumed`](Self::resumed) is not called.
    fn about_to_block(&self);

    /// The wait that was announced is over.
    ///
    /// Must not panic: it also runs while a panic unwinds, where a second one aborts the process.
    fn resumed(&self);
}

/// Sets the observer of this thread's blocking waits, and returns the one there was.
///
/// A wait that has begun keeps the observer it began with.
///
/// # Examples
///
/// ```
/// let previous = futures_ext::set_blocking_observer(None);
/// assert!(previous.is_none());
/// ```
pub fn set_blocking_observer(observer: Option<Rc<dyn BlockingObserver>>) -> Option<Rc<dyn BlockingObserver>> {
    OBSERVER.with(|slot| slot.replace(observer))
}

impl fmt::Debug for dyn BlockingObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockingObserver")
    }
}

/// Polls a future outside tokio's cooperative budget.
pub(crate) fn poll_unconstrained<F: Future + ?Sized>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    pin!(coop::unconstrained(future)).poll(cx)
}

thread_local! {
    static PARKER: Cell<Option<Parker>> = const { Cell::new(None) };
    /// How many spins in a row were in vain.
    static IN_VAIN: Cell<u32> = const { Cell::new(0) };
    static OBSERVER: RefCell<Option<Rc<dyn BlockingObserver>>> = const { RefCell::new(None) };
}

/// The output, or `None` when the deadline passed first.
fn drive<F: Future + ?Sized>(mut future: Pin<&mut F>, deadline: Option<Instant>) -> Option<F::Output> {
    let parker = Borrowed::take();
    let mut cx = Context::from_waker(&parker.get().waker);
    let mut blocked = None;
    let mut has_spun = false;
    loop {
        // Unconstrained: a future that runs out of tokio's budget asks to be woken when the worker's poll returns, which
        // would never happen while we sit inside that poll.
        if let Poll::Ready(output) = poll_unconstrained(future.as_mut(), &mut cx) {
            return Some(output);
        }
        loop {
            if parker.get().flag.take() {
                // A future that wakes itself in every poll must not outlive its deadline.
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return None;
                }
                break;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            if !std::mem::replace(&mut has_spun, true) {
                parker.get().flag.spin(left);
                continue;
            }
            if blocked.is_none() {
                blocked = Some(Blocked::enter());
                continue; // the observer may have taken long, or even brought the wake-up about
            }
            match left {
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
            // What comes after a wake-up may come in quick succession.
            has_spun = false;
        }
    }
}

/// A flag that unparks its thread.
#[derive(Debug)]
struct Flag {
    set: AtomicBool,
    thread: Thread,
}

impl Flag {
    fn take(&self) -> bool {
        self.set.load(Ordering::Relaxed) && self.set.swap(false, Ordering::Acquire)
    }

    /// Looks out for the flag for a moment, at most for as long as is `left`.
    fn spin(&self, left: Option<Duration>) {
        static HAS_CORES: OnceLock<bool> = OnceLock::new();
        if !HAS_CORES.get_or_init(|| thread::available_parallelism().is_ok_and(|cores| cores.get() > 1)) {
            return;
        }
        let in_vain = IN_VAIN.try_with(Cell::get).unwrap_or(0);
        let bound = SPIN / (1 << in_vain.min(4));
        let end = Instant::now() + left.map_or(bound, |left| left.min(bound));
        for turn in 0_u32.. {
            if self.set.load(Ordering::Relaxed) {
                let _ = IN_VAIN.try_with(|count| count.set(0));
                return;
            }
            if turn < 64 {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
                if Instant::now() >= end {
                    break;
                }
            }
        }
        let _ = IN_VAIN.try_with(|count| count.set(in_vain.saturating_add(1)));
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Already set: that wake-up is still to be seen, and whoever set it unparks.
        if !self.set.swap(true, Ordering::Release) {
            self.thread.unpark();
        }
    }
}

#[derive(Debug)]
struct Parker {
    flag: Arc<Flag>,
    waker: Waker,
}

impl Parker {
    fn new() -> Self {
        let flag = Arc::new(Flag { set: AtomicBool::new(false), thread: thread::current() });
        Self { waker: Waker::from(Arc::clone(&flag)), flag }
    }
}

/// The thread's parker, given back on drop. A wake-up left over from an earlier wait costs one poll.
struct Borrowed(Option<Parker>);

impl Borrowed {
    fn take() -> Self {
        // The slot is empty on the first wait, inside another wait, and gone while the thread's locals are destroyed.
        let cached = PARKER.try_with(Cell::take).ok().flatten();
        Self(Some(cached.unwrap_or_else(Parker::new)))
    }

    fn get(&self) -> &Parker {
        self.0.as_ref().expect("the parker is given back on drop only")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let _ = PARKER.try_with(|slot| slot.set(self.0.take()));
    }
}

/// Exists from `about_to_block` to `resumed`.
struct Blocked(Option<Rc<dyn BlockingObserver>>);

impl Blocked {
    fn enter() -> Self {
        // Cloned out, so that the observer may set another one, or wait itself.
        let observer = OBSERVER.try_with(|slot| slot.borrow().clone()).ok().flatten();
        if let Some(observer) = &observer {
            observer.about_to_block(); // a panic here leaves before `Self` exists: no `resumed`
        }
        Self(observer)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(observer) = &self.0 {
            observer.resumed();
        }
    }
}
