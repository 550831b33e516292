//! `map`: many tasks in, their outcomes out, with a bounded number of them ahead of the reader.

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::stream::{FusedStream, Stream};
use futures_ext::Unfinished;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::error::{Outcome, SubmitError, TaskError};
use crate::executor::{Executor, Slot, submit_job};
use crate::future::{TaskFuture, after};
use crate::job::{Chunk, Single};
use crate::options::TaskOptions;
use crate::task::Task;

/// How many elements are ahead of the reader when [`Map::buffer`] is not called.
pub const DEFAULT_MAP_BUFFER: usize = 1_024;

/// A stream of the outcomes of many tasks; from [`ExecutorExt::map`](crate::ExecutorExt::map), in the order of the
/// tasks, or from [`ExecutorExt::map_unordered`](crate::ExecutorExt::map_unordered), in the order in which they end.
///
/// Tasks are pulled from the iterator as the outcomes are read: at most [`buffer`](Map::buffer) elements are ahead, so
/// the iterator may be infinite. Nothing is pulled before the first poll, or [`start`](Map::start).
///
/// The failure of one element comes in its place, and the later elements still come. Dropping the stream detaches what
/// is running.
///
/// ```
/// use polypool::{ExecutorExt, ThreadPool};
///
/// #[polypool::task]
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// let pool = ThreadPool::new()?;
/// let squares = pool.map((1..).map(|n| square { n })).chunk_size(16).buffer(64);
/// let first: Result<Vec<u64>, _> = squares.blocking().take(3).collect();
/// assert_eq!(first?, [1, 4, 9]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a map does nothing until it is polled or started"]
pub struct Map<I, W = Ordered>
where
    I: Iterator,
    I::Item: Task,
    W: Window,
{
    /// `None` when everything has been submitted, so that a map that is only read keeps no pool alive.
    executor: Option<Arc<dyn Executor>>,
    tasks: I,
    chunk_size: usize,
    buffer: usize,
    options: TaskOptions,
    timeout: Timeout,
    phase: Phase,
    /// What is running, or waits for a worker.
    window: W::Of<Piece<Output<I>>>,
    /// The rest of a chunk that has come back.
    ready: VecDeque<Outcome<Output<I>>>,
    /// Pulled, but no room in the executor's backlog yet.
    waiting: Option<(Vec<I::Item>, Option<Reserve>)>,
    /// Elements pulled and not delivered.
    ahead: usize,
    delivered: usize,
}

type Output<I> = <<I as Iterator>::Item as Task>::Output;
type Reserve = Pin<Box<dyn Future<Output = Result<Slot, SubmitError>> + Send>>;

/// [`Map`] in the order in which the tasks end.
pub type MapUnordered<I> = Map<I, Unordered>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Pulling,
    /// The iterator has ended.
    Exhausted,
    /// The stream has ended.
    Over,
}

enum Timeout {
    None,
    /// Of this length, from the start.
    Of(Duration),
    At(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// The time is up: what is ready is still delivered, and nothing new begins.
    Up,
}

impl<I, W> Map<I, W>
where
    I: Iterator,
    I::Item: Task,
    W: Window,
{
    pub(crate) fn new(executor: Arc<dyn Executor>, tasks: I) -> Self {
        Map {
            executor: Some(executor),
            tasks,
            chunk_size: 1,
            buffer: DEFAULT_MAP_BUFFER,
            options: TaskOptions::new(),
            timeout: Timeout::None,
            phase: Phase::New,
            window: W::empty(),
            ready: VecDeque::new(),
            waiting: None,
            ahead: 0,
            delivered: 0,
        }
    }

    /// How many elements travel to a worker together, at least 1, which is the default. Larger chunks cost less for
    /// short tasks; the death of a worker, and an argument that can't be encoded, then fail the whole chunk. With 0 the stream has one element, an error, and
    /// no task runs.
    pub fn chunk_size(mut self, elements: usize) -> Self {
        self.chunk_size = elements;
        self
    }

    /// How many elements are pulled ahead of the reader, at least 1; by default [`DEFAULT_MAP_BUFFER`]. With 0 the
    /// stream has one element, an error, and no task runs.
    pub fn buffer(mut self, elements: usize) -> Self {
        self.buffer = elements;
        self
    }

    /// How long the whole stream may take, from its start. Then everything that is not done is cancelled, and the last
    /// element is [`TaskError::WaitElapsed`]. Outcomes that are there by then come first.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Timeout::Of(timeout);
        self
    }

    /// The options of each task; with chunks, of each chunk.
    pub fn options(mut self, options: TaskOptions) -> Self {
        self.options = options;
        self
    }

    /// Starts now, with the first [`buffer`](Map::buffer) elements, instead of at the first poll.
    pub fn start(mut self) -> Self {
        self.begin();
        self
    }

    /// The outcomes as an iterator that blocks, for threads without a runtime.
    pub fn blocking(self) -> BlockingMap<I, W> {
        BlockingMap(self)
    }

    fn begin(&mut self) {
        if self.phase != Phase::New {
            return;
        }
        let wrong = match (self.chunk_size, self.buffer) {
            (0, _) => Some("chunk_size(0) can't work: a chunk has at least 1 element"),
            (_, 0) => Some("buffer(0) can't work: at least 1 element must be ahead of the reader"),
            _ => None,
        };
        if let Some(what) = wrong {
            self.ready.push_back(Err(TaskError::InvalidOption(what)));
            self.ahead = 1;
            self.phase = Phase::Exhausted;
            self.let_go();
            return;
        }
        self.phase = Phase::Pulling;
        if let Timeout::Of(timeout) = self.timeout {
            self.timeout = Timeout::At(Box::pin(sleep_until(after(timeout))));
        }
        self.pull();
    }

    /// Pulls elements and submits them, as far as the buffer and the backlog have room.
    fn pull(&mut self) {
        while self.phase == Phase::Pulling && self.waiting.is_none() && self.ahead < self.buffer {
            let chunk = self.chunk_size.min(self.buffer);
            if self.ahead + chunk > self.buffer {
                break;
            }
            let tasks: Vec<I::Item> = self.tasks.by_ref().take(chunk).collect();
            if tasks.len() < chunk {
                self.phase = Phase::Exhausted;
            }
            if tasks.is_empty() {
                break;
            }
            self.ahead += tasks.len();
            let Some(executor) = self.executor.clone() else { break };
            match executor.try_reserve_slot() {
                Err(SubmitError::Full { .. }) => self.waiting = Some((tasks, None)),
                reserved => self.submit(tasks, reserved.ok()),
            }
        }
        self.let_go();
    }

    /// Forgets the executor when there is nothing more to submit.
    fn let_go(&mut self) {
        if self.phase == Phase::Over || self.phase == Phase::Exhausted && self.waiting.is_none() {
            self.executor = None;
        }
    }

    /// Submits what waits for room, as soon as there is some. `true`: something was submitted.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> bool {
        let (Some((_, reserve)), Some(executor)) = (&mut self.waiting, &self.executor) else { return false };
        let reserve = reserve.get_or_insert_with(|| {
            let executor = executor.clone();
            Box::pin(async move { executor.reserve_slot().await })
        });
        let Poll::Ready(reserved) = reserve.as_mut().poll(cx) else { return false };
        if let Some((tasks, _)) = self.waiting.take() {
            self.submit(tasks, reserved.ok());
        }
        self.pull();
        true
    }

    fn submit(&mut self, mut tasks: Vec<I::Item>, slot: Option<Slot>) {
        let Some(executor) = self.executor.clone() else { return };
        let options = self.options.clone();
        let piece = if self.chunk_size == 1 {
            let task = tasks.pop().expect("a chunk of 1 has 1 element");
            Piece::One(submit_job(&*executor, Single(task), options, slot))
        } else {
            let len = tasks.len();
            Piece::Many(submit_job(&*executor, Chunk(tasks), options, slot), len)
        };
        W::push(&mut self.window, piece);
    }

    /// The next outcome, whichever the window has.
    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outcome<Output<I>>>> {
        loop {
            if let Some(outcome) = self.ready.pop_front() {
                return Poll::Ready(Some(outcome));
            }
            if !matches!(self.timeout, Timeout::Up) && self.poll_room(cx) {
                continue;
            }
            match W::poll_next(&mut self.window, cx) {
                Poll::Ready(Some(Arrived::One(outcome))) => return Poll::Ready(Some(outcome)),
                Poll::Ready(Some(Arrived::Many(Ok(outcomes), _))) => self.ready.extend(outcomes),
                Poll::Ready(Some(Arrived::Many(Err(error), len))) => {
                    self.ready.extend((0..len).map(|_| Err(error.clone())));
                }
                Poll::Ready(None) if self.waiting.is_none() => return Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn give_up(&mut self) -> TaskError {
        let error = TaskError::WaitElapsed(Unfinished::new(self.ahead, self.delivered + self.ahead));
        W::cancel_all(&mut self.window);
        self.waiting = None;
        self.phase = Phase::Over;
        self.let_go();
        error
    }
}

async fn sleep_until(at: Instant) {
    let _ = futures_ext::FutureExt::deadline(pending::<()>(), at).await;
}

impl<I, W> Stream for Map<I, W>
where
    I: Iterator + Unpin,
    I::Item: Task,
    W: Window,
{
    type Item = Outcome<Output<I>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.begin();
        if this.phase == Phase::Over {
            return Poll::Ready(None);
        }
        let time_is_up = match &mut this.timeout {
            Timeout::Of(_) | Timeout::None => false,
            Timeout::Up => true,
            Timeout::At(time) => time.as_mut().poll(cx).is_ready(),
        };
        if time_is_up {
            // What is there comes first; nothing new is begun.
            this.timeout = Timeout::Up;
            this.waiting = this.waiting.take().map(|(tasks, _)| (tasks, None));
        }
        match this.poll_outcome(cx) {
            Poll::Ready(Some(outcome)) => {
                this.ahead -= 1;
                this.delivered += 1;
                if !time_is_up {
                    this.pull();
                }
                if let Some((_, reserve)) = &mut this.waiting {
                    // A place in the queue for room must not be held while nobody polls: others stand behind it.
                    *reserve = None;
                }
                Poll::Ready(Some(outcome))
            }
            Poll::Ready(None) if this.phase == Phase::Exhausted || !time_is_up => {
                this.phase = Phase::Over;
                this.let_go();
                Poll::Ready(None)
            }
            Poll::Ready(None) | Poll::Pending if time_is_up => Poll::Ready(Some(Err(this.give_up()))),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        if self.phase == Phase::Over {
            return (0, Some(0));
        }
        let (low, high) = if self.phase == Phase::Exhausted { (0, Some(0)) } else { self.tasks.size_hint() };
        let extra = usize::from(!matches!(self.timeout, Timeout::None));
        let low = if extra == 1 { 0 } else { low.saturating_add(self.ahead) };
        (low, high.and_then(|high| high.checked_add(self.ahead + extra)))
    }
}

impl<I, W> FusedStream for Map<I, W>
where
    I: Iterator + Unpin,
    I::Item: Task,
    W: Window,
{
    fn is_terminated(&self) -> bool {
        self.phase == Phase::Over
    }
}

// Nothing in a map is pinned in place: futures in it are boxed or `Unpin`.
impl<I, W> Unpin for Map<I, W>
where
    I: Iterator + Unpin,
    I::Item: Task,
    W: Window,
{
}

impl<I, W> std::fmt::Debug for Map<I, W>
where
    I: Iterator,
    I::Item: Task,
    W: Window,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map")
            .field("phase", &self.phase)
            .field("chunk_size", &self.chunk_size)
            .field("buffer", &self.buffer)
            .field("ahead", &self.ahead)
            .field("delivered", &self.delivered)
            .finish_non_exhaustive()
    }
}

/// The outcomes of a [`Map`] as an iterator that blocks; from [`Map::blocking`].
#[derive(Debug)]
pub struct BlockingMap<I, W = Ordered>(Map<I, W>)
where
    I: Iterator,
    I::Item: Task,
    W: Window;

impl<I, W> Iterator for BlockingMap<I, W>
where
    I: Iterator + Unpin,
    I::Item: Task,
    W: Window,
{
    type Item = Outcome<Output<I>>;

    fn next(&mut self) -> Option<Self::Item> {
        futures_ext::block_on(self.0.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// One submit of a map: an element, or a chunk of them.
#[doc(hidden)]
#[derive(Debug)]
pub enum Piece<O> {
    One(TaskFuture<O>),
    Many(TaskFuture<Vec<Outcome<O>>>, usize),
}

/// What came back for a [`Piece`].
#[doc(hidden)]
#[derive(Debug)]
pub enum Arrived<O> {
    One(Outcome<O>),
    Many(Outcome<Vec<Outcome<O>>>, usize),
}

impl<O> Future for Piece<O> {
    type Output = Arrived<O>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Arrived<O>> {
        match self.get_mut() {
            Piece::One(task) => Pin::new(task).poll(cx).map(Arrived::One),
            Piece::Many(tasks, len) => Pin::new(tasks).poll(cx).map(|outcome| Arrived::Many(outcome, *len)),
        }
    }
}

impl<O> Piece<O> {
    fn cancel(&self) {
        match self {
            Piece::One(task) => task.cancel(),
            Piece::Many(tasks, _) => tasks.cancel(),
        };
    }
}

/// In which order a [`Map`] gives its outcomes: [`Ordered`] or [`Unordered`].
#[doc(hidden)]
pub trait Window: sealed::Sealed {
    type Of<P>;
    fn empty<P>() -> Self::Of<P>;
    fn push<O>(window: &mut Self::Of<Piece<O>>, piece: Piece<O>);
    fn poll_next<O>(window: &mut Self::Of<Piece<O>>, cx: &mut Context<'_>) -> Poll<Option<Arrived<O>>>;
    fn cancel_all<O>(window: &mut Self::Of<Piece<O>>);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Ordered {}
    impl Sealed for super::Unordered {}
}

/// The order of the tasks.
#[derive(Debug)]
pub enum Ordered {}

/// The order in which the tasks end.
#[derive(Debug)]
pub enum Unordered {}

impl Window for Ordered {
    type Of<P> = VecDeque<P>;

    fn empty<P>() -> VecDeque<P> {
        VecDeque::new()
    }

    fn push<O>(window: &mut VecDeque<Piece<O>>, piece: Piece<O>) {
        window.push_back(piece);
    }

    fn poll_next<O>(window: &mut VecDeque<Piece<O>>, cx: &mut Context<'_>) -> Poll<Option<Arrived<O>>> {
        let Some(first) = window.front_mut() else {
            return Poll::Ready(None);
        };
        let Poll::Ready(arrived) = Pin::new(first).poll(cx) else {
            return Poll::Pending;
        };
        window.pop_front();
        Poll::Ready(Some(arrived))
    }

    fn cancel_all<O>(window: &mut VecDeque<Piece<O>>) {
        window.drain(..).for_each(|piece| piece.cancel());
    }
}

impl Window for Unordered {
    type Of<P> = FuturesUnordered<P>;

    fn empty<P>() -> FuturesUnordered<P> {
        FuturesUnordered::new()
    }

    fn push<O>(window: &mut FuturesUnordered<Piece<O>>, piece: Piece<O>) {
        window.push(piece);
    }

    fn poll_next<O>(window: &mut FuturesUnordered<Piece<O>>, cx: &mut Context<'_>) -> Poll<Option<Arrived<O>>> {
        window.poll_next_unpin(cx)
    }

    fn cancel_all<O>(window: &mut FuturesUnordered<Piece<O>>) {
        std::mem::take(window).into_iter().for_each(|piece| piece.cancel());
    }
}
