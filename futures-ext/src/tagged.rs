//! A future that remembers what it was for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The future made by [`FutureExt::tagged`](crate::FutureExt::tagged).
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
#[pin_project::pin_project]
pub struct Tagged<F, K> {
    #[pin]
    future: F,
    /// `None` once it was given out with the output.
    tag: Option<K>,
}

impl<F, K> Tagged<F, K> {
    pub(crate) fn new(future: F, tag: K) -> Self {
        Self { future, tag: Some(tag) }
    }

    /// The tag, unless it was given out with the output.
    ///
    /// ```
    /// use futures_ext::FutureExt;
    ///
    /// assert_eq!(async {}.tagged("a").tag(), Some(&"a"));
    /// ```
    pub fn tag(&self) -> Option<&K> {
        self.tag.as_ref()
    }

    /// The future inside.
    ///
    /// ```
    /// use futures_ext::FutureExt;
    ///
    /// assert_eq!(std::future::ready(1).tagged("a").get_ref().clone().into_inner(), 1);
    /// ```
    pub fn get_ref(&self) -> &F {
        &self.future
    }

    /// The future inside, to change it.
    ///
    /// ```
    /// use futures_ext::FutureExt;
    ///
    /// let mut one = std::future::ready(1).tagged("a");
    /// *one.get_mut() = std::future::ready(2);
    /// assert_eq!(one.wait(), ("a", 2));
    /// ```
    pub fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }

    /// The future inside, without the tag.
    ///
    /// ```
    /// use futures_ext::FutureExt;
    ///
    /// assert_eq!(async { 1 }.tagged("a").into_inner().wait(), 1);
    /// ```
    pub fn into_inner(self) -> F {
        self.future
    }
}

impl<F: Future, K> Future for Tagged<F, K> {
    type Output = (K, F::Output);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        assert!(this.tag.is_some(), "a tagged future was polled after it had finished");
        let output = ready!(this.future.poll(cx));
        let tag = this.tag.take().expect("looked at above");
        Poll::Ready((tag, output))
    }
}
