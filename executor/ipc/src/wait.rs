//! Waiting, in every form, for one shape of operation: a step that either succeeds or says what would have to change
//! first.
//!
//! A lock, a semaphore or a queue is written once, as a step ([`Step`]), and gets its four forms from here: `try` takes
//! one step; [`block`] repeats it and sleeps in between, with a deadline or without; [`Waiting`] is the same as a
//! future, whose sleep is left to the [reactor].
//!
//! The rule that makes a lost wake-up impossible: a step reads the word and decides by that value that it must wait,
//! and the sleep begins only if the word still has this value, which the kernel checks under its own lock. Whoever
//! makes the step possible changes the word before it wakes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::memory::segment::Segment;
use crate::sys;

pub(crate) mod futex;
pub(crate) mod reactor;
pub(crate) mod spin;

/// A word in shared memory, with what keeps it mapped.
#[derive(Clone)]
pub(crate) struct Word {
    segment: Arc<Segment>,
    offset: usize,
}

impl Word {
    pub(crate) fn new(segment: &Arc<Segment>, offset: usize) -> Self {
        Word { segment: segment.clone(), offset }
    }

    pub(crate) fn get(&self) -> &AtomicU32 {
        self.segment.at(self.offset)
    }
}

/// What would have to change before the next attempt makes sense.
pub(crate) struct Change {
    /// The word of the object, and the value by which the step decided to wait.
    pub(crate) word: (Word, u32),
    /// The presences of the processes it waits for. (The kernel takes 127 at once; further ones are looked at now and
    /// then.)
    pub(crate) holders: Vec<(Word, u32)>,
}

impl Change {
    pub(crate) fn of(segment: &Arc<Segment>, offset: usize, value: u32) -> Self {
        Change { word: (Word::new(segment, offset), value), holders: Vec::new() }
    }

    fn pairs(&self) -> impl Iterator<Item = (&AtomicU32, u32)> {
        std::iter::once(&self.word).chain(&self.holders).map(|(word, value)| (word.get(), *value))
    }

    fn has_come(&self) -> bool {
        self.pairs().any(|(word, value)| word.load(Ordering::SeqCst) != value)
    }
}

/// The outcome of one attempt.
pub(crate) enum Step<R> {
    Ready(R),
    Wait(Change),
}

/// How long those who don't want to wait give somebody who is in the middle of a step that takes less than a
/// microsecond. It takes longer only if its process has been stopped there, or the machine is very busy.
pub(crate) const PATIENCE: Duration = Duration::from_millis(10);

/// How often a future looks again in one poll.
const ATTEMPTS: u32 = 16;

/// How often a caller looks before it sleeps: for about as long as a wake-up costs, and not at all where nobody else
/// could run meanwhile.
pub(crate) fn spins() -> u32 {
    if sys::cpus() > 1 { 100 } else { 0 }
}

/// Repeats `step` until it is ready, sleeping in between; `None` if that's not so by `until`. At least one attempt is
/// made.
pub(crate) fn block<R>(until: Option<Instant>, mut step: impl FnMut() -> Step<R>) -> Option<R> {
    loop {
        let change = match step() {
            Step::Ready(result) => return Some(result),
            Step::Wait(change) => change,
        };
        if until.is_some_and(|until| until <= Instant::now()) {
            return None;
        }
        if (0..spins()).any(|_| {
            std::hint::spin_loop();
            change.has_come()
        }) {
            continue;
        }
        match change.holders.first() {
            None => futex::wait(&[(change.word.0.get(), change.word.1)], until),
            Some((holder, alive)) if change.holders.len() == 1 => {
                futex::wait(&[(change.word.0.get(), change.word.1), (holder.get(), *alive)], until);
            }
            Some(_) => futex::wait(&change.pairs().collect::<Vec<_>>(), until),
        }
    }
}

/// The instant that lies `timeout` from now; `None`, as for ever, if it is beyond what the clock can say.
pub(crate) fn after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// How a caller waits that blocks, if it has to.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Try,
    /// `None`: as long as it takes.
    Until(Option<Instant>),
}

impl Form {
    pub(crate) fn within(timeout: Duration) -> Self {
        Form::Until(after(timeout))
    }
}

/// Lets other tasks of the thread run once, under any runtime or none.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A step as a future: repeats it whenever what it waits for may have changed. Never blocks the thread that polls it,
/// and needs no runtime.
///
/// **Cancellation:** dropped, it waits no more, and a wake-up that was meant for it goes to the next one who waits.
pub(crate) struct Waiting<F> {
    step: F,
    sleep: Option<reactor::Sleep>,
}

impl<F> Waiting<F> {
    pub(crate) fn new(step: F) -> Self {
        Waiting { step, sleep: None }
    }
}

impl<R, F: FnMut() -> Step<R> + Unpin> Future for Waiting<F> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        // A few attempts, in case that the word changes just as we go to sleep; a word that changes all the time must
        // not keep the thread.
        for _ in 0..ATTEMPTS {
            if let Some(sleep) = &self.sleep
                && !sleep.is_over(cx.waker())
            {
                return Poll::Pending;
            }
            match (self.step)() {
                Step::Ready(result) => {
                    // We have what the wake-up was for.
                    if let Some(sleep) = self.sleep.take() {
                        sleep.used();
                    }
                    return Poll::Ready(result);
                }
                Step::Wait(change) => {
                    if let Some(sleep) = self.sleep.take() {
                        sleep.used();
                    }
                    if !change.has_come() {
                        self.sleep = Some(reactor::sleep(change, cx.waker().clone()));
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<F> std::fmt::Debug for Waiting<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("asleep", &self.sleep.is_some()).finish_non_exhaustive()
    }
}
