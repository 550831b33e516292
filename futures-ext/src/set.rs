//! The set of futures under `as_completed` and `wait`: `FuturesUnordered`, made linear on a tokio worker.
//!
//! `FuturesUnordered` polls only the futures that were woken. On a tokio worker this breaks down: after 128 ready
//! resources tokio's cooperative budget is used up, each further future answers `Pending`, and the set, which cannot know
//! why, goes on to poll all of them, every time: quadratic. So the set is polled outside the budget, and the budget is
//! charged once for each output instead. A loop over the outputs still yields to the scheduler after each 128.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures_core::Stream;
use futures_util::stream::FuturesUnordered;
use tokio::task::coop;

use crate::blocking::poll_unconstrained;

pub(crate) struct Set<F> {
    unordered: FuturesUnordered<Numbered<F>>,
    total: usize,
}

impl<F: Future> Set<F> {
    pub(crate) fn new(futures: impl IntoIterator<Item = F>) -> Self {
        let numbered = futures.into_iter().enumerate().map(|(number, future)| Numbered { number, future });
        let unordered: FuturesUnordered<_> = numbered.collect();
        Self { total: unordered.len(), unordered }
    }

    /// The next output; `None` when the set is empty.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let budget = ready!(coop::poll_proceed(cx));
        let item = self.poll_unbudgeted(cx);
        if item.is_ready() {
            budget.made_progress();
        }
        item
    }

    /// Takes the outputs of all futures that have finished by now, without waiting.
    ///
    /// The set's `Pending` doesn't mean "nothing is ready": it also gives way to others when two futures woke
    /// themselves, and when another thread is half-way through queueing a wake-up. In both cases it wakes its own task, so we
    /// listen with a waker of our own and ask again. The queue is first in, first out and each round takes at least two
    /// futures from it, so as many rounds as there are futures reach each of them; the bound keeps futures that wake
    /// themselves for ever from holding us.
    ///
    /// The caller's waker is not registered afterwards.
    pub(crate) fn drain_ready(&mut self, mut each: impl FnMut(F::Output)) {
        const SPINS: usize = 64; // for the half-queued wake-up, where nothing is taken
        let flag = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut cx = Context::from_waker(&waker);
        let mut rounds = self.unfinished() + SPINS;
        loop {
            match self.poll_unbudgeted(&mut cx) {
                Poll::Ready(Some(output)) => each(output),
                Poll::Ready(None) => return,
                Poll::Pending if rounds > 0 && flag.0.swap(false, Ordering::Acquire) => {
                    rounds -= 1;
                    std::hint::spin_loop();
                }
                Poll::Pending => return,
            }
        }
    }

    fn poll_unbudgeted(&mut self, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let next = poll_fn(|cx| Pin::new(&mut self.unordered).poll_next(cx));
        poll_unconstrained(pin!(next), cx)
    }
}

impl<F> Set<F> {
    /// How many futures were put in.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// How many have not given their output yet.
    pub(crate) fn unfinished(&self) -> usize {
        self.unordered.len()
    }

    /// The futures that are left, in the order in which they were given.
    pub(crate) fn into_pending(self) -> Vec<F>
    where
        F: Unpin,
    {
        let mut pending: Vec<_> = self.unordered.into_iter().collect();
        pending.sort_unstable_by_key(|entry| entry.number);
        pending.into_iter().map(|entry| entry.future).collect()
    }
}

/// A future with its place in the input.
#[pin_project::pin_project]
struct Numbered<F> {
    number: usize,
    #[pin]
    future: F,
}

impl<F: Future> Future for Numbered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}
