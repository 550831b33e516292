//! A callback in a future's way out.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The future made by [`FutureExt::on_done`](crate::FutureExt::on_done).
#[must_use = "a future does nothing until it is polled, and neither does its callback"]
#[pin_project::pin_project]
pub struct OnDone<F, C> {
    #[pin]
    future: F,
    callback: Option<C>,
}

impl<F, C> OnDone<F, C> {
    pub(crate) fn new(future: F, callback: C) -> Self {
        Self { future, callback: Some(callback) }
    }

    /// The future inside.
    ///
    /// ```
    /// use futures_ext::FutureExt;
    ///
    /// assert_eq!(std::future::ready(1).on_done(|_| ()).get_ref().clone().into_inner(), 1);
    /// ```
    pub fn get_ref(&self) -> &F {
        &self.future
    }

    /// The future inside, to change it.
    ///
    /// ```
    /// use futures_ext::FutureExt;
    ///
    /// let mut one = std::future::ready(1).on_done(|n| assert_eq!(*n, 2));
    /// *one.get_mut() = std::future::ready(2);
    /// one.wait();
    /// ```
    pub fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }

    /// The future inside; the callback is dropped uncalled.
    ///
    /// ```
    /// use futures_ext::FutureExt;
    ///
    /// assert_eq!(async { 1 }.on_done(|_| unreachable!()).into_inner().wait(), 1);
    /// ```
    pub fn into_inner(self) -> F {
        self.future
    }
}

impl<F, C> Future for OnDone<F, C>
where
    F: Future,
    C: FnOnce(&F::Output),
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let output = ready!(this.future.poll(cx));
        if let Some(callback) = this.callback.take() {
            callback(&output);
        }
        Poll::Ready(output)
    }
}

impl<F: fmt::Debug, C> fmt::Debug for OnDone<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDone")
            .field("future", &self.future)
            .field("called", &self.callback.is_none())
            .finish_non_exhaustive()
    }
}
