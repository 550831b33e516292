//! `map`: many tasks in, their outcomes out, with a bounded number of them ahead of the reader.
//!
//! **Chunks.** Unless the user says how large they are to be, a map on threads measures the first elements one by one,
//! and then makes chunks that take about [`CHUNK_TIME`] ([`Meter`]), each at most some times as large as the largest
//! before it. On processes it doesn't, because a chunk shares the fate of its worker.
//!
//! **Reading in bursts.** A blocking reader for whom the next outcome isn't there waits for one in the middle of what
//! is ahead, but only for [`DOZE`]; so it is seldom woken, and is seldom in the workers' way.
//!
//! **Bundles.** Elements that are to be alone on threads share an allocation, a lock and a place in the backlog with
//! their neighbours ([`Bundle`]), and nothing else: each is found by the workers as soon as it was pulled, runs by
//! itself, and has its outcome read as soon as that is there.
//!
//! **Cells.** Where that can't be (few are ahead, they are asynchronous, have options, go to processes, or are read in
//! the order in which they end), elements are submitted one by one, and there is a window of cells that are used again
//! and again: as soon as an outcome was read, and if nobody else has an eye on the cell, the next element goes into it.

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_core::stream::{FusedStream, Stream};
use futures_ext::Unfinished;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::bundle::{Bundle, Ledger, MAX_BUNDLE};
use crate::error::{CodecError, Outcome, SubmitError, TaskError};
use crate::executor::{Executor, Slot, submit_job};
use crate::future::{TaskFuture, after};
use crate::job::{Chunk, Single};
use crate::options::TaskOptions;
use crate::state::{AnyCell as _, Call, Cell, Observed as _};
use crate::task::{IntoOutcomes, Outcomes, Task};

/// How many elements are ahead of the reader, at least, when [`Map::buffer`] is not called; where a map makes chunks by
/// itself, there are more if the chunks that keep all workers busy for a millisecond or so hold more.
pub const DEFAULT_MAP_BUFFER: usize = 1_024;

/// For how long the chunks run that a map makes by itself: a hundred times as long as it takes to hand one over.
const CHUNK_TIME: Duration = Duration::from_micros(20);

/// So many chunks that a map makes by itself are ahead of the reader for each that can run at once: the reader then
/// sleeps for much longer than a wake-up takes, and the workers have enough to do until it has come.
const CHUNKS_AHEAD: usize = 16;

/// So many chunks are ahead in any case.
const MIN_CHUNKS_AHEAD: usize = 64;

/// The most elements in a chunk that a map makes by itself.
const MAX_CHUNK: usize = 1_024;

/// Of a buffer that the user has chosen, a chunk is at most this part.
const PARTS_OF_BUFFER: usize = 8;

/// A chunk that a map makes by itself is at most so many times as large as those whose time is known.
const GROWTH: usize = 4;

/// From so many submits on, what is ahead is much.
const MUCH: usize = 32;

/// The same for bundles.
const MANY_BUNDLES: usize = 4;

/// Below this number, a bundle costs more than it saves.
const MIN_BUNDLE: usize = 8;

/// After so many bundles in a row that took fewer, because others submit as well, elements go one by one.
const SHORT_BUNDLES: u32 = 4;

/// Of the elements that are ahead, a bundle is at most this part.
const PARTS_IN_BUNDLES: usize = 16;

/// For how long elements are pulled into bundles while an outcome is there to be read: one at least, however long that
/// takes, and so few that the reader doesn't notice.
const BURST: Duration = Duration::from_micros(5);

/// For how long a blocking reader waits for an outcome that isn't the next one.
const DOZE: Duration = Duration::from_micros(200);

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
    /// `None`: as the meter says.
    chunk_size: Option<usize>,
    meter: Arc<Meter>,
    /// How many chunks are to be ahead, where the map makes them.
    chunks_ahead: usize,
    /// `None`: by default.
    buffer: Option<usize>,
    options: TaskOptions,
    timeout: Timeout,
    phase: Phase,
    /// What is running, or waits for a worker.
    window: W::Of<I::Item>,
    /// Cells to be used again.
    cells: Vec<Arc<Cell<Single<I::Item>>>>,
    /// The rest of a chunk that has come back.
    ready: IntoOutcomes<Output<I>>,
    /// For elements that travel alone and may do so in a [`Bundle`].
    bundles: Option<Bundles<I::Item>>,
    /// So many of these are left when there may be room for the next elements.
    low: usize,
    /// Pulled, but no room in the executor's backlog yet.
    waiting: Option<(Batch<I::Item>, Option<Reserve>)>,
    /// Elements pulled whose outcomes have not come.
    under_way: usize,
    /// Outcomes that have come.
    arrived: usize,
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

/// Where elements go that share a bundle.
struct Bundles<T: Task> {
    ledger: Arc<Ledger>,
    /// How many elements a bundle takes.
    size: usize,
    /// The one that the next element goes into, if it takes it. It's the last of the window.
    open: Option<Arc<Bundle<T>>>,
    /// How many the next one is likely to take.
    likely: usize,
    /// How many bundles in a row took few.
    short: u32,
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
            chunk_size: None,
            meter: Arc::default(),
            chunks_ahead: MIN_CHUNKS_AHEAD,
            buffer: None,
            options: TaskOptions::new(),
            timeout: Timeout::None,
            phase: Phase::New,
            window: W::empty(),
            cells: Vec::new(),
            ready: IntoOutcomes::none(),
            bundles: None,
            low: 0,
            waiting: None,
            under_way: 0,
            arrived: 0,
        }
    }

    /// How many elements travel to a worker together, at least 1. Larger chunks cost less for short tasks; the death of
    /// a worker, and an argument that can't be encoded, then fail the whole chunk. With 0 the stream has one element,
    /// an error, and no task runs.
    ///
    /// By default each element travels alone on a process pool. On a thread pool, where nothing is lost by chunks,
    /// there are as many in one as take some 20 microseconds by what the elements before took, and at most 1,024 or an
    /// eighth of the [`buffer`](Map::buffer); but asynchronous tasks, and those with [`options`](Map::options), are
    /// alone there, too. Take `chunk_size(1)` where elements wait for each other, or a few are very much longer than
    /// the rest.
    pub fn chunk_size(mut self, elements: usize) -> Self {
        self.chunk_size = Some(elements);
        self
    }

    /// How many elements are pulled ahead of the reader, at least 1; by default [`DEFAULT_MAP_BUFFER`], on threads up to 64
    /// more where elements are alone, or what keeps the workers busy for a millisecond or so where the map chooses the
    /// chunks and that is more. With 0 the stream has one element, an error, and no task runs.
    ///
    /// The next ones are pulled as soon as there is room for a chunk.
    pub fn buffer(mut self, elements: usize) -> Self {
        self.buffer = Some(elements);
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
            (Some(0), _) => Some("chunk_size(0) can't work: a chunk has at least 1 element"),
            (_, Some(0)) => Some("buffer(0) can't work: at least 1 element must be ahead of the reader"),
            _ => None,
        };
        if let Some(what) = wrong {
            self.ready = IntoOutcomes::of(vec![Err(TaskError::InvalidOption(what))]);
            self.arrived = 1;
            self.phase = Phase::Exhausted;
            self.let_go();
            return;
        }
        match self.executor.as_ref().and_then(|executor| executor.chunk_parallelism()) {
            Some(workers) if !I::Item::IS_ASYNC && self.options.is_default() => {
                self.chunks_ahead = workers.saturating_mul(CHUNKS_AHEAD).max(MIN_CHUNKS_AHEAD);
            }
            _ => _ = self.chunk_size.get_or_insert(1),
        }
        self.bundles = self.bundles();
        self.phase = Phase::Pulling;
        if let Timeout::Of(timeout) = self.timeout {
            self.timeout = Timeout::At(Box::pin(sleep_until(after(timeout))));
        }
        self.pull();
    }

    /// Where each element travels alone and bundles are possible: how.
    fn bundles(&self) -> Option<Bundles<I::Item>> {
        let is_possible =
            W::IS_ORDERED && self.chunk_size == Some(1) && !I::Item::IS_ASYNC && self.options.is_default();
        let size = (self.buffer.unwrap_or(DEFAULT_MAP_BUFFER) / PARTS_IN_BUNDLES).min(MAX_BUNDLE);
        if !is_possible || size < MIN_BUNDLE {
            return None;
        }
        let ledger = self.executor.as_ref()?.bundles()?;
        let likely = self.tasks.size_hint().1.unwrap_or(size).min(size);
        Some(Bundles { ledger, size, open: None, likely, short: 0 })
    }

    /// Pulls elements after an outcome was taken. Where they go into bundles, and the user has not said how many are to be
    /// ahead, several at once: they are [`DEFAULT_MAP_BUFFER`] at least, and a bundle more at most.
    fn pull_next(&mut self) {
        let size = match &self.bundles {
            Some(bundles) if self.buffer.is_none() && self.phase == Phase::Pulling => bundles.size,
            _ => return self.pull(),
        };
        if self.ahead() < DEFAULT_MAP_BUFFER {
            let end = Instant::now() + BURST;
            for pulled in 1_usize.. {
                self.pull_one();
                if self.bundles.is_none() || self.phase != Phase::Pulling {
                    return self.pull();
                }
                // Looked at after the first one, so that a slow source is asked for one only, and then seldom.
                let is_time = (pulled.is_power_of_two() || pulled.is_multiple_of(8)) && Instant::now() >= end;
                if is_time || self.ahead() >= DEFAULT_MAP_BUFFER + size {
                    break;
                }
            }
        }
        self.low = (DEFAULT_MAP_BUFFER - 1).saturating_sub(self.under_way);
    }

    /// Pulls an element into a bundle.
    fn pull_one(&mut self) {
        match self.tasks.next() {
            Some(task) => self.bundle(task),
            None => self.phase = Phase::Exhausted,
        }
    }

    /// Pulls elements and submits them, as far as the buffer and the backlog have room.
    fn pull(&mut self) {
        while self.phase == Phase::Pulling && self.waiting.is_none() {
            let (chunk, buffer) = self.extent();
            if self.ahead() + chunk > buffer {
                self.low = buffer.saturating_sub(chunk).saturating_sub(self.under_way);
                break;
            }
            if self.bundles.is_some() {
                self.pull_one();
                continue;
            }
            let Some(executor) = &self.executor else { break };
            // Chunks are measured, those of one too, where the map chooses them.
            let batch = if chunk == 1 && self.chunk_size.is_some() {
                self.tasks.next().map(Batch::One)
            } else {
                let tasks: Vec<I::Item> = self.tasks.by_ref().take(chunk).collect();
                if tasks.len() < chunk {
                    self.phase = Phase::Exhausted;
                }
                (!tasks.is_empty()).then_some(Batch::Many(tasks))
            };
            let Some(batch) = batch else {
                self.phase = Phase::Exhausted;
                break;
            };
            self.under_way += batch.len();
            match executor.try_reserve_slot() {
                Err(SubmitError::Full { .. }) => self.waiting = Some((batch, None)),
                reserved => self.submit(batch, reserved.ok()),
            }
        }
        if self.phase != Phase::Pulling || self.waiting.is_some() {
            self.low = 0;
        }
        self.let_go();
    }

    /// Submits an element in the open bundle, or in a new one.
    fn bundle(&mut self, mut task: I::Item) {
        let (Some(executor), Some(bundles)) = (&self.executor, &mut self.bundles) else {
            unreachable!("who pulls into bundles has both")
        };
        // A bundle of which all was read has left the window.
        let is_empty = self.under_way == 0;
        self.under_way += 1;
        // Looked at after the source, which may have submitted something.
        let Some(newest) = bundles.ledger.turn() else {
            let error = executor.try_reserve_slot().err().unwrap_or(SubmitError::ShutDown);
            return self.refuse(task, error);
        };
        if let Some(open) = bundles.open.take() {
            let pushed = if is_empty { Err(task) } else { open.push(task, newest) };
            match pushed {
                Ok(false) => {
                    bundles.open = Some(open);
                    return;
                }
                Ok(true) => {
                    let Err(refused) = executor.submit_call(Call::new(open.clone()), None) else {
                        bundles.open = Some(open);
                        return;
                    };
                    // What was in it before is none of this call's affair.
                    drop(refused.call.into_cell());
                    if let Some(task) = open.pop_refused() {
                        self.refuse(task, refused.error);
                    }
                    return;
                }
                Err(back) => task = back,
            }
            let len = open.len();
            bundles.likely = len.next_power_of_two().min(bundles.size);
            bundles.short = if len < MIN_BUNDLE { bundles.short + 1 } else { 0 };
        }
        let open = Bundle::new(bundles.ledger.clone(), bundles.size, bundles.likely);
        let is_submitted = match open.push(task, newest) {
            Ok(_) => executor.submit_call(Call::new(open.clone()), None),
            Err(_) => unreachable!("a new bundle takes a task"),
        };
        let piece = Piece(Running::Several(Reading { bundle: open.clone(), has_more: true }));
        match is_submitted {
            Ok(()) => {
                W::push(&mut self.window, piece);
                if bundles.short < SHORT_BUNDLES {
                    bundles.open = Some(open);
                } else {
                    self.bundles = None;
                }
            }
            Err(refused) => {
                drop(refused.call.into_cell());
                match open.pop_refused() {
                    Some(task) => self.refuse(task, refused.error),
                    None => W::push(&mut self.window, piece),
                }
            }
        }
    }

    /// An element that the executor doesn't take.
    fn refuse(&mut self, task: I::Item, error: SubmitError) {
        let cell = Cell::new(Single(task), TaskOptions::new());
        Call::new(cell.clone()).reject(error);
        W::push(&mut self.window, Piece(Running::One(cell)));
    }

    /// Elements pulled and not delivered.
    fn ahead(&self) -> usize {
        self.under_way + self.ready.len()
    }

    fn delivered(&self) -> usize {
        self.arrived - self.ready.len()
    }

    /// How many elements travel together now, and how many may be ahead of the reader.
    fn extent(&self) -> (usize, usize) {
        match (self.chunk_size, self.buffer) {
            (Some(chunk), buffer) => {
                let buffer = buffer.unwrap_or(DEFAULT_MAP_BUFFER);
                (chunk.min(buffer), buffer)
            }
            (None, Some(buffer)) => (self.meter.chunk().min((buffer / PARTS_OF_BUFFER).max(1)), buffer),
            (None, None) => {
                let chunk = self.meter.chunk().min(MAX_CHUNK);
                (chunk, DEFAULT_MAP_BUFFER.max(self.chunks_ahead.saturating_mul(chunk)))
            }
        }
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
        if let Some((batch, _)) = self.waiting.take() {
            self.submit(batch, reserved.ok());
        }
        self.pull();
        true
    }

    fn submit(&mut self, batch: Batch<I::Item>, slot: Option<Slot>) {
        let Some(executor) = &self.executor else { return };
        let piece = match batch {
            Batch::One(task) => {
                // What is used again has no options.
                let cell = match self.cells.pop().filter(|_| self.options.is_default()) {
                    Some(cell) => Cell::renewed(cell, Single(task)),
                    None => Cell::new(Single(task), self.options.clone()),
                };
                if let Err(refused) = executor.submit_call(Call::new(cell.clone()), slot) {
                    refused.call.reject(refused.error);
                }
                Running::One(cell)
            }
            Batch::Many(tasks) => {
                let len = tasks.len();
                let meter = self.chunk_size.is_none().then(|| self.meter.clone());
                Running::Many(submit_job(&**executor, Chunk { tasks, meter }, self.options.clone(), slot), len)
            }
        };
        W::push(&mut self.window, Piece(piece));
    }

    /// The next outcome, whichever the window has.
    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outcome<Output<I>>>> {
        loop {
            if let Some(outcome) = self.ready.next() {
                return Poll::Ready(Some(outcome));
            }
            if !matches!(self.timeout, Timeout::Up) && self.poll_room(cx) {
                continue;
            }
            match W::poll_next(&mut self.window, cx) {
                Poll::Ready(Some(arrived)) => {
                    if let Some(outcome) = self.unpack(arrived) {
                        return Poll::Ready(Some(outcome));
                    }
                }
                Poll::Ready(None) if self.waiting.is_none() => return Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The outcome, or `None` when there were several, which are `ready` now.
    fn unpack(&mut self, arrived: Arrived<I::Item>) -> Option<Outcome<Output<I>>> {
        let (outcomes, len) = match arrived.0 {
            Came::One(outcome, cell) => {
                self.under_way -= 1;
                self.arrived += 1;
                if self.phase == Phase::Pulling {
                    self.cells.push(cell);
                }
                return Some(outcome);
            }
            Came::Several(outcomes) => {
                self.under_way -= outcomes.len();
                self.arrived += outcomes.len();
                self.ready = IntoOutcomes::of(outcomes);
                return None;
            }
            Came::Many(outcomes, len) => (outcomes, len),
        };
        self.under_way -= len;
        self.arrived += len;
        self.ready = match outcomes {
            Ok(outcomes) if outcomes.len() == len => outcomes.into_iter(),
            Ok(outcomes) => {
                // From a worker that lies.
                let message = format!("there are {} results for {len} elements", outcomes.len());
                Self::all_failed(&CodecError::DecodeResult(message).into(), len)
            }
            Err(error) => Self::all_failed(&error, len),
        };
        None
    }

    fn all_failed(error: &TaskError, elements: usize) -> IntoOutcomes<Output<I>> {
        IntoOutcomes::of((0..elements).map(|_| Err(error.clone())).collect())
    }

    /// An outcome of a chunk that has come, if there need be no look at anything else.
    #[inline]
    fn next_ready(&mut self) -> Option<Outcome<Output<I>>> {
        if self.ready.len() > self.low + 1 { self.ready.next() } else { None }
    }

    /// Whether something is on its way that [`next_now`](Self::next_now) will find.
    fn can_look(&self) -> bool {
        (W::IS_ORDERED || self.ready.len() > 0)
            && self.ahead() > 0
            && matches!(self.timeout, Timeout::None)
            && self.phase != Phase::Over
            && self.waiting.is_none()
    }

    /// An outcome that is there, without waiting and without telling anybody to wake us: what a blocking reader asks
    /// first.
    fn next_now(&mut self) -> Option<Outcome<Output<I>>> {
        let outcome = match self.ready.next() {
            Some(outcome) => outcome,
            None => {
                let arrived = W::next_now(&mut self.window)?;
                match self.unpack(arrived) {
                    Some(outcome) => outcome,
                    None => self.ready.next()?,
                }
            }
        };
        self.pull_next();
        Some(outcome)
    }

    fn give_up(&mut self) -> TaskError {
        let (ahead, delivered) = (self.ahead(), self.delivered());
        let error = TaskError::WaitElapsed(Unfinished::new(ahead, delivered + ahead));
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
        if let Some(outcome) = this.next_ready() {
            return Poll::Ready(Some(outcome));
        }
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
            this.waiting = this.waiting.take().map(|(batch, _)| (batch, None));
        }
        match this.poll_outcome(cx) {
            Poll::Ready(Some(outcome)) => {
                if !time_is_up {
                    this.pull_next();
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
        let low = if extra == 1 { 0 } else { low.saturating_add(self.ahead()) };
        (low, high.and_then(|high| high.checked_add(self.ahead() + extra)))
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
            .field("ahead", &self.ahead())
            .field("delivered", &self.delivered())
            .finish_non_exhaustive()
    }
}

/// How often a blocking reader looks for the next outcome before it waits to be woken.
const LOOKS: u32 = 32;

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

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.0.next_ready() {
            Some(outcome) => Some(outcome),
            None => self.next_slowly(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<I, W> BlockingMap<I, W>
where
    I: Iterator + Unpin,
    I::Item: Task,
    W: Window,
{
    #[inline(never)]
    fn next_slowly(&mut self) -> Option<Outcome<Output<I>>> {
        let map = &mut self.0;
        for turn in 0..LOOKS {
            if !map.can_look() {
                break;
            }
            if (map.ready.len() > 0 || W::has_many(&map.window))
                && let Some(outcome) = map.next_now()
            {
                return Some(outcome);
            }
            // Closely at first, and then whenever the workers have had the core.
            if turn < LOOKS / 2 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if map.can_look() {
            if let Some(outcome) = map.next_now() {
                return Some(outcome);
            }
            // In bursts: a reader that is woken for each outcome is in the way of the workers.
            let many = pin!(poll_fn(|cx| W::poll_many(&map.window, cx)));
            let _ = futures_ext::block_on_deadline(many, Instant::now() + DOZE);
            if let Some(outcome) = map.next_now() {
                return Some(outcome);
            }
        }
        futures_ext::block_on(map.next())
    }
}

/// What is submitted together.
enum Batch<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Batch<T> {
    fn len(&self) -> usize {
        match self {
            Batch::One(_) => 1,
            Batch::Many(tasks) => tasks.len(),
        }
    }
}

/// How long the elements of a map take, as its workers see it.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Nanoseconds an element; 0 before the first one.
    each: AtomicU64,
    /// The largest chunk that has ended.
    largest: AtomicUsize,
}

impl Meter {
    /// So many elements of a chunk took that long. What is slow counts at once, and is forgotten by and by.
    pub(crate) fn ran(&self, elements: usize, took: Duration) {
        let now = (took.as_nanos() as u64 / elements.max(1) as u64).max(1);
        let before = self.each.load(Ordering::Relaxed);
        self.each.store(now.max(before - before / 4), Ordering::Relaxed);
    }

    /// A chunk of so many elements has ended.
    pub(crate) fn ended(&self, elements: usize) {
        if elements > self.largest.load(Ordering::Relaxed) {
            self.largest.store(elements, Ordering::Relaxed);
        }
    }

    /// How many elements make a good chunk, at least 1.
    fn chunk(&self) -> usize {
        let each = self.each.load(Ordering::Relaxed).max(1);
        let most = self.largest.load(Ordering::Relaxed).saturating_mul(GROWTH);
        ((CHUNK_TIME.as_nanos() as u64 / each) as usize).min(most).max(1)
    }
}

/// One submit of a map: an element, or a chunk of them.
#[doc(hidden)]
pub struct Piece<T: Task>(Running<T>);

enum Running<T: Task> {
    One(Arc<Cell<Single<T>>>),
    Several(Reading<T>),
    Many(TaskFuture<Outcomes<T::Output>>, usize),
}

/// A bundle, as long as there are outcomes to be read from it.
struct Reading<T: Task> {
    bundle: Arc<Bundle<T>>,
    has_more: bool,
}

impl<T: Task> Reading<T> {
    fn read(&mut self) -> Arrived<T> {
        let outcomes;
        (outcomes, self.has_more) = self.bundle.read();
        Arrived(Came::Several(outcomes))
    }
}

impl<T: Task> Drop for Reading<T> {
    fn drop(&mut self) {
        if self.has_more {
            self.bundle.leave();
        }
    }
}

/// What came back for a [`Piece`].
#[doc(hidden)]
pub struct Arrived<T: Task>(Came<T>);

enum Came<T: Task> {
    One(Outcome<T::Output>, Arc<Cell<Single<T>>>),
    /// Of a bundle, those that follow each other.
    Several(Vec<Outcome<T::Output>>),
    Many(Outcome<Outcomes<T::Output>>, usize),
}

impl<T: Task> Future for Piece<T> {
    type Output = Arrived<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Arrived<T>> {
        match &mut self.get_mut().0 {
            Running::One(cell) => cell.poll_outcome(cx).map(|outcome| Arrived(Came::One(outcome, cell.clone()))),
            Running::Several(reading) => reading.bundle.poll_next(cx).map(|()| reading.read()),
            Running::Many(tasks, len) => Pin::new(tasks).poll(cx).map(|outcome| Arrived(Came::Many(outcome, *len))),
        }
    }
}

impl<T: Task> Piece<T> {
    fn cancel(&self) {
        match &self.0 {
            Running::One(cell) => _ = cell.stop(TaskError::cancelled()),
            Running::Several(reading) => _ = reading.bundle.stop(TaskError::cancelled()),
            Running::Many(tasks, _) => _ = tasks.cancel(),
        }
    }

    /// What is there, and itself if that isn't all.
    fn take(self) -> (Option<Arrived<T>>, Option<Self>) {
        let mut cx = Context::from_waker(Waker::noop());
        match self.0 {
            Running::One(cell) => match cell.poll_outcome(&mut cx) {
                Poll::Ready(outcome) => (Some(Arrived(Came::One(outcome, cell))), None),
                Poll::Pending => (None, Some(Piece(Running::One(cell)))),
            },
            Running::Several(mut reading) => {
                let arrived = reading.read();
                let is_something = !matches!(&arrived.0, Came::Several(outcomes) if outcomes.is_empty());
                let rest = reading.has_more.then_some(Piece(Running::Several(reading)));
                (is_something.then_some(arrived), rest)
            }
            Running::Many(mut tasks, len) => match Pin::new(&mut tasks).poll(&mut cx) {
                Poll::Ready(outcome) => (Some(Arrived(Came::Many(outcome, len))), None),
                Poll::Pending => (None, Some(Piece(Running::Many(tasks, len)))),
            },
        }
    }

    /// Whether there is more to come after what it has given.
    fn has_more(&self) -> bool {
        matches!(&self.0, Running::Several(reading) if reading.has_more)
    }

    /// Waits until its next outcome is there, and leaves it there.
    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.0 {
            Running::Several(reading) => reading.bundle.poll_next(cx),
            _ => self.poll_done(cx),
        }
    }

    /// Waits until all its outcomes are there, and leaves them there.
    fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.0 {
            Running::One(cell) => cell.poll_published(cx),
            Running::Several(reading) => reading.bundle.poll_settled(cx),
            Running::Many(tasks, _) => tasks.poll_published(cx),
        }
    }

    /// Whether all its outcomes are there; may say no just after they came.
    fn is_done(&self) -> bool {
        match &self.0 {
            Running::One(cell) => cell.has_published(),
            Running::Several(reading) => reading.bundle.has_settled(),
            Running::Many(tasks, _) => tasks.has_published(),
        }
    }
}

impl<T: Task> std::fmt::Debug for Piece<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Piece").finish_non_exhaustive()
    }
}

impl<T: Task> std::fmt::Debug for Arrived<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrived").finish_non_exhaustive()
    }
}

/// In which order a [`Map`] gives its outcomes: [`Ordered`] or [`Unordered`].
#[doc(hidden)]
pub trait Window: sealed::Sealed {
    type Of<T: Task>;
    /// Whether it's known which outcome is next, so that one can look whether it's there.
    const IS_ORDERED: bool;
    fn empty<T: Task>() -> Self::Of<T>;
    fn push<T: Task>(window: &mut Self::Of<T>, piece: Piece<T>);
    fn poll_next<T: Task>(window: &mut Self::Of<T>, cx: &mut Context<'_>) -> Poll<Option<Arrived<T>>>;
    /// Whether there may be many outcomes by now.
    fn has_many<T: Task>(window: &Self::Of<T>) -> bool;
    /// Waits for that.
    fn poll_many<T: Task>(window: &Self::Of<T>, cx: &mut Context<'_>) -> Poll<()>;
    /// What is there now, if that can be said without a waker.
    fn next_now<T: Task>(window: &mut Self::Of<T>) -> Option<Arrived<T>>;
    fn cancel_all<T: Task>(window: &mut Self::Of<T>);
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

/// What a reader waits for who wants to find many outcomes: the middle of what is ahead, if that is much.
fn far<T: Task>(window: &VecDeque<Piece<T>>) -> Option<&Piece<T>> {
    let much = match window.front()?.0 {
        Running::Several(_) => MANY_BUNDLES,
        _ => MUCH,
    };
    if window.len() < much { None } else { window.get(window.len() / 2) }
}

impl Window for Ordered {
    type Of<T: Task> = VecDeque<Piece<T>>;
    const IS_ORDERED: bool = true;

    fn empty<T: Task>() -> VecDeque<Piece<T>> {
        VecDeque::new()
    }

    fn push<T: Task>(window: &mut VecDeque<Piece<T>>, piece: Piece<T>) {
        window.push_back(piece);
    }

    fn poll_next<T: Task>(window: &mut VecDeque<Piece<T>>, cx: &mut Context<'_>) -> Poll<Option<Arrived<T>>> {
        let Some(first) = window.front_mut() else {
            return Poll::Ready(None);
        };
        let Poll::Ready(arrived) = Pin::new(&mut *first).poll(cx) else {
            return Poll::Pending;
        };
        if !first.has_more() {
            window.pop_front();
        }
        Poll::Ready(Some(arrived))
    }

    fn has_many<T: Task>(window: &VecDeque<Piece<T>>) -> bool {
        window.front().is_none_or(Piece::is_done) && far(window).is_none_or(Piece::is_done)
    }

    fn poll_many<T: Task>(window: &VecDeque<Piece<T>>, cx: &mut Context<'_>) -> Poll<()> {
        match (far(window), window.front()) {
            (Some(piece), _) => piece.poll_done(cx),
            (None, Some(first)) => first.poll_next(cx),
            (None, None) => Poll::Ready(()),
        }
    }

    fn next_now<T: Task>(window: &mut VecDeque<Piece<T>>) -> Option<Arrived<T>> {
        let first = window.front()?;
        // Of a bundle, some may be there when not all are.
        if !first.has_more() && !first.is_done() {
            return None;
        }
        let (arrived, rest) = window.pop_front()?.take();
        if let Some(rest) = rest {
            window.push_front(rest);
        }
        arrived
    }

    fn cancel_all<T: Task>(window: &mut VecDeque<Piece<T>>) {
        window.drain(..).for_each(|piece| piece.cancel());
    }
}

impl Window for Unordered {
    type Of<T: Task> = FuturesUnordered<Piece<T>>;
    const IS_ORDERED: bool = false;

    fn empty<T: Task>() -> FuturesUnordered<Piece<T>> {
        FuturesUnordered::new()
    }

    fn push<T: Task>(window: &mut FuturesUnordered<Piece<T>>, piece: Piece<T>) {
        window.push(piece);
    }

    fn poll_next<T: Task>(window: &mut FuturesUnordered<Piece<T>>, cx: &mut Context<'_>) -> Poll<Option<Arrived<T>>> {
        window.poll_next_unpin(cx)
    }

    fn has_many<T: Task>(_: &FuturesUnordered<Piece<T>>) -> bool {
        true
    }

    fn poll_many<T: Task>(_: &FuturesUnordered<Piece<T>>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn next_now<T: Task>(_: &mut FuturesUnordered<Piece<T>>) -> Option<Arrived<T>> {
        None
    }

    fn cancel_all<T: Task>(window: &mut FuturesUnordered<Piece<T>>) {
        std::mem::take(window).into_iter().for_each(|piece| piece.cancel());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_step_by_step_with_what_is_known() {
        let meter = Meter::default();
        assert_eq!(meter.chunk(), 1);
        let mut chunk = 1;
        for _ in 0..10 {
            meter.ran(chunk, Duration::from_nanos(20) * chunk as u32);
            meter.ended(chunk);
            assert!(meter.chunk() <= GROWTH * chunk);
            chunk = meter.chunk();
        }
        assert_eq!(chunk as u128, CHUNK_TIME.as_nanos() / 20);
    }

    #[test]
    fn slow_elements_make_chunks_small_at_once_and_quick_ones_by_and_by() {
        let meter = Meter::default();
        meter.ran(1_024, Duration::from_nanos(20) * 1_024);
        meter.ended(1_024);
        meter.ran(64, CHUNK_TIME * 64);
        assert_eq!(meter.chunk(), 1);
        meter.ran(64, Duration::from_nanos(20) * 64);
        assert_eq!(meter.chunk(), 1);
        for _ in 0..100 {
            meter.ran(64, Duration::from_nanos(20) * 64);
        }
        assert!(meter.chunk() > 900);
    }
}
