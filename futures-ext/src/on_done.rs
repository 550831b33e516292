//! A callback in a future's way out.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Calls `callback` with the output of `future`, by reference, just before the output is given out.
///
/// The callback runs where the future is polled. It is dropped uncalled when the future is dropped before its end.
///
/// It is a function and not a method of [`FutureExt`](crate::FutureExt), because a method that takes the future by value
/// would hide the `on_done(&self)` of futures that have one of their own, such as polypool's.
///
/// # Panics
///
/// A panic of the callback goes on to whoever polls; the output is dropped.
///
/// # Examples
///
/// ```
/// use futures_ext::{FutureExt, on_done};
///
/// assert_eq!(on_done(async { 1 }, |n| println!("got {n}")).wait(), 1);
/// ```
pub fn on_done<F, C>(future: F, callback: C) -> OnDone<F, C>
where
    F: Future,
    C: FnOnce(&F::Output),
{
    OnDone { future, callback: Some(callback) }
}

/// The future made by [`on_done`].
#[must_use = "a future does nothing until it is polled, and neither does its callback"]
#[pin_project::pin_project]
pub struct OnDone<F, C> {
    #[pin]
    future: F,
    callback: Option<C>,
}

impl<F, C> OnDone<F, C> {
    /// The future inside.
    ///
    /// ```
    /// use futures_ext::on_done;
    ///
    /// assert_eq!(on_done(std::future::ready(1), |_| ()).get_ref().clone().into_inner(), 1);
    /// ```
    pub fn get_ref(&self) -> &F {
        &self.future
    }

    /// The future inside, to change it.
    ///
    /// ```
    /// use futures_ext::{FutureExt, on_done};
    ///
    /// let mut one = on_done(std::future::ready(1), |n| assert_eq!(*n, 2));
    /// *one.get_mut() = std::future::ready(2);
    /// one.wait();
    /// ```
    pub fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }

    /// The future inside; the callback is dropped uncalled.
    ///
    /// ```
    /// use futures_ext::{FutureExt, on_done};
    ///
    /// assert_eq!(on_done(async { 1 }, |_| unreachable!()).into_inner().wait(), 1);
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
