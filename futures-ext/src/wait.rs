//! Waiting for many futures at once, until a condition is met.
//!
//! It stands on the same set as `as_completed`, so it is as linear, and adds when to stop: [`ReturnWhen`].

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::FusedFuture;

use crate::alarm::Alarm;
use crate::blocking::{block_on, block_on_deadline};
use crate::cancellable::Cancelled;
use crate::set::Set;

/// Waits for many futures at once: until [`All`] have finished, or the [`FirstCompleted`], or the [`FirstFailure`], or
/// until a predicate `FnMut(&Output) -> bool` says so.
///
/// Resolves to [`Waited`]: the outputs that are there, and the futures that are still pending. When it returns, everything
/// that had finished by then is in `done`. A timeout, counted from this call, is no error: it ends the wait and splits
/// the two; `None` waits without bound. With nothing to wait for it returns at once.
///
/// # Panics
///
/// Polling it panics when one of the futures or the predicate does, and when polled after it has finished.
///
/// # Cancellation safety
///
/// Dropping it drops the outputs and the futures. Await it by reference (`&mut`) where that would be a loss.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use futures_ext::{All, FirstCompleted, wait};
/// use tokio::sync::oneshot;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
/// let mut senders = senders.into_iter();
/// senders.next().unwrap().send("first").unwrap();
///
/// let waited = wait(receivers, FirstCompleted, None).await;
/// assert_eq!(waited.done, [Ok("first")]);
///
/// let waited = wait(waited.pending, All, Duration::from_millis(5)).await;
/// assert_eq!((waited.done.len(), waited.pending.len()), (0, 2));
/// # }
/// ```
pub fn wait<I, W>(futures: I, return_when: W, timeout: impl Into<Option<Duration>>) -> Wait<I::Item, W>
where
    I: IntoIterator,
    I::Item: Future + Unpin,
    W: ReturnWhen<<I::Item as Future>::Output>,
{
    let alarm = timeout.into().map_or_else(Alarm::never, Alarm::after);
    Wait { set: Some(Set::new(futures)), done: Vec::new(), stop: false, return_when, alarm }
}

/// The future made by [`wait()`].
#[must_use = "a future does nothing until it is polled; call `blocking()` on a thread with no runtime"]
pub struct Wait<F: Future, W> {
    /// `None` once it has finished.
    set: Option<Set<F>>,
    done: Vec<F::Output>,
    stop: bool,
    return_when: W,
    alarm: Alarm,
}

impl<F, W> Wait<F, W>
where
    F: Future + Unpin,
    W: ReturnWhen<F::Output>,
{
    /// Blocks this thread until the wait is over; for threads with no runtime.
    ///
    /// See [`block_on`](crate::block_on()) for when not to use it.
    ///
    /// # Panics
    ///
    /// As [`wait()`], and when the thread's [`BlockingObserver`](crate::BlockingObserver) refuses.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_ext::{All, wait};
    ///
    /// let waited = wait([1, 2].map(std::future::ready), All, None).blocking();
    /// assert_eq!(waited.done, [1, 2]);
    /// ```
    pub fn blocking(mut self) -> Waited<F> {
        let deadline = self.alarm.deadline();
        let mut waited = pin!(poll_fn(|cx| self.poll_untimed(cx)));
        // No timer: the parked thread wakes by itself. After the deadline `poll_untimed` is always ready.
        if let Some(deadline) = deadline
            && let Ok(waited) = block_on_deadline(waited.as_mut(), deadline)
        {
            return waited;
        }
        block_on(waited)
    }

    /// Without the timer: the caller sees to it that this is called at the deadline.
    fn poll_untimed(&mut self, cx: &mut Context<'_>) -> Poll<Waited<F>> {
        let set = self.set.as_mut().expect("a wait was polled after it had finished");
        while !self.stop && !self.alarm.passed() {
            match set.poll_next(cx) {
                Poll::Ready(Some(output)) => {
                    self.stop = self.return_when.stop(&output);
                    self.done.push(output);
                }
                Poll::Ready(None) => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        set.drain_ready(|output| self.done.push(output));
        let pending = self.set.take().map_or_else(Vec::new, Set::into_pending);
        Poll::Ready(Waited { done: std::mem::take(&mut self.done), pending })
    }
}

impl<F, W> Future for Wait<F, W>
where
    F: Future + Unpin,
    W: ReturnWhen<F::Output>,
{
    type Output = Waited<F>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Waited<F>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(waited) = this.poll_untimed(cx) {
                return Poll::Ready(waited);
            }
            if this.alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<F, W> FusedFuture for Wait<F, W>
where
    F: Future + Unpin,
    W: ReturnWhen<F::Output>,
{
    fn is_terminated(&self) -> bool {
        self.set.is_none()
    }
}

// Nothing in it is ever pinned in place: the set boxes its futures.
impl<F: Future, W> Unpin for Wait<F, W> {}

impl<F: Future, W> fmt::Debug for Wait<F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("done", &self.done.len())
            .field("unfinished", &self.set.as_ref().map_or(0, Set::unfinished))
            .field("deadline", &self.alarm.deadline())
            .finish_non_exhaustive()
    }
}

/// What [`wait()`] resolves to.
#[must_use = "the outputs and the pending futures are dropped with it"]
#[non_exhaustive]
pub struct Waited<F: Future> {
    /// The outputs, in the order in which the futures finished.
    pub done: Vec<F::Output>,
    /// The futures that have not finished, in the order in which they were given.
    pub pending: Vec<F>,
}

impl<F: Future> fmt::Debug for Waited<F>
where
    F::Output: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waited").field("done", &self.done).field("pending", &self.pending.len()).finish()
    }
}

/// When a [`wait()`] is over, before all have finished.
///
/// Implemented for [`FirstCompleted`], [`FirstFailure`], [`All`] and every `FnMut(&Output) -> bool`.
///
/// # Examples
///
/// ```
/// use futures_ext::wait;
///
/// let big = |n: &i32| *n > 1;
/// let never = std::future::pending;
/// let futures: Vec<std::pin::Pin<Box<dyn Future<Output = i32>>>> =
///     vec![Box::pin(async { 1 }), Box::pin(async { 2 }), Box::pin(never())];
/// let waited = wait(futures, big, None).blocking();
/// assert_eq!(waited.done, [1, 2]);
/// ```
pub trait ReturnWhen<O> {
    /// Whether the wait is over, now that a future has finished with `output`.
    ///
    /// Called once for each output, in the order in which they come, until it has said yes.
    fn stop(&mut self, output: &O) -> bool;
}

impl<O, P> ReturnWhen<O> for P
where
    P: FnMut(&O) -> bool,
{
    fn stop(&mut self, output: &O) -> bool {
        self(output)
    }
}

/// The wait is over when the first future has finished, however it did.
///
/// ```
/// use futures_ext::{FirstCompleted, wait};
/// use std::future::ready;
///
/// let waited = wait([ready(1)], FirstCompleted, None).blocking();
/// assert_eq!(waited.done, [1]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[doc(alias = "FIRST_COMPLETED")]
pub struct FirstCompleted;

impl<O> ReturnWhen<O> for FirstCompleted {
    fn stop(&mut self, _: &O) -> bool {
        true
    }
}

/// The wait is over when the first future has [failed](Outcome::is_failure); if none does, when all have finished.
///
/// ```
/// use futures_ext::{FirstFailure, wait};
/// use std::future::ready;
///
/// let parsed = ["1", "x"].map(|text| ready(text.parse::<i32>()));
/// let waited = wait(parsed, FirstFailure, None).blocking();
/// assert!(waited.done[1].is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[doc(alias = "FIRST_EXCEPTION")]
pub struct FirstFailure;

impl<O: Outcome> ReturnWhen<O> for FirstFailure {
    fn stop(&mut self, output: &O) -> bool {
        output.is_failure()
    }
}

/// The wait is over when all futures have finished.
///
/// ```
/// use futures_ext::{All, wait};
/// use std::future::ready;
///
/// assert_eq!(wait([1, 2].map(ready), All, None).blocking().done, [1, 2]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[doc(alias = "ALL_COMPLETED")]
pub struct All;

impl<O> ReturnWhen<O> for All {
    fn stop(&mut self, _: &O) -> bool {
        false
    }
}

/// An output that may be a failure; what [`FirstFailure`] asks.
///
/// A `Result` is a failure when it is an error, unless the error is a [`Cancelled`] or has one among its
/// [sources](Error::source): whoever cancels does not want to hear of it as a failure. A tagged output is one when the
/// output itself is. For error types that are no [`Error`] (boxed errors, `anyhow`), give [`wait()`] a predicate instead.
///
/// # Examples
///
/// ```
/// use futures_ext::{Cancelled, Outcome};
///
/// assert!("x".parse::<i32>().is_failure());
/// assert!(!("a tag", "1".parse::<i32>()).is_failure());
/// assert!(!Err::<(), _>(Cancelled::new()).is_failure());
/// ```
pub trait Outcome {
    /// Whether this is a failure.
    fn is_failure(&self) -> bool;
}

impl<T, E: Error + 'static> Outcome for Result<T, E> {
    fn is_failure(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = match self {
            Ok(_) => return false,
            Err(error) => Some(error),
        };
        while let Some(error) = cause {
            if error.is::<Cancelled>() {
                return false;
            }
            cause = error.source();
        }
        true
    }
}

impl<K, R: Outcome> Outcome for (K, R) {
    fn is_failure(&self) -> bool {
        self.1.is_failure()
    }
}
