//! The methods this crate adds to every future.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::blocking::{block_on, block_on_deadline};
use crate::{Cancellable, Elapsed, Tagged, Timeout};

/// Methods for every future.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use futures_ext::FutureExt;
///
/// let answer = async { 42 }.tagged("answer").timeout(Duration::from_secs(1));
/// assert_eq!(answer.wait(), Ok(("answer", 42)));
/// ```
pub trait FutureExt: Future {
    /// Waits no longer than `timeout`, counted from this call.
    ///
    /// Ends the wait, not the work. A future that is ready wins over a timeout that has passed, so zero asks "is it there
    /// already?".
    ///
    /// The timer fires under any runtime or none. It is started when the future first has to wait.
    ///
    /// # Errors
    ///
    /// The output is [`Elapsed`] when the timeout passed first.
    ///
    /// # Cancellation safety
    ///
    /// As that of the future itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures_ext::FutureExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let error = std::future::pending::<()>().timeout(Duration::from_millis(5)).await.unwrap_err();
    /// assert_eq!(error.to_string(), "no outcome within 5ms");
    /// # }
    /// ```
    fn timeout(self, timeout: Duration) -> Timeout<Self>
    where
        Self: Sized,
    {
        Timeout::after(self, timeout)
    }

    /// Waits no longer than until `deadline`; otherwise as [`timeout`](Self::timeout).
    ///
    /// # Errors
    ///
    /// The output is [`Elapsed`], with the duration from this call to the deadline, when the deadline passed first.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use futures_ext::FutureExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let until = Instant::now() + Duration::from_secs(1);
    /// assert_eq!(async { 1 }.deadline(until).await, Ok(1));
    /// # }
    /// ```
    fn deadline(self, deadline: Instant) -> Timeout<Self>
    where
        Self: Sized,
    {
        Timeout::at(self, deadline)
    }

    /// Gives out `tag` together with the output, so that one knows which future of many has finished.
    ///
    /// # Panics
    ///
    /// When polled after it had finished.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_ext::{FutureExt, as_completed};
    ///
    /// let squares = [2, 3].map(|n| async move { n * n }.tagged(n));
    /// for (n, square) in as_completed(squares).blocking() {
    ///     assert_eq!(square, n * n);
    /// }
    /// ```
    fn tagged<K>(self, tag: K) -> Tagged<Self, K>
    where
        Self: Sized,
    {
        Tagged::new(self, tag)
    }

    /// Stops the future when `token` is cancelled: it is never polled again, and dropped at once.
    ///
    /// "At once" means the next poll, which the token brings about. The token is looked at first, so nothing of a future
    /// runs when its token was cancelled before. An output that was ready before the token was cancelled is not lost.
    ///
    /// # Errors
    ///
    /// The output is [`Cancelled`](crate::Cancelled) when the token came first.
    ///
    /// # Panics
    ///
    /// When polled after it had finished, while the token is not cancelled.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_ext::{CancellationToken, Cancelled, FutureExt};
    ///
    /// let token = CancellationToken::new();
    /// let endless = std::future::pending::<()>().cancellable(token.child_token());
    /// token.cancel();
    /// assert_eq!(endless.wait(), Err(Cancelled::new()));
    /// ```
    fn cancellable(self, token: CancellationToken) -> Cancellable<Self>
    where
        Self: Sized,
    {
        Cancellable::new(self, token)
    }

    /// Blocks this thread until the future has finished; for threads with no runtime.
    ///
    /// See [`block_on`](crate::block_on), also for when not to use it.
    ///
    /// # Panics
    ///
    /// When the future panics, or when the thread's [`BlockingObserver`](crate::BlockingObserver) refuses.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_ext::FutureExt;
    ///
    /// assert_eq!(async { 1 }.wait(), 1);
    /// ```
    fn wait(self) -> Self::Output
    where
        Self: Sized,
    {
        block_on(self)
    }

    /// Blocks this thread until the future has finished, but no longer than `timeout`.
    ///
    /// The future is only borrowed: after a timeout one can wait again. Pin it first (`pin!`, `Box::pin`) if it is an
    /// `async` block.
    ///
    /// # Errors
    ///
    /// [`Elapsed`] when the timeout passed first.
    ///
    /// # Panics
    ///
    /// As [`wait`](Self::wait).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures_ext::FutureExt;
    /// use tokio::sync::oneshot;
    ///
    /// let (sender, mut receiver) = oneshot::channel();
    /// assert!(receiver.wait_timeout(Duration::from_millis(1)).is_err());
    /// sender.send(7).unwrap();
    /// assert_eq!(receiver.wait_timeout(Duration::from_millis(1)), Ok(Ok(7)));
    /// ```
    fn wait_timeout(&mut self, timeout: Duration) -> Result<Self::Output, Elapsed>
    where
        Self: Unpin,
    {
        let this = std::pin::Pin::new(self);
        match Instant::now().checked_add(timeout) {
            Some(deadline) => block_on_deadline(this, deadline).map_err(|_| Elapsed::new(timeout)),
            None => Ok(block_on(this)),
        }
    }
}

impl<F: Future + ?Sized> FutureExt for F {}
