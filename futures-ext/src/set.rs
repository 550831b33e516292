//! The set of futures under `as_completed` and `wait`: `FuturesUnordered`, made linear on a tokio worker.
//!
//! `FuturesUnordered` polls only the futures that were woken. On a tokio worker this breaks down: after 128 ready
//! resources tokio's cooperative budget is used up, each further future answers `Pending`, and the set, which cannot know
//! why, goes on to poll all of them, every time: quadratic. So the set is polled outside the budget, and the budget is
//! charged once for each output instead. A loop over the outputs still yields to the scheduler after each 128.
//!
//! Often many of the first futures have finished before anybody asks. Such a one costs neither an allocation nor a waker: it is
//! polled in a box that all of them use in turn, with a waker that does nothing. The first one that is pending ends this: it
//! goes into `FuturesUnordered` in that box, to be polled once more with a waker of its own, and so do all the others.

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
    /// Those that were never polled.
    fresh: std::iter::Enumerate<std::vec::IntoIter<F>>,
    unordered: FuturesUnordered<Numbered<F>>,
    /// An empty box for the next one.
    place: Option<Pin<Box<Option<F>>>>,
    total: usize,
}

// No future is pinned in place: they move until they are polled, and are polled in boxes.
impl<F> Unpin for Set<F> {}

impl<F: Future> Set<F> {
    pub(crate) fn new(futures: impl IntoIterator<Item = F>) -> Self {
        let fresh: Vec<F> = futures.into_iter().collect();
        let total = fresh.len();
        Self { fresh: fresh.into_iter().enumerate(), unordered: FuturesUnordered::new(), place: None, total }
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
        if let Some((number, future)) = self.fresh.next() {
            // Taken out meanwhile: a future that panics goes with its box.
            let mut place = self.place.take().unwrap_or_else(|| Box::pin(None));
            place.set(Some(future));
            let mut numbered = Numbered { number, place };
            let first = poll_unconstrained(Pin::new(&mut numbered), &mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(output) = first {
                self.place = Some(numbered.place);
                return Poll::Ready(Some(output));
            }
            self.unordered.push(numbered);
            let rest = self.fresh.by_ref();
            self.unordered.extend(rest.map(|(number, future)| Numbered { number, place: Box::pin(Some(future)) }));
        }
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
        self.fresh.len() + self.unordered.len()
    }

    /// The futures that are left, in the order in which they were given.
    pub(crate) fn into_pending(self) -> Vec<F>
    where
        F: Unpin,
    {
        let mut pending: Vec<_> = self.unordered.into_iter().collect();
        pending.sort_unstable_by_key(|entry| entry.number);
        let polled = pending.into_iter().filter_map(|entry| *Pin::into_inner(entry.place));
        // The numbers of the others are higher.
        polled.chain(self.fresh.map(|(_, future)| future)).collect()
    }
}

/// A future with its place in the input, in a box that is emptied when the future is done.
struct Numbered<F> {
    number: usize,
    place: Pin<Box<Option<F>>>,
}

impl<F: Future> Future for Numbered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let future =
            self.place.as_mut().as_pin_mut().expect("it is done when its box is empty, and not polled any more");
        let output = ready!(future.poll(cx));
        self.place.set(None);
        Poll::Ready(output)
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
