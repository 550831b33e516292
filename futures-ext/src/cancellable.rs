//! A future that a token can stop.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The future made by [`FutureExt::cancellable`](crate::FutureExt::cancellable).
#[must_use = "a future does nothing until it is polled"]
#[pin_project::pin_project]
pub struct Cancellable<F> {
    /// `None` once it has finished or was cancelled.
    #[pin]
    future: Option<F>,
    token: CancellationToken,
    /// Made on the first poll that has to wait. Boxed because it must not move, and we want to be `Unpin` when `F` is.
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl<F> Cancellable<F> {
    pub(crate) fn new(future: F, token: CancellationToken) -> Self {
        Self { future: Some(future), token, cancelled: None }
    }

    /// The token it listens to.
    ///
    /// ```
    /// use futures_ext::{CancellationToken, Cancelled, FutureExt};
    ///
    /// let one = async { 1 }.cancellable(CancellationToken::new());
    /// one.token().cancel();
    /// assert_eq!(one.wait(), Err(Cancelled::new()));
    /// ```
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The future inside, unless it has finished or was cancelled.
    ///
    /// ```
    /// use futures_ext::{CancellationToken, FutureExt};
    ///
    /// assert!(async { 1 }.cancellable(CancellationToken::new()).get_ref().is_some());
    /// ```
    pub fn get_ref(&self) -> Option<&F> {
        self.future.as_ref()
    }

    /// The future inside, to change it, unless it has finished or was cancelled.
    ///
    /// ```
    /// use futures_ext::{CancellationToken, FutureExt};
    ///
    /// let mut one = std::future::ready(1).cancellable(CancellationToken::new());
    /// *one.get_mut().unwrap() = std::future::ready(2);
    /// assert_eq!(one.wait(), Ok(2));
    /// ```
    pub fn get_mut(&mut self) -> Option<&mut F> {
        self.future.as_mut()
    }

    /// The future inside, free of the token, unless it has finished or was cancelled.
    ///
    /// ```
    /// use futures_ext::{CancellationToken, FutureExt};
    ///
    /// let one = async { 1 }.cancellable(CancellationToken::new());
    /// assert_eq!(one.into_inner().unwrap().wait(), 1);
    /// ```
    pub fn into_inner(self) -> Option<F> {
        self.future
    }
}

impl<F: Future> Future for Cancellable<F> {
    type Output = Result<F::Output, Cancelled>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if !this.token.is_cancelled() {
            let future = this.future.as_mut().as_pin_mut();
            let future = future.expect("a cancellable future was polled after it had finished");
            if let Poll::Ready(output) = future.poll(cx) {
                this.future.set(None);
                *this.cancelled = None;
                return Poll::Ready(Ok(output));
            }
            // Looks at the token again after it has put our waker down, so a cancel since the first look is not lost.
            let cancelled = this.cancelled.get_or_insert_with(|| Box::pin(this.token.clone().cancelled_owned()));
            if cancelled.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        this.future.set(None);
        *this.cancelled = None;
        Poll::Ready(Err(Cancelled))
    }
}

impl<F: fmt::Debug> fmt::Debug for Cancellable<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancellable")
            .field("future", &self.future)
            .field("is_cancelled", &self.token.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// The future was cancelled before it finished.
///
/// An error that is this, or has it among its [sources](std::error::Error::source), is no failure to
/// [`FirstFailure`](crate::FirstFailure).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Cancelled {
    /// The error, for executors that cancel in their own ways.
    ///
    /// ```
    /// assert_eq!(futures_ext::Cancelled::new().to_string(), "cancelled");
    /// ```
    pub const fn new() -> Self {
        Self
    }
}
