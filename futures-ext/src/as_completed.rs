//! Many futures as one stream, in the order in which they finish.
//!
//! The work is done by the set in `set.rs`; this file adds the end, the deadline and the blocking iterators.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::iter::FusedIterator;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::{FusedStream, Stream};

use crate::alarm::Alarm;
use crate::blocking::{block_on, block_on_deadline};
use crate::progress::{Progress, ProgressIter, ProgressStream};
use crate::set::Set;

/// Makes a stream of the futures' outputs, in the order in which they finish.
///
/// Each future gives its output exactly once. Futures that have finished already come first. The iterable may be lazy: it
/// is consumed here, once; the futures are first polled when the stream is. Nothing is spawned: between two polls of the
/// stream, futures that do their work when polled make no progress. To know which future an output belongs to, give each
/// a [tag](crate::FutureExt::tagged).
///
/// Only futures that were woken are polled again, so the work is linear in the number of futures, also on a tokio worker,
/// where the stream takes part in cooperative scheduling once for each item.
///
/// A future is dropped as soon as its output is there, before the output is yielded; the loop body may finish, cancel or
/// drop anything else. Dropping the stream drops the futures that are left.
///
/// Futures are given by value, so the same one cannot be given twice. Clones of a shared future are futures of their own
/// and yield one output each.
///
/// # Panics
///
/// Polling the stream panics when one of the futures does. That future counts as finished; the others are unharmed.
///
/// # Cancellation safety
///
/// `next()` may be dropped at any await: no output is lost.
///
/// # Examples
///
/// ```
/// use futures_ext::as_completed;
/// use futures_util::StreamExt;
/// use tokio::sync::oneshot;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (first, a) = oneshot::channel();
/// let (second, b) = oneshot::channel();
/// let mut done = as_completed([a, b]);
/// second.send("b").unwrap();
/// assert_eq!(done.next().await, Some(Ok("b")));
/// first.send("a").unwrap();
/// assert_eq!(done.next().await, Some(Ok("a")));
/// assert_eq!(done.next().await, None);
/// # }
/// ```
pub fn as_completed<I>(futures: I) -> AsCompleted<I::Item>
where
    I: IntoIterator,
    I::Item: Future,
{
    AsCompleted { set: Set::new(futures), ended: false }
}

/// The stream made by [`as_completed()`].
#[must_use = "a stream does nothing until it is polled"]
pub struct AsCompleted<F> {
    set: Set<F>,
    ended: bool,
}

impl<F> AsCompleted<F> {
    /// How many futures have not been yielded yet.
    ///
    /// ```
    /// let mut done = futures_ext::as_completed([1, 2].map(std::future::ready)).blocking();
    /// done.next();
    /// assert_eq!((done.get_ref().unfinished(), done.get_ref().total()), (1, 2));
    /// ```
    pub fn unfinished(&self) -> usize {
        self.set.unfinished()
    }

    /// How many futures were given.
    ///
    /// ```
    /// assert_eq!(futures_ext::as_completed([async {}]).total(), 1);
    /// ```
    pub fn total(&self) -> usize {
        self.set.total()
    }

    /// The futures that have not been yielded, in the order in which they were given.
    ///
    /// ```
    /// use std::future::ready;
    ///
    /// let mut done = futures_ext::as_completed([ready(1), ready(2), ready(3)]).blocking();
    /// assert_eq!(done.next(), Some(1));
    /// assert_eq!(done.into_inner().into_pending().count(), 2);
    /// ```
    pub fn into_pending(self) -> IntoPending<F>
    where
        F: Unpin,
    {
        IntoPending(self.set.into_pending().into_iter())
    }
}

impl<F: Future> AsCompleted<F> {
    /// Ends the stream `timeout` from now, saying how many futures are missing.
    ///
    /// The items become `Result<F::Output, Unfinished>`. At the deadline all outputs that are there come first, then one
    /// [`Unfinished`], if anything is unfinished; then the stream has ended for ever. A timeout of zero yields what has
    /// finished already. The futures are not cancelled: they stay in the stream until it is dropped or
    /// [taken apart](AsCompletedTimeout::into_pending).
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures_ext::as_completed;
    ///
    /// let never = std::future::pending::<()>();
    /// let items: Vec<_> = as_completed([never]).timeout(Duration::ZERO).blocking().collect();
    /// assert_eq!(items[0].unwrap_err().to_string(), "unfinished 1 of 1");
    /// assert_eq!(items.len(), 1);
    /// ```
    pub fn timeout(self, timeout: Duration) -> AsCompletedTimeout<F> {
        AsCompletedTimeout { set: self.set, alarm: Alarm::after(timeout), ready: VecDeque::new(), state: State::Open }
    }

    /// The same as an iterator, for threads with no runtime: `next` parks the thread until a future has finished.
    ///
    /// See [`block_on`](crate::block_on()) for when not to use it.
    ///
    /// ```
    /// let sum: i32 = futures_ext::as_completed([1, 2].map(std::future::ready)).blocking().sum();
    /// assert_eq!(sum, 3);
    /// ```
    pub fn blocking(self) -> Blocking<Self> {
        Blocking(self)
    }
}

impl<F: Future> Stream for AsCompleted<F> {
    type Item = F::Output;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = self.set.poll_next(cx);
        self.ended = matches!(item, Poll::Ready(None));
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.unfinished(), Some(self.unfinished()))
    }
}

impl<F: Future> FusedStream for AsCompleted<F> {
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

impl<F> fmt::Debug for AsCompleted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompleted").field("unfinished", &self.unfinished()).field("total", &self.total()).finish()
    }
}

/// The stream made by [`AsCompleted::timeout`].
#[must_use = "a stream does nothing until it is polled"]
pub struct AsCompletedTimeout<F: Future> {
    set: Set<F>,
    alarm: Alarm,
    /// Outputs that were there at the deadline and have not been yielded.
    ready: VecDeque<F::Output>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the deadline.
    Open,
    /// The deadline has passed: what is in `ready` comes out, then the error.
    Closing,
    Ended,
}

impl<F: Future> AsCompletedTimeout<F> {
    /// How many futures have given no output yet.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let done = futures_ext::as_completed([1, 2].map(std::future::ready)).timeout(Duration::from_secs(1));
    /// assert_eq!(done.unfinished(), 2);
    /// ```
    pub fn unfinished(&self) -> usize {
        self.set.unfinished()
    }

    /// How many futures were given.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let done = futures_ext::as_completed([1, 2].map(std::future::ready)).timeout(Duration::from_secs(1));
    /// assert_eq!(done.total(), 2);
    /// ```
    pub fn total(&self) -> usize {
        self.set.total()
    }

    /// The futures that have given no output, in the order in which they were given.
    ///
    /// Outputs that were there at the deadline and have not been yielded are dropped.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut done = futures_ext::as_completed([std::future::pending::<()>()]).timeout(Duration::ZERO).blocking();
    /// assert!(done.next().unwrap().is_err());
    /// let late: Vec<_> = done.into_inner().into_pending().collect();
    /// assert_eq!(late.len(), 1);
    /// ```
    pub fn into_pending(self) -> IntoPending<F>
    where
        F: Unpin,
    {
        IntoPending(self.set.into_pending().into_iter())
    }

    /// The same as an iterator, for threads with no runtime; see [`AsCompleted::blocking`].
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let done = futures_ext::as_completed([async { 1 }]).timeout(Duration::from_secs(1)).blocking();
    /// assert_eq!(done.map(Result::unwrap).sum::<i32>(), 1);
    /// ```
    pub fn blocking(self) -> Blocking<Self> {
        Blocking(self)
    }

    /// Shows a progress bar; as [`ProgressExt::progress`](crate::ProgressExt::progress), but with the number of futures
    /// as the total, and not counting the final [`Unfinished`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures_ext::Progress;
    ///
    /// let done = futures_ext::as_completed([async { 1 }]).timeout(Duration::from_secs(1));
    /// let mut done = done.progress(Progress::new().hidden());
    /// # futures_ext::block_on(async { while let Some(_) = futures_util::StreamExt::next(&mut done).await {} });
    /// assert_eq!(done.bar().total(), Some(1));
    /// ```
    pub fn progress(self, progress: Progress) -> ProgressStream<Self> {
        let total = self.ready.len() + self.unfinished();
        ProgressStream::new(self, progress.total_or(total)).advance_by(|item| item.is_ok().into())
    }

    /// Without the timer: the caller sees to it that this is called at the deadline.
    fn poll_untimed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<F::Output, Unfinished>>> {
        // Looked at before each item: a steady flow of outputs must not carry the stream beyond its deadline.
        if self.state == State::Open && self.alarm.passed() {
            self.state = State::Closing;
            self.set.drain_ready(|output| self.ready.push_back(output));
        }
        match self.state {
            State::Open => {
                let item = self.set.poll_next(cx);
                if let Poll::Ready(None) = item {
                    self.state = State::Ended;
                }
                item.map(|item| item.map(Ok))
            }
            State::Closing => {
                if let Some(output) = self.ready.pop_front() {
                    return Poll::Ready(Some(Ok(output)));
                }
                self.state = State::Ended;
                let missing = (self.unfinished() > 0).then(|| Err(Unfinished::new(self.unfinished(), self.total())));
                Poll::Ready(missing)
            }
            State::Ended => Poll::Ready(None),
        }
    }
}

impl<F: Future> Stream for AsCompletedTimeout<F> {
    type Item = Result<F::Output, Unfinished>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(item) = this.poll_untimed(cx) {
                return Poll::Ready(item);
            }
            if this.alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self.state {
            // The error takes the place of at least one output.
            State::Open => (self.unfinished().min(1), Some(self.unfinished())),
            State::Closing => {
                let exact = self.ready.len() + self.unfinished().min(1);
                (exact, Some(exact))
            }
            State::Ended => (0, Some(0)),
        }
    }
}

impl<F: Future> FusedStream for AsCompletedTimeout<F> {
    fn is_terminated(&self) -> bool {
        self.state == State::Ended
    }
}

// Nothing in it is ever pinned in place: the set boxes its futures.
impl<F: Future> Unpin for AsCompletedTimeout<F> {}

impl<F: Future> fmt::Debug for AsCompletedTimeout<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompletedTimeout")
            .field("unfinished", &self.unfinished())
            .field("total", &self.total())
            .field("deadline", &self.alarm.deadline())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// The iterator made by [`AsCompleted::blocking`] and [`AsCompletedTimeout::blocking`].
///
/// `next` parks the thread until there is an item. Once it has given `None`, it always does.
#[must_use = "an iterator does nothing until it is advanced"]
#[derive(Debug)]
pub struct Blocking<S>(S);

impl<S> Blocking<S> {
    /// The stream inside, to ask it for counts.
    ///
    /// ```
    /// assert_eq!(futures_ext::as_completed([async {}]).blocking().get_ref().total(), 1);
    /// ```
    pub fn get_ref(&self) -> &S {
        &self.0
    }

    /// The stream inside, to change it.
    ///
    /// ```
    /// use futures_util::StreamExt;
    ///
    /// let mut done = futures_ext::as_completed([async { 1 }]).blocking();
    /// assert_eq!(futures_ext::block_on(done.get_mut().next()), Some(1));
    /// ```
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.0
    }

    /// The stream, to go on without blocking or to take the pending futures out.
    ///
    /// ```
    /// assert_eq!(futures_ext::as_completed([async {}]).blocking().into_inner().unfinished(), 1);
    /// ```
    pub fn into_inner(self) -> S {
        self.0
    }
}

impl<F: Future> Blocking<AsCompletedTimeout<F>> {
    /// Shows a progress bar; see [`AsCompletedTimeout::progress`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures_ext::Progress;
    ///
    /// let done = futures_ext::as_completed([async { 1 }]).timeout(Duration::from_secs(1)).blocking();
    /// assert_eq!(done.progress(Progress::new().hidden()).count(), 1);
    /// ```
    pub fn progress(self, progress: Progress) -> ProgressIter<Self> {
        let total = self.0.ready.len() + self.0.unfinished();
        ProgressIter::new(self, progress.total_or(total)).advance_by(|item| item.is_ok().into())
    }
}

impl<F: Future> Iterator for Blocking<AsCompleted<F>> {
    type Item = F::Output;

    fn next(&mut self) -> Option<F::Output> {
        block_on(poll_fn(|cx| Pin::new(&mut self.0).poll_next(cx)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<F: Future> ExactSizeIterator for Blocking<AsCompleted<F>> {}
impl<F: Future> FusedIterator for Blocking<AsCompleted<F>> {}

impl<F: Future> Iterator for Blocking<AsCompletedTimeout<F>> {
    type Item = Result<F::Output, Unfinished>;

    fn next(&mut self) -> Option<Self::Item> {
        let stream = &mut self.0;
        let deadline = stream.alarm.deadline();
        let mut next = pin!(poll_fn(|cx| stream.poll_untimed(cx)));
        // No timer: the parked thread wakes by itself. After the deadline `poll_untimed` is always ready.
        if let Some(deadline) = deadline
            && let Ok(item) = block_on_deadline(next.as_mut(), deadline)
        {
            return item;
        }
        block_on(next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<F: Future> FusedIterator for Blocking<AsCompletedTimeout<F>> {}

/// The futures that had not finished when a collection was taken apart.
///
/// Made by [`AsCompleted::into_pending`] and [`AsCompletedTimeout::into_pending`].
#[must_use = "the futures in it are dropped with it"]
pub struct IntoPending<F>(std::vec::IntoIter<F>);

impl<F> Iterator for IntoPending<F> {
    type Item = F;

    fn next(&mut self) -> Option<F> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<F> ExactSizeIterator for IntoPending<F> {}
impl<F> FusedIterator for IntoPending<F> {}

impl<F> fmt::Debug for IntoPending<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntoPending").field("left", &self.len()).finish()
    }
}

/// The wait ended before all futures had: "unfinished 1 of 4".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("unfinished {unfinished} of {total}")]
pub struct Unfinished {
    unfinished: usize,
    total: usize,
}

impl Unfinished {
    /// An error for `unfinished` out of `total` futures.
    ///
    /// ```
    /// assert_eq!(futures_ext::Unfinished::new(1, 4).to_string(), "unfinished 1 of 4");
    /// ```
    pub const fn new(unfinished: usize, total: usize) -> Self {
        Self { unfinished, total }
    }

    /// How many futures had not finished.
    ///
    /// ```
    /// assert_eq!(futures_ext::Unfinished::new(1, 4).unfinished(), 1);
    /// ```
    pub const fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// How many futures there were.
    ///
    /// ```
    /// assert_eq!(futures_ext::Unfinished::new(1, 4).total(), 4);
    /// ```
    pub const fn total(&self) -> usize {
        self.total
    }
}
